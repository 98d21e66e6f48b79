"""Stage 5: any frozen VLM answers from [full image, crop] and from the full image alone.

    python3 generate_final_answers.py --bbox predictions/textvqa_bbox.json
    OPENAI_API_KEY=... python3 generate_final_answers.py --bbox predictions/textvqa_bbox.json \\
        --api_model gpt-4.1-nano --longest_edge 512

writes predictions/{name}_cropvlm_answers.json and predictions/{name}_base_answers.json. Data set, split and number of
rows are read from the box file's meta unless flags say otherwise. A box that is none is answered with the full image
in the crop's place, and counted. An interrupted run goes on where it stopped when the same command is given again.
Exit code 3: complete, but for some images that could not be read, or prompts that the server rejected; the meta files
name them. On several GPUs: accelerate launch generate_final_answers.py ... (which ends with 1 and a traceback of its
own, ChildFailedError, where the script ends with 2 or 3)

SmolVLM sees images at 512 px unless --longest_edge says otherwise, as the reward VLM does in training; its processor
alone would make it 2048 px.

With --api_model a model behind an OpenAI-compatible server answers (--api_base: vLLM, SGLang, transformers serve; by
default OpenAI's own, as GPT-4.1 nano in the paper). It sees the pictures at --longest_edge. What it refuses to answer
is an empty answer.

Differences from the released experiment: both answers of a question share one preprocessing and one encoding of the
full image; boxes are joined to rows on question_id.
"""

import argparse
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropvlm.boxes import parse_bbox, pct_to_px
from cropvlm.cli import COMPLETE_WITH_FAILURES, ArgumentParser, UserError, positive, remedy, run, start_logging
from cropvlm.crops import UnreadableImage, crop_or_full_image, image_size, open_image
from cropvlm.data import benchmark_for, dataset_name, load_rows
from cropvlm.inference.arguments import add_common_flags, data_sources, refuse_doubles
from cropvlm.inference.predictions import (
    build_meta,
    join_on_question_id,
    read_meta,
    read_predictions,
    write_predictions,
)
from cropvlm.inference.run import (
    failed_before,
    failures,
    fill_missing,
    generate_missing,
    name_failures,
    only_journals_are_left,
    open_journals,
)
from cropvlm.modeling import ImageSizeError, adapter_base, device_and_dtype, load_model, load_processor, longest_edge_of
from cropvlm.prompts import BRIEF_ANSWER, Prompt, answerer_messages, clean_answer
from cropvlm.runtime.files import check_writable
from cropvlm.runtime.journal import Journal
from cropvlm.runtime.processes import device_index, gather, rank, shard
from cropvlm.runtime.provenance import fingerprint, questions_key
from cropvlm.runtime.server import answer_rows, api_settings, fit_longest_edge
from cropvlm.runtime.server_arguments import add_api_flags, server_of

logger = logging.getLogger("cropvlm.generate_final_answers")

MODES = ("base", "cropvlm")
LONGEST_EDGE = 512  # of SmolVLM unless told otherwise: the size at which the reward VLM sees images in training


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--bbox", nargs="+", help="box file(s) of generate_bbox.py; without one only --modes base")
    add("--vqa_model_path", default="HuggingFaceTB/SmolVLM-256M-Instruct", help="answerer: hub id or folder")
    add("--output_path", default="predictions", help="folder of the answer files (default predictions)")
    add("--modes", nargs="+", choices=MODES, default=MODES, help="base: without the crop; cropvlm: with it")
    add("--longest_edge", type=positive, help="pixels of the longer side (SmolVLM: default 512; servers: image's own)")
    add("--max_pixels", type=positive, help="width x height of an image at most (Qwen2.5-VL)")
    add("--max_new_tokens", type=positive, default=64, help="of an answer (default 64)")
    add_api_flags(parser)
    add_common_flags(parser)
    args = parser.parse_args()
    if server_of(args) and args.max_pixels:
        raise UserError("--max_pixels goes with a local model; say with --longest_edge how large pictures are sent")
    if args.bbox is None and "cropvlm" in args.modes:
        raise UserError("--modes cropvlm needs the boxes: give --bbox FILE, or --modes base")
    if args.bbox and len(args.bbox) > 1 and (args.dataset or args.dataset_path or args.name):
        raise UserError("several --bbox go with none of --dataset, --dataset_path and --name; run them one by one")
    return args


