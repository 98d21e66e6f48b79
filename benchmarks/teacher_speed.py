"""The teacher's speed: rows one at a time, as the released experiment asks it, against create_dataset.py's batches.

    python3 benchmarks/teacher_speed.py --geometry tiny
    python3 benchmarks/teacher_speed.py --geometry 7b --rows 256     (on a GPU)

Random weights, a forced number of new tokens, synthetic JPEGs of about 1024x768. Both ways do everything from encoded
bytes to text, in one run, on one model.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset, Image
from synthetic import photos
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.data.images import open_image
from cropvlm.encoding import chat_text
from cropvlm.generation import generate_rows, greedy
from cropvlm.modeling import device_and_dtype
from cropvlm.prompts import teacher_messages
from cropvlm.runs.cli import batch_size, positive
from cropvlm.runs.processes import worker_count
from cropvlm.sets.asking import TeacherPrompts, inspect_rows
from miniature.tiny_models import build_qwen

SFT_ROWS = 62_000  # half of the paper's four sources
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


@torch.inference_mode()
def one_at_a_time(model, processor, rows: Dataset, config) -> list[str]:
    """The released experiment's way: open, preprocess, generate, row by row."""
    texts = []
    for row in rows:
        prompt = chat_text(processor, teacher_messages(row["question"]))
        inputs = processor(text=[prompt], images=[open_image(row["image"])], return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        output = model.generate(**inputs, generation_config=config)
        texts += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def in_batches(model, processor, rows: Dataset, args: argparse.Namespace) -> list[str]:
    """create_dataset.py's way, from reading the headers on."""
    prompts = TeacherPrompts(rows, list(inspect_rows(rows)))
    workers = worker_count(args.num_workers, model.device.type)
    options = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "num_workers": workers}
    texts = dict(generate_rows(model, processor, prompts, batch_size=args.batch_size, **options))
    return [texts[i][0] for i in range(len(rows))]


def timed(model, function, *arguments) -> tuple[float, list[str]]:
    """Seconds and result."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    texts = function(*arguments)
    return time.perf_counter() - start, texts


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
    rows = make_rows(args.rows)
    single = rows.select(range(min(args.single_rows, args.rows)))
    config = greedy(model, processor, args.new_tokens, args.new_tokens)
    one_at_a_time(model, processor, rows.select(range(2)), config)  # warms up
    slow, slow_texts = timed(model, one_at_a_time, model, processor, single, config)
    fast, fast_texts = timed(model, in_batches, model, processor, rows, args)
    slow_rate, fast_rate = len(single) / slow, len(rows) / fast
    same = sum(a == b for a, b in zip(slow_texts, fast_texts, strict=False))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.geometry}, {name}, {dtype}, {args.new_tokens} new tokens, torch {torch.__version__}")
    print(f"one row at a time: {slow_rate:.2f} rows/s ({len(single)} rows)")
    print(f"in batches:        {fast_rate:.2f} rows/s ({len(rows)} rows), {fast_rate / slow_rate:.1f} times as fast")
    print(f"{SFT_ROWS} rows: {SFT_ROWS / slow_rate / 3600:.1f} h against {SFT_ROWS / fast_rate / 3600:.1f} h")
    print(f"same text in {same} of {len(slow_texts)} rows")
    if device.type == "cuda":
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
