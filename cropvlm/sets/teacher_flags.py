"""The flags of `create_dataset.py`. Importing this takes neither torch nor datasets: a mistake is told at once."""

import argparse
from pathlib import Path

from cropvlm.boxes import GROWTH
from cropvlm.errors import UserError, shorten
from cropvlm.runs.cli import factor, fraction, nonempty, pixels, positive
from cropvlm.runs.model_flags import add_api_flags, add_local_flags, refuse_beside_server
from cropvlm.sets.sources import Source, parse_source

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `create_dataset.py`."""
    add = parser.add_argument
    add(
        "--dataset_path",
        nargs="+",
        type=source,
        default=[parse_source("lmms-lab/textvqa")],
        metavar="SOURCE",
        help="benchmarks, Hub ids (id:config) or folders, each with a share or a cap if you like:"
        " docvqa=0.5 stvqa=10000 (default lmms-lab/textvqa)",
    )
    add("--split", type=nonempty, help="default: train, or the only one")
    add("--max_samples", type=positive, help="only the first rows of each source, both parts together")
    add("--sft_share", type=fraction, default=0.5, help="of each source's rows to box (default 0.5; 1: no GRPO part)")
    add("--model_path", type=nonempty, default=DEFAULT_TEACHER, help=f"teacher: Hub id or folder ({DEFAULT_TEACHER})")
    add_api_flags(parser)
    add("--output_path", type=output_path, default="datasets/cropvlm_dataset", help="_sft and _grpo are added")
    add("--growth", type=factor, nargs=5, default=GROWTH, help="area multipliers, smallest fifth first (45 10 4 2 1)")
    add(
        "--teacher_box_format",
        choices=("pixels", "relative"),
        default="pixels",
        help="of the image as the teacher sees it (Qwen2.5-VL), or 0 to 1000 (a Qwen3-VL behind a server)",
    )
    add("--from_journal", action="store_true", help="grow and save again, without the teacher")
    add("--push_to_hub", type=nonempty, metavar="REPO", help="send both parts and the card there as well")
    add("--min_pixels", type=positive, help="of the image as the teacher sees it; default: its own")
    add("--max_pixels", type=positive, help="of the image as the teacher sees it; default: its own")
    add("--max_new_tokens", type=positive, default=128, help="of a response (default 128)")
    add("--label_need", action="store_true", help="label rows by whether the reward model needs the crop, for SFT")
    add("--reward_model", type=nonempty, default="HuggingFaceTB/SmolVLM-256M-Instruct", help="with --label_need")
    add("--reward_longest_edge", type=pixels, default=512, help="pixels at which it sees images (default 512)")
    add("--need_threshold", type=float, default=0.5, help="nats that a needed crop gains at least (default 0.5)")
    add_local_flags(parser)
    add("--verbose", action="store_true", help="log every response")


def check_flags(args: argparse.Namespace) -> None:
    """Raise `UserError` for flags that do not fit each other."""
    refuse_beside_server(args)
    if args.min_pixels and args.max_pixels and args.min_pixels > args.max_pixels:
        raise UserError(f"--min_pixels {args.min_pixels} is more than --max_pixels {args.max_pixels}")


def source(text: str) -> Source:
    """The type of `--dataset_path`."""
    try:
        return parse_source(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def output_path(text: str) -> str:
    """The type of `--output_path`: a path that ends in a name. A slash at its end, as of completion, is dropped."""
    path = Path(nonempty(text))
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r}: expected a path whose last part is a name")
    return str(path)
