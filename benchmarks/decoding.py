"""Decoding alone: the scripts' growing cache against a static one, which transformers compiles on a GPU.

    python3 benchmarks/decoding.py --rows 64 --new_tokens 32        (on a GPU)
    python3 benchmarks/decoding.py --geometry miniature --rows 4 --new_tokens 4

Random weights at SmolVLM-256M's sizes, prompts of text, a forced number of new tokens. Each way runs once before it is
timed: for the static cache that is the time of compiling.
"""

import argparse
import sys
from pathlib import Path

import torch
from generation_speed import build, build_small, timed
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.modeling import device_and_dtype
from cropvlm.runs.cli import positive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("miniature", "real"), default="real")
    parser.add_argument("--rows", type=positive, default=64)
    parser.add_argument("--prompt_tokens", type=positive, default=100, help="about those of an image of one tile")
    parser.add_argument("--new_tokens", type=positive, default=32)
    args = parser.parse_args()
    torch.manual_seed(42)
    device, dtype = device_and_dtype()
    real = args.geometry == "real"
    model, processor = build(None, 512, device, dtype) if real else build_small(512, device, dtype)
    ids = torch.randint(10, 200, (args.rows, args.prompt_tokens), device=device)  # words, no image tokens
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pad = processor.tokenizer.pad_token_id
    options = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "pad_token_id": pad}
    print(f"{args.rows} rows, {args.new_tokens} new tokens, {device}, {dtype}, torch {torch.__version__}", flush=True)
    for way, cache in (("growing", {}), ("static", {"cache_implementation": "static"})):
        config = GenerationConfig(do_sample=False, **options, **cache)
        with torch.inference_mode():
            first, _ = timed(device, lambda config=config: model.generate(**inputs, generation_config=config))
            again, _ = timed(device, lambda config=config: model.generate(**inputs, generation_config=config))
        print(f"{way:8} cache: {again:.3g} s, {first:.3g} s the first time", flush=True)


if __name__ == "__main__":
    main()