@dataclass
class Job:
    """One data set to answer."""

    source: dict[str, Any]  # as load_rows takes it
    rows: Any
    boxes: list[str] | None  # box text by row; None without a box file
    instruction: str
    outputs: dict[str, Path]  # by mode


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Load and check all that is asked for: data sets, boxes, outputs."""
    if args.bbox:
        boxes = {bbox: read_predictions(bbox)[: args.max_samples] for bbox in args.bbox}
        jobs = [job_of(args, source_of(args, bbox), bbox, records) for bbox, records in boxes.items()]
    else:
        jobs = [job_of(args, source) for source in data_sources(args)]
    refuse_doubles(path for job in jobs for path in job.outputs.values())
    return jobs


def source_of(args: argparse.Namespace, bbox: str) -> dict[str, Any]:
    """The data set of a box file: what its meta says, unless flags say otherwise."""
    known = read_meta(bbox)
    if args.dataset or args.dataset_path:
        (source,) = data_sources(args)
    elif "dataset_path" in known:
        source = {"dataset_path": known["dataset_path"], "dataset": known.get("dataset")}
    else:
        raise UserError(f"no meta file beside {bbox}; name its data set with --dataset_path and --split")
    split, max_samples = args.split or known.get("split"), args.max_samples or known.get("max_samples")
    return source | {"split": split, "max_samples": max_samples}


def job_of(args: argparse.Namespace, source: dict, bbox: str | None = None, records: list[dict] | None = None) -> Job:
    """Rows, boxes and output files of one data set, checked."""
    rows = load_rows(**source)
    name = args.name or name_of(bbox) or dataset_name(source["dataset_path"], source["dataset"])
    outputs = {mode: Path(args.output_path) / f"{name}_{mode}_answers.json" for mode in dict.fromkeys(args.modes)}
    for output in outputs.values():
        check_writable(output)
    benchmark = benchmark_for(source["dataset_path"], source["dataset"], source["split"])
    return Job(
        source=source,
        rows=rows,
        boxes=None if records is None else join_on_question_id(records, rows, bbox),
        instruction=benchmark.instruction or BRIEF_ANSWER,
        outputs=outputs,
    )


def name_of(bbox: str | None) -> str | None:
    """`textvqa` for predictions/textvqa_bbox.json; None where the file is not named so."""
    stem = Path(bbox).stem if bbox else ""
    return stem.removesuffix("_bbox") if stem.endswith("_bbox") else None


class AnswerPrompts:
    """The answerer's prompts of every row, one per mode; both show the same full image."""

    def __init__(self, rows: Any, boxes: list[str] | None, modes: list[str], instruction: str):
        self.rows, self.boxes, self.modes, self.instruction = rows, boxes, modes, instruction

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        full = open_image(row["image"])
        images = {"base": [full]}
        if "cropvlm" in self.modes:
            images["cropvlm"] = [full, crop_or_full_image(full, self.boxes[i])[0]]
        return [
            (answerer_messages(row["question"], len(images[mode]), self.instruction), images[mode])
            for mode in self.modes
        ]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        try:
            full = image_size(self.rows[i]["image"])
        except UnreadableImage:
            return []
        bbox_pct = parse_bbox(self.boxes[i]) if "cropvlm" in self.modes else None
        if bbox_pct is None:
            return [full]
        left, top, right, bottom = pct_to_px(bbox_pct, *full)
        return [full, (right - left, bottom - top)]


def load_answerer_processor(args: argparse.Namespace) -> Any:
    """The processor. Resolves `--longest_edge`: at most 512 unless it is given, None for models without one."""
    with remedy("leave --longest_edge and --max_pixels out", ImageSizeError):
        processor = load_processor(args.vqa_model_path, longest_edge=args.longest_edge, max_pixels=args.max_pixels)
    own = longest_edge_of(processor)
    if args.longest_edge is None and own is not None:
        args.longest_edge = min(own, LONGEST_EDGE)
        if own > LONGEST_EDGE:
            return load_processor(args.vqa_model_path, longest_edge=LONGEST_EDGE)
    return processor


def load_answerer(args: argparse.Namespace) -> Any:
    """The model."""
    device, dtype = device_and_dtype(device_index(args.gpu))
    return load_model(args.vqa_model_path, device=device, dtype=dtype)


