"""Stage 4: the cropper reads image and question and writes a box, kept in predictions/{name}_bbox.json.

    python3 generate_bbox.py --model_path models/grpo_512

A record's answer is the model's raw text; generate_final_answers.py reads it as a box. An interrupted run goes on
where it stopped when the same command is given again. Exit code 3: complete, but for some images that could not be
read; the meta file names them. On several GPUs: accelerate launch generate_bbox.py --model_path ... (which ends with 1
and a traceback of its own, ChildFailedError, where the script ends with 2 or 3)

Differences from the released experiment: rows are generated in batches; a `{name}_bbox.meta.json` says what was run.
"""

import argparse
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropvlm.boxes import bbox_area_pct, parse_bbox
from cropvlm.cli import COMPLETE_WITH_FAILURES, ArgumentParser, UserError, positive, remedy, run, start_logging
from cropvlm.crops import UnreadableImage, image_size, open_image
from cropvlm.data import dataset_name, load_rows
from cropvlm.inference.arguments import add_common_flags, data_sources, refuse_doubles
from cropvlm.inference.predictions import build_meta, write_predictions
from cropvlm.inference.run import (
    failed_before,
    failures,
    generate_missing,
    name_failures,
    only_journals_are_left,
    open_journals,
)
from cropvlm.modeling import ImageSizeError, adapter_base, device_and_dtype, load_model, load_processor
from cropvlm.prompts import MAX_BOX_TOKENS, Prompt, cropper_messages
from cropvlm.runtime.files import check_writable
from cropvlm.runtime.journal import Journal
from cropvlm.runtime.processes import device_index, gather, rank, shard
from cropvlm.runtime.provenance import fingerprint, questions_key

logger = logging.getLogger("cropvlm.generate_bbox")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="cropper: hub id, folder, or PEFT adapter folder")
    add("--base_model_path", help="the adapter's base, where it has moved")
    add("--output", help="the file; default: predictions/{name}_bbox.json")
    add("--longest_edge", type=positive, default=512, help="pixels of the longer side of the image (default 512)")
    add("--max_new_tokens", type=positive, default=MAX_BOX_TOKENS, help="of a box (default 32)")
    add_common_flags(parser)
    args = parser.parse_args()
    if args.output and args.dataset and len(args.dataset) > 1:
        raise UserError("--output names one file, --dataset several data sets; leave --output out")
    return args


@dataclass
class Job:
    """One data set to box."""

    source: dict[str, Any]  # as load_rows takes it
    rows: Any
    output: Path
    settings: dict[str, Any]


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Load and check all that is asked for: data sets and outputs."""
    jobs = []
    for source in data_sources(args):
        rows = load_rows(**source)
        jobs.append(Job(source, rows, output_path(args, source), settings_of(args, source, rows)))
    refuse_doubles(job.output for job in jobs)
    return jobs


class BoxPrompts:
    """The cropper's prompt of every row."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        return [(cropper_messages(row["question"]), [open_image(row["image"])])]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        try:
            return [image_size(self.rows[i]["image"])]
        except UnreadableImage:
            return []


def load_cropper(args: argparse.Namespace) -> tuple[Any, Any]:
    """Model and processor."""
    device, dtype = device_and_dtype(device_index(args.gpu))
    with remedy("leave --longest_edge out", ImageSizeError):
        processor = load_processor(args.model_path, longest_edge=args.longest_edge)
    return load_model(args.model_path, args.base_model_path, device=device, dtype=dtype), processor


def settings_of(args: argparse.Namespace, source: dict, rows: Any) -> dict:
    """What decides a box: another one of these and a journal is refused."""
    with remedy("name one of them with --gpu"):
        dtype = str(device_and_dtype(device_index(args.gpu))[1])
    return {
        "model_path": args.model_path,
        "model_files": fingerprint(args.model_path),
        "base_model_path": args.base_model_path,
        "base_model_files": fingerprint(args.base_model_path or adapter_base(args.model_path)),
        "dtype": dtype,
        "dataset_path": source["dataset_path"],
        "questions": questions_key(rows),
        "dataset": source["dataset"],
        "split": source["split"],
        "longest_edge": args.longest_edge,
        "max_new_tokens": args.max_new_tokens,
        "prompt": cropper_messages("{question}"),
    }


def output_path(args: argparse.Namespace, source: dict) -> Path:
    """The box file of a data set; refused where it cannot be written."""
    name = args.name or dataset_name(source["dataset_path"], source["dataset"])
    output = Path(args.output or f"predictions/{name}_bbox.json")
    check_writable(output)
    return output


def write_boxes(args: argparse.Namespace, job: Job, journal: Journal, cropper: Callable) -> int:
    """Box every row of one data set and write its file; return how many images could not be read."""
    start = time.monotonic()
    part = shard(job.rows)
    ids = list(part["question_id"])
    generate_missing(args, [journal], ids, BoxPrompts(part), cropper)
    records = gather([journal.rows[i] for i in ids], job.rows["question_id"])
    counts = count(records) | {"seconds": round(time.monotonic() - start, 1)}
    if rank() == 0:
        models = {"cropper": args.model_path, "cropper_base": args.base_model_path}
        failed = failures(records)
        meta = build_meta(**job.source, models=models, settings=job.settings, counts=counts, failed=failed)
        write_predictions(job.output, records, meta)
        logger.info("%s: %s", job.output, counts)
        name_failures(job.output, failed)
    return counts["failed"]


def count(records: list[dict]) -> dict:
    """Rows, invalid boxes (answered with the whole image later), mean area of the valid ones, unreadable images."""
    boxes = [box for box in (parse_bbox(record["answer"]) for record in records) if box]
    return {
        "rows": len(records),
        "invalid_boxes": len(records) - len(boxes),
        "mean_area_pct": round(sum(map(bbox_area_pct, boxes)) / len(boxes), 2) if boxes else None,
        "failed": sum("failed" in record for record in records),
    }


def main() -> int:
    args = parse_args()
    start_logging(args)
    jobs = jobs_of(args)  # checked, all of them, before the model loads
    cropper = functools.cache(lambda: load_cropper(args))
    with open_journals({job.output: job.settings for job in jobs}) as journals:
        if only_journals_are_left(journals, [job.rows["question_id"] for job in jobs]):
            failed = failed_before(journals)
        else:
            failed = sum(write_boxes(args, job, journals[job.output], cropper) for job in jobs)
    return COMPLETE_WITH_FAILURES if failed and rank() == 0 else 0


if __name__ == "__main__":
    run(main)
