"""The teacher's speed: rows one at a time, as the released experiment asks it, against create_dataset.py's batches.

    python3 benchmarks/teacher_speed.py --geometry tiny
    python3 benchmarks/teacher_speed.py --geometry 7b --rows 256     (on a GPU)

Random weights, a forced number of new tokens, synthetic JPEGs of about 1024x768. Both ways do everything from encoded
bytes to text, in one run, on one model.
"""

import argparse
import sys
from pathlib import Path

import torch
from datasets import Dataset, Image
from generation_speed import measure
from synthetic import photos
from timing import machine
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.modeling import device_and_dtype
from cropvlm.runs.cli import batch_size, positive
from cropvlm.sets.responses import TeacherPrompts
from miniature.tiny_models import build_qwen

# Qwen2.5-VL-7B-Instruct, from its published configuration
TEXT_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_7B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def build(geometry: str, device: torch.device, dtype: torch.dtype):
    """A random teacher and its processor; the 7B one sees images within Qwen2.5-VL's own pixel budget."""
    model, processor = build_qwen()
    if geometry == "7b":
        small = model.config
        tokens = {key: getattr(small, key) for key in ("image_token_id", "video_token_id", "vision_start_token_id")}
        config = Qwen2_5_VLConfig(text_config=TEXT_7B, vision_config=VISION_7B, tie_word_embeddings=False, **tokens)
        generation_config = model.generation_config
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
        model.generation_config = generation_config
        processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    return model.to(device, dtype).eval(), processor


def make_rows(number: int) -> Dataset:
    """Rows with JPEGs of about 1024x768."""
    images = [{"bytes": photo, "path": None} for photo in photos(number)]
    columns = {"image": images, "question": ["What is written on the red sign?"] * number}
    return Dataset.from_dict(columns | {"question_id": range(number)}).cast_column("image", Image(decode=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--rows", type=positive, default=128)
    parser.add_argument("--single_rows", type=positive, default=32, help="rows asked for one at a time")
    parser.add_argument("--new_tokens", type=positive, default=48)
    parser.add_argument("--batch_size", type=batch_size, default="auto")
    parser.add_argument("--num_workers", type=int)
    args = parser.parse_args()
    torch.manual_seed(42)
    device, dtype = device_and_dtype()
    model, processor = build(args.geometry, device, dtype)
    print(f"{machine()}, {args.geometry}, {dtype}, {args.new_tokens} new tokens")
    measure(model, processor, TeacherPrompts, make_rows(args.rows), args.new_tokens, args)


if __name__ == "__main__":
    main()
