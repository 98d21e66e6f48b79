"""The speed of generate_bbox.py and generate_final_answers.py against asking one row at a time, at SmolVLM's sizes.

    python3 benchmarks/generation_speed.py --rows 32
    python3 benchmarks/generation_speed.py --rows 1024 --longest_edge 2048               (on a GPU)

Random weights, a forced number of new tokens, JPEGs of about 1024x768 with 1.6 questions an image, as TextVQA has.
Both ways do everything from encoded bytes to text, in one run, on one model. One at a time is how the released
experiment asks: every prompt for itself, so that the two answers of a question take three encodings of an image. The
scripts encode an image once a batch, for both answers and for all questions about it (`--questions_per_image 1`
leaves the latter out).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from smolvlm import TILE, TILE_TOKENS, sizes
from synthetic import photos
from timing import clock, machine
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    Idefics3ImageProcessor,
    Idefics3Processor,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.boxes import format_bbox
from cropvlm.encoding import chat_text
from cropvlm.generation import PromptSource, generate_rows, greedy
from cropvlm.modeling import device_and_dtype, load_processor
from cropvlm.prompts import BRIEF_ANSWER
from cropvlm.runs.cli import batch_size, positive
from cropvlm.runs.processes import worker_count
from cropvlm.runs.prompt_sources import BASE, CROPVLM, AnswerPrompts, BoxPrompts
from miniature.tiny_models import TILE as SMALL_TILE
from miniature.tiny_models import build_smolvlm


def build(longest_edge: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A random SmolVLM-256M and its processor, with the miniature's tokenizer."""
    _, small = build_smolvlm()
    image_processor = Idefics3ImageProcessor(max_image_size={"longest_edge": TILE}, resample=1)
    parts = {"image_seq_len": TILE_TOKENS, "chat_template": small.chat_template}
    with tempfile.TemporaryDirectory() as folder:  # as the scripts load it
        Idefics3Processor(image_processor, small.tokenizer, **parts).save_pretrained(folder)
        processor = load_processor(folder, longest_edge)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(sizes(small.tokenizer), dtype=dtype)
    model.generation_config = GenerationConfig()
    return model.to(device).eval(), processor


def build_small(longest_edge: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The miniature's SmolVLM and its processor: tiles, and so images, have an eighth of the pixels a side."""
    model, processor = build_smolvlm()
    processor.image_processor.size = {"longest_edge": longest_edge * SMALL_TILE // TILE}
    return model.to(device, dtype).eval(), processor


def make_rows(number: int, questions_per_image: float) -> Dataset:
    """Rows with JPEGs; the questions about one image are neighbours and the bytes are in each of their rows."""
    image_of_row = [int(i / questions_per_image) for i in range(number)]
    images = [{"bytes": photo, "path": None} for photo in photos(image_of_row[-1] + 1)]
    columns = {"image": [images[i] for i in image_of_row], "question_id": range(number)}
    columns["question"] = [f"What is written on the {('red', 'blue', 'green')[i % 3]} sign?" for i in range(number)]
    return Dataset.from_dict(columns).cast_column("image", Image(decode=False))


def answers_source(rows: Dataset) -> PromptSource:
    """Both answers, with valid boxes a tenth to a half of the image wide and high."""
    # Drawn row by row: the first rows have the same boxes, however many follow.
    drawn = np.random.default_rng(0).integers([0, 0, 10, 10], 50, (len(rows), 4))
    boxes = [format_bbox([x, y, x + width, y + height]) for x, y, width, height in drawn]
    return AnswerPrompts(rows, {BASE: boxes, CROPVLM: boxes}, BRIEF_ANSWER)


@torch.inference_mode()
def one_at_a_time(model: Any, processor: Any, source: PromptSource, new_tokens: int) -> list[list[str]]:
    """The released experiment's way. (Opening and cropping a row's image once for both prompts is in its favour.)"""
    config = greedy(model, processor, new_tokens, new_tokens)
    texts = []
    for i in range(len(source)):
        texts.append([])
        for messages, images in source[i]:
            inputs = processor(text=[chat_text(processor, messages)], images=[images], return_tensors="pt")
            inputs = inputs.to(model.device, model.dtype)
            output = model.generate(**inputs, generation_config=config)
            new = output[:, inputs["input_ids"].shape[1] :]  # (1, new_tokens)
            texts[-1] += processor.batch_decode(new, skip_special_tokens=True)
    return texts


def in_batches(
    model: Any, processor: Any, make_source: Any, rows: Dataset, new_tokens: int, args: argparse.Namespace
) -> list[list[str]]:
    """The scripts' way, from reading the headers on."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "batch_size": args.batch_size}
    workers = worker_count(args.num_workers, model.device.type)
    texts = dict(generate_rows(model, processor, make_source(rows), num_workers=workers, **options))
    return [texts[i] for i in range(len(rows))]


def timed(device: torch.device, function: Any, *arguments: Any) -> tuple[float, list[list[str]]]:
    """Seconds and result."""
    start = clock(device)
    result = function(*arguments)
    return clock(device) - start, result


def measure(
    model: Any, processor: Any, make_source: Any, rows: Dataset, new_tokens: int, args: argparse.Namespace
) -> None:
    """Run both ways and print their speeds."""
    single = rows.select(range(min(args.single_rows, len(rows))))
    one_at_a_time(model, processor, make_source(rows.select([0])), new_tokens)  # warms up
    fast, fast_texts = timed(model.device, in_batches, model, processor, make_source, rows, new_tokens, args)
    print(f"    in batches:        {len(rows) / fast:.3g} rows/s ({len(rows)} rows)", flush=True)
    slow, slow_texts = timed(model.device, one_at_a_time, model, processor, make_source(single), new_tokens)
    print(f"    one row at a time: {len(single) / slow:.3g} rows/s ({len(single)} rows)")
    same = sum(a == b for a, b in zip(slow_texts, fast_texts, strict=False))
    ratio = len(rows) / fast / (len(single) / slow)
    print(f"    {ratio:.2f} times as fast; same text in {same} of {len(single)} rows", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scripts", nargs="+", choices=("boxes", "answers"), default=("boxes", "answers"))
    add(
        "--geometry", choices=("miniature", "real"), default="real", help="miniature: a million weights, tiles of 64 px"
    )
    add("--rows", type=positive, default=64, help="in batches")
    add("--single_rows", type=positive, default=8, help="one at a time, the first of the same rows")
    add("--longest_edge", type=positive, default=512)
    add("--box_tokens", type=positive, default=32, help="the most that generate_bbox.py takes")
    add("--answer_tokens", type=positive, default=16)
    add("--questions_per_image", type=float, default=1.6)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--batch_size", type=batch_size, default="auto")
    add("--num_workers", type=int)
    args = parser.parse_args()
    torch.manual_seed(42)
    device, _ = device_and_dtype()
    dtype = getattr(torch, args.dtype)
    make = build if args.geometry == "real" else build_small
    model, processor = make(args.longest_edge, device, dtype)
    rows = make_rows(args.rows, args.questions_per_image)
    print(f"{machine()}, {args.geometry}, {args.dtype}, longest edge {args.longest_edge} px, ", end="")
    print(f"{args.questions_per_image:g} questions an image, batch size {args.batch_size}", flush=True)
    for name, make_source in {"boxes": BoxPrompts, "answers": answers_source}.items():
        if name in args.scripts:
            new_tokens = args.box_tokens if name == "boxes" else args.answer_tokens
            print(f"{name}, {new_tokens} new tokens each:")
            measure(model, processor, make_source, rows, new_tokens, args)


if __name__ == "__main__":
    main()