def resize_for(args: argparse.Namespace) -> Callable:
    """What is done to a picture before a server gets it; a local model's own processor does the same."""
    return functools.partial(fit_longest_edge, longest_edge=args.longest_edge)


def local_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides a text of a local model."""
    with remedy("name one of them with --gpu"):
        dtype = str(device_and_dtype(device_index(args.gpu))[1])
    return {
        "vqa_model_path": args.vqa_model_path,
        "model_files": fingerprint(args.vqa_model_path),
        "base_model_files": fingerprint(adapter_base(args.vqa_model_path)),
        "dtype": dtype,
    }


def settings_of(args: argparse.Namespace, job: Job, mode: str) -> dict[str, Any]:
    """What decides an answer: another one of these and a journal is refused."""
    server = server_of(args)
    settings = (api_settings(server) if server else local_settings(args)) | {
        "dataset_path": job.source["dataset_path"],
        "questions": questions_key(job.rows),
        "dataset": job.source["dataset"],
        "split": job.source["split"],
        "mode": mode,
        "longest_edge": args.longest_edge,
        "max_pixels": args.max_pixels,
        "max_new_tokens": args.max_new_tokens,
        "prompt": answerer_messages("{question}", 1 if mode == "base" else 2, job.instruction),
    }
    if mode == "cropvlm":
        settings["boxes"] = hashlib.sha256(json.dumps(job.boxes).encode()).hexdigest()[:16]
    return settings


def write_answers(
    args: argparse.Namespace, job: Job, settings: dict[Path, dict], opened: dict[Path, Journal], answerer: Callable
) -> int:
    """Answer every row of one data set and write its files; return how many answers there are none of."""
    start = time.monotonic()
    part, boxes = shard(job.rows), shard(job.boxes)
    ids = list(part["question_id"])
    journals = [opened[path] for path in job.outputs.values()]
    prompts = AnswerPrompts(part, boxes, list(job.outputs), job.instruction)
    if server := server_of(args):
        fill_missing(journals, ids, lambda done: answer_rows(server, prompts, resize_for(args), done))
    else:
        generate_missing(args, journals, ids, prompts, answerer)
    seconds = round(time.monotonic() - start, 1)
    failed = 0
    for (mode, path), journal in zip(job.outputs.items(), journals, strict=True):
        records = gather([journal.rows[i] for i in ids], job.rows["question_id"])
        failed += write_mode(args, job, mode, settings[path], records, seconds)
    return failed


def write_mode(
    args: argparse.Namespace, job: Job, mode: str, settings: dict[str, Any], records: list[dict], seconds: float
) -> int:
    """Write the answer file of one mode; return how many rows failed."""
    answers = [record | {"answer": clean_answer(record["answer"])} for record in records]
    failed = failures(records)
    empty = sum(not record["answer"] for record in answers) - len(failed)  # what a server refuses to answer is one
    counts = {"rows": len(records), "failed": len(failed), "empty_answers": empty, "seconds": seconds}
    if mode == "cropvlm":
        counts["invalid_boxes"] = sum(parse_bbox(text) is None for text in job.boxes)
    if rank() == 0:
        server = server_of(args)
        models = {"answerer": server.model, "server": server.base} if server else {"answerer": args.vqa_model_path}
        content = build_meta(**job.source, models=models, settings=settings, counts=counts, failed=failed)
        write_predictions(job.outputs[mode], answers, content)
        logger.info("%s: %s", job.outputs[mode], counts)
        name_failures(job.outputs[mode], failed)
    return len(failed)


def main() -> int:
    args = parse_args()
    start_logging(args)
    jobs = jobs_of(args)  # checked, all of them, before the model loads
    processor = None if server_of(args) else load_answerer_processor(args)
    answerer = functools.cache(lambda: (load_answerer(args), processor))
    settings = {path: settings_of(args, job, mode) for job in jobs for mode, path in job.outputs.items()}
    with open_journals(settings) as journals:
        if only_journals_are_left(journals, [job.rows["question_id"] for job in jobs for _ in job.outputs]):
            failed = failed_before(journals)
        else:
            failed = sum(write_answers(args, job, settings, journals, answerer) for job in jobs)
    return COMPLETE_WITH_FAILURES if failed and rank() == 0 else 0


if __name__ == "__main__":
    run(main)
