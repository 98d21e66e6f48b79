"""The flags of `create_dataset.py`, read before torch or datasets is imported."""

import argparse
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cropvlm.boxes import GROWTH
from cropvlm.data.catalog import dataset_name
from cropvlm.errors import UserError, shorten
from cropvlm.runs.cli import factor, finite, fraction, nonempty, pixels, positive
from cropvlm.runs.text_models import add_api_flags, add_local_flags

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class Source:
    """A data set. limit: a number of its rows (int), a share of them (float), or all (None)."""

    path: str
    name: str
    limit: int | float | None = None


def parse_source(text: str) -> Source:
    """Read `docvqa`, `docvqa=10000` (a cap), `docvqa=0.5` (a share) or the same with a Hub id or folder.

    >>> parse_source("lmms-lab/DocVQA:DocVQA=10000")
    Source(path='lmms-lab/DocVQA:DocVQA', name='docvqa', limit=10000)
    """
    path, equals, number = text.rpartition("=")
    limit = None
    if not equals or os.path.exists(text):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        path = text
    else:
        with contextlib.suppress(ValueError):
            limit = int(number) if number.isdecimal() else float(number)
        if limit is None or not (0 < limit <= 1 or (isinstance(limit, int) and limit > 0)):
            expected = "expected a number of rows or a share up to 1.0 after =, such as docvqa=0.5"
            raise argparse.ArgumentTypeError(f"{shorten(text)!r}: {expected}")
    try:
        return Source(nonempty(path), dataset_name(path), limit)
    except UserError as error:  # a name that is too long
        raise argparse.ArgumentTypeError(str(error)) from error


def output_path(text: str) -> str:
    """The type of `--output_path`: a path that ends in a name, without the slash of shell completion."""
    path = Path(nonempty(text))
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r}: expected a path whose last part is a name")
    return str(path)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `create_dataset.py`."""
    add = parser.add_argument
    add(
        "--dataset_path",
        nargs="+",
        type=parse_source,
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
    add("--need_threshold", type=finite, default=0.5, help="nats that a needed crop gains at least (default 0.5)")
    add_local_flags(parser)
    add("--verbose", action="store_true", help="log every response")
