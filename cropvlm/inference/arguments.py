"""Flags that `generate_bbox.py` and `generate_final_answers.py` share."""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropvlm.cli import UserError, batch_size, positive, whole_number

DEFAULT_DATASET = "lmms-lab/textvqa"


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `generate_bbox.py` and `generate_final_answers.py` share."""
    add = parser.add_argument
    add("--dataset_path", help=f"benchmark name, hub id (id:config), or local folder (default {DEFAULT_DATASET})")
    add("--dataset", nargs="+", help="one or more benchmarks; beside --dataset_path: whose columns that one has")
    add("--split", help="default: the benchmark's own, or the only one")
    add("--name", help="{name} of the files; default: the data set's")
    add("--max_samples", type=positive, help="only the first so many rows")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=whole_number, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--gpu", type=int, default=0, help="index of the GPU; -1, or without a GPU, the CPU in fp32")
    add("--verbose", action="store_true", help="log every text")


def data_sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The data sets that the flags name, each as keyword arguments of `cropvlm.data.load_rows`."""
    common = {"split": args.split, "max_samples": args.max_samples}
    datasets = args.dataset or []
    if len(datasets) > 1 and (args.dataset_path or args.name):
        raise UserError("several --dataset go with neither --dataset_path nor --name; run them one by one")
    if args.dataset_path or not datasets:  # --dataset_path, perhaps with the columns of a --dataset
        path = args.dataset_path or DEFAULT_DATASET
        return [{"dataset_path": path, "dataset": datasets[0] if datasets else None} | common]
    return [{"dataset_path": name, "dataset": None} | common for name in datasets]


def refuse_doubles(outputs: Iterable[Path]) -> None:
    """Raise `UserError` where one file would be written twice by one command."""
    for output, times in Counter(outputs).items():
        if times > 1:
            raise UserError(f"{output} would be written {times} times; run them one by one with --name")
