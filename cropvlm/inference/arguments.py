"""The flags that `generate_bbox.py` and `generate_final_answers.py` share, and what they name."""

import argparse
from typing import Any

from cropvlm.benchmarks import BENCHMARKS
from cropvlm.cli import UserError, batch_size, file_name, nonempty, positive, workers

DEFAULT_DATASET = "lmms-lab/textvqa"


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that both scripts share."""
    add = parser.add_argument
    add("--dataset_path", type=nonempty, help=f"benchmark, Hub id (id:config) or local folder ({DEFAULT_DATASET})")
    add(
        "--dataset",
        nargs="+",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"benchmarks ({' '.join(BENCHMARKS)}); beside --dataset_path: whose columns it has",
    )
    add("--split", type=nonempty, help="default: the benchmark's own, or the only one")
    add("--name", type=file_name, help="{name} of the files; default: the data set's")
    add("--max_samples", type=positive, help="only the first so many rows")
    add("--attn_implementation", type=nonempty, help="such as flash_attention_2; default: transformers' own choice")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=workers, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--gpu", type=int, default=0, help="index of the GPU; -1, or without a GPU, the CPU in fp32")
    add("--verbose", action="store_true", help="log every text, and the cause of an error")


def data_sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The data sets that the flags name, each as keyword arguments of `cropvlm.data.load_rows`."""
    common = {"split": args.split, "max_samples": args.max_samples}
    datasets = args.dataset or []
    if len(datasets) > 1 and (args.dataset_path or args.name):
        raise UserError("several --dataset go with neither --dataset_path nor --name; run them one by one")
    if args.dataset_path is None and datasets:
        return [{"dataset_path": name, "dataset": None} | common for name in datasets]
    path = DEFAULT_DATASET if args.dataset_path is None else args.dataset_path
    return [{"dataset_path": path, "dataset": datasets[0] if datasets else None} | common]
