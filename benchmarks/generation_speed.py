"""The speed of generate_bbox.py and generate_final_answers.py against asking one row at a time, at SmolVLM's sizes.

    python3 benchmarks/generation_speed.py --rows 32
    python3 benchmarks/generation_speed.py --rows 1024 --longest_edge 2048 --profile     (on a GPU)

Random weights, a forced number of new tokens, JPEGs of about 1024x768 with 1.6 questions an image, as TextVQA has.
Both ways do everything from encoded bytes to text, in one run, on one model. One at a time is how the released
experiment asks: every prompt for itself, so that the two answers of a question take three encodings of an image. The
scripts encode an image once a batch, for both answers and for all questions about it (`--questions_per_image 1`
leaves the latter out). `--profile` shows where the time goes, in two more runs of the scripts' way.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from phases import Phases, clock
from smolvlm import TILE, TILE_TOKENS, sizes
from synthetic import photos
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
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


def attention_flop(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Operations of attention: two products of (query, key) and (query, value) lengths for each head of the queries.

    The counter's own formula knows neither the CPU's kernel nor fewer heads of keys than of queries (SmolVLM: 3 to 9).
    """
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


ATTENTION = dict.fromkeys(
    (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
    ),
    attention_flop,
)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, from NVIDIA's data sheets


def build(model_path: str | None, longest_edge: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A random SmolVLM-256M and its processor; without a folder with the real tokenizer that of the miniature."""
    if model_path:
        config, processor = AutoConfig.from_pretrained(model_path), load_processor(model_path, longest_edge)
    else:
        _, small = build_smolvlm()
        tokenizer = small.tokenizer
        image_processor = Idefics3ImageProcessor(max_image_size={"longest_edge": TILE}, resample=1)
        whole = Idefics3Processor(
            image_processor, tokenizer, image_seq_len=TILE_TOKENS, chat_template=small.chat_template
        )
        with tempfile.TemporaryDirectory() as folder:  # as the scripts load it
            whole.save_pretrained(folder)
            processor = load_processor(folder, longest_edge)
        config = sizes(tokenizer)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
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


def boxes_source(rows: Dataset) -> PromptSource:
    return BoxPrompts(rows)


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


def in_batches(model: Any, processor: Any, source: PromptSource, new_tokens: int, args: argparse.Namespace) -> list:
    """The scripts' way, from reading the headers on."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "batch_size": args.batch_size}
    workers = worker_count(args.num_workers, model.device.type)
    texts = dict(generate_rows(model, processor, source, num_workers=workers, **options))
    return [texts[i] for i in range(len(source))]


def timed(device: torch.device, function: Any, *arguments: Any) -> tuple[float, list[list[str]]]:
    """Seconds and result."""
    start = clock(device)
    result = function(*arguments)
    return clock(device) - start, result


def measure(name: str, model: Any, processor: Any, make_source: Any, rows: Dataset, args: argparse.Namespace) -> None:
    """Run both ways and print their speeds."""
    new_tokens = args.box_tokens if name == "boxes" else args.answer_tokens
    source, single = make_source(rows), make_source(rows.select(range(min(args.single_rows, len(rows)))))
    one_at_a_time(model, processor, make_source(rows.select([0])), new_tokens)  # warms up
    slow, slow_texts = timed(model.device, one_at_a_time, model, processor, single, new_tokens)
    fast, fast_texts = timed(model.device, in_batches, model, processor, source, new_tokens, args)
    slow_rate, fast_rate = len(single) / slow, len(source) / fast
    images = 2 if name == "answers" else 1  # that a row's prompts show, each counted once
    same = sum(a == b for a, b in zip(slow_texts, fast_texts, strict=False))
    print(f"{name}, {new_tokens} new tokens each:")
    print(f"    one row at a time: {slow_rate:.3g} rows/s, {images * slow_rate:.3g} images/s ({len(single)} rows)")
    print(f"    in batches:        {fast_rate:.3g} rows/s, {images * fast_rate:.3g} images/s ({len(source)} rows)")
    print(f"    {fast_rate / slow_rate:.2f} times as fast; same text in {same} of {len(single)} rows", flush=True)
    if args.profile:
        profile(model, processor, source, new_tokens, fast, args)


def profile(
    model: Any, processor: Any, source: PromptSource, new_tokens: int, unwatched: float, args: argparse.Namespace
) -> None:
    """Print the share of peak FLOP/s, and of the time that each part takes, waiting for the device at its borders."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter, Phases(model, counter.get_total_flops) as operations:
        in_batches(model, processor, source, new_tokens, args)
    with Phases(model, functools.partial(clock, model.device)) as seconds:
        watched, _ = timed(model.device, in_batches, model, processor, source, new_tokens, args)
    total = sum(operations.spent.values())
    peak = args.peak_tflops * 1e12 if args.peak_tflops else peak_of(model.device)

    def rate(flop: float, duration: float) -> str:
        share = f", {flop / duration / peak:.1%} of peak" if peak else ""
        return f"{flop / duration / 1e12:.3g} TFLOP/s{share}"

    print(f"    {total / len(source) / 1e9:.0f} GFLOP a row; {rate(total, unwatched)}; where the time goes:")
    for part, duration in seconds.spent.items():
        print(f"        {part}: {duration / watched:.1%}, {rate(operations.spent[part], duration)}")
    rest = 1 - sum(seconds.spent.values()) / watched
    print(f"        the rest (waiting for images, choosing tokens, Python): {rest:.1%}", flush=True)


def peak_of(device: torch.device) -> float | None:
    """FLOP/s of the GPU in bf16; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


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
    add("--model_path", help="folder with SmolVLM's configuration, tokenizer and processor; weights stay random")
    add("--profile", action="store_true")
    add("--peak_tflops", type=float, help="of this machine in that dtype; known for H100, H200 and A100 in bf16")
    args = parser.parse_args()
    if args.questions_per_image < 1:
        parser.error(f"--questions_per_image {args.questions_per_image}: expected at least 1")
    torch.manual_seed(42)
    device, _ = device_and_dtype()
    dtype = getattr(torch, args.dtype)
    if args.geometry == "miniature":
        model, processor = build_small(args.longest_edge, device, dtype)
    else:
        model, processor = build(args.model_path, args.longest_edge, device, dtype)
    rows = make_rows(args.rows, args.questions_per_image)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{machine}, {args.geometry}, {args.dtype}, longest edge {args.longest_edge} px, torch {torch.__version__}, ",
        end="",
    )
    print(f"{args.questions_per_image:g} questions an image, batch size {args.batch_size}", flush=True)
    for name, make_source in {"boxes": boxes_source, "answers": answers_source}.items():
        if name in args.scripts:
            measure(name, model, processor, make_source, rows, args)
    if device.type == "cuda":
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
