"""Make the training sets: a teacher outlines a region per question, small boxes grow, each source is halved.

    python3 create_dataset.py
    python3 create_dataset.py --dataset_path textvqa docvqa=0.5 infovqa stvqa=10000

The first reads the train split of TextVQA, asks Qwen2.5-VL-7B-Instruct for the boxes of its first half, and writes
`datasets/cropvlm_dataset_sft` (with `bbox`, in percent, and `teacher_response`) and `datasets/cropvlm_dataset_grpo`.
The second makes a mixture, with shares and caps. Beside the rows of the SFT part lie `teacher_report.json`,
`teacher_report.png` and the card. On several GPUs: accelerate launch create_dataset.py ...

Responses are kept as they come in `datasets/cropvlm_dataset.journal.jsonl`: the same command goes on after an
interruption, and asks again for what a server rejected. `--from_journal` grows and saves again without the teacher,
with other `--growth` for instance. With --api_model a Qwen2.5-VL behind an OpenAI-compatible server is the teacher
(--api_base: vLLM, SGLang); --min_pixels and --max_pixels must then lie within the server's own bounds.
Exit code 3: complete, but for rows whose image could not be read or was rejected by the server; they are named. Under
`accelerate launch` exit codes 2 and 3 both become 1, and accelerate's own exception follows what is said here.

Differences from the released experiment: the teacher answers in batches; its boxes are mapped back from the image
as it saw it to the original before they grow; rows without references are left out of the GRPO part.
"""

import argparse
import contextlib
import io
import json
import logging
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, Image
from tqdm import tqdm
from transformers import set_seed

from cropvlm.boxes import GROWTH
from cropvlm.cli import (
    COMPLETE_WITH_FAILURES,
    ArgumentParser,
    UserError,
    batch_size,
    positive,
    run,
    start_logging,
    whole_number,
)
from cropvlm.crops import UnreadableImage, open_image
from cropvlm.runtime.journal import Journal
from cropvlm.runtime.processes import rank
from cropvlm.runtime.server_arguments import add_api_flags, server_of
from cropvlm.teacher.asking import DEFAULT_TEACHER, GrownBox, grow, measure
from cropvlm.teacher.hub import licence, prepare_repository, push
from cropvlm.teacher.mixture import halve, load_sources, parse_source
from cropvlm.teacher.report import draw_report, summarise, write_card
from cropvlm.teacher.responses import assist, collect, teacher_settings

logger = logging.getLogger("cropvlm.create_dataset")

SEED = 42


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--dataset_path",
        nargs="+",
        default=["lmms-lab/textvqa"],
        help="benchmarks, hub ids (id:config) or folders,"
        " each with a share or a cap if you like: docvqa=0.5 stvqa=10000 (default lmms-lab/textvqa)",
    )
    add("--split", help="default: train, or the only one")
    add("--max_samples", type=positive, help="only the first rows of each source, both parts together")
    add("--sft_share", type=float, default=0.5, help="of each source's rows to box (default 0.5; 1: no GRPO part)")
    add("--model_path", default=DEFAULT_TEACHER, help=f"teacher: hub id or folder (default {DEFAULT_TEACHER})")
    add_api_flags(parser)
    add("--output_path", default="datasets/cropvlm_dataset", help="_sft and _grpo are added")
    add("--growth", type=float, nargs=5, default=GROWTH, help="area multipliers, smallest fifth first (45 10 4 2 1)")
    add("--from_journal", action="store_true", help="grow and save again, without the teacher")
    add("--push_to_hub", metavar="REPO", help="send both parts and the card there as well")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=whole_number, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--min_pixels", type=positive, help="of the image as the teacher sees it; default: its own")
    add("--max_pixels", type=positive, help="of the image as the teacher sees it; default: its own")
    add("--max_new_tokens", type=positive, default=128, help="of a response (default 128)")
    add("--gpu", type=int, default=0, help="index of the GPU; without a GPU the CPU is used, in fp32")
    add("--verbose", action="store_true", help="log every response")
    args = parser.parse_args()
    args.output_path = str(Path(args.output_path))  # without the slash at the end, which completion may put there
    server_of(args)  # refuses flags of a server that do not fit
    if not 0 < args.sft_share <= 1:
        raise UserError(f"--sft_share {args.sft_share}: expected a number above 0 and up to 1, such as 0.5")
    if not all(0 < factor < float("inf") for factor in args.growth):
        raise UserError(f"--growth {args.growth}: expected five numbers above 0, such as 45 10 4 2 1")
    return args


def output_folders(args: argparse.Namespace) -> dict[str, Path]:
    """`{output_path}_sft` and `{output_path}_grpo`, free or saved data sets that may be replaced."""
    folders = {part: Path(f"{args.output_path}_{part}") for part in ("sft", "grpo")}
    for folder in folders.values():
        if folder.exists() and not (folder / "dataset_info.json").is_file():
            raise UserError(f"{folder} exists and is no saved data set; name another --output_path")
    return folders


def with_references(rows: Dataset | None) -> Dataset | None:
    """The GRPO part's rows that have references: without, there is no reward."""
    if rows is None:
        return None
    kept = [i for i, answers in enumerate(rows["answers"]) if answers]
    if not kept:
        raise UserError(f"none of the {len(rows)} rows for GRPO has references; box them all with --sft_share 1.0")
    return keep(rows, kept, "no references, left out of the GRPO part")


def with_readable_images(rows: Dataset, journal: Journal) -> Dataset:
    """The GRPO part's rows whose image can be decoded: training would stop at another, hours from now.

    What was found is kept in the journal, beside the teacher's responses, so that no image is decoded at every run.
    """

    def is_known(record: dict) -> bool:
        kept = journal.rows.get(record["question_id"], {})
        return "error" in record or (kept.get("key") == record["key"] and not kept.get("rejected"))

    def decode(i: int) -> dict:
        try:
            open_image(rows[i]["image"])
        except UnreadableImage as error:
            return measured[i] | {"error": str(error)}
        return measured[i] | {"readable": True}

    measured = measure(rows)
    unknown = [i for i, record in enumerate(measured) if not is_known(record)]
    with ThreadPoolExecutor(max_workers=4) as threads:  # few: a scan of 100 megapixels takes 300 MB
        for record in tqdm(threads.map(decode, unknown), total=len(unknown), unit="row", desc="GRPO images"):
            journal.append([record])
    records = [record if "error" in record else journal.rows[record["question_id"]] for record in measured]
    kept = [i for i, record in enumerate(records) if "error" not in record]
    if not kept:
        raise UserError(f"none of the {len(rows)} images of the GRPO part can be read; check the data set")
    return keep(rows, kept, "unreadable images, left out of the GRPO part")


def keep(rows: Dataset, kept: list[int], reason: str) -> Dataset:
    """The rows `kept`; the others are counted by source and named in the log."""
    if len(kept) == len(rows):
        return rows
    dropped = rows.select_columns(["source", "question_id"]).select(sorted(set(range(len(rows))) - set(kept)))
    ids = ", ".join(map(str, dropped["question_id"][:20])) + (", ..." if len(dropped) > 20 else "")
    logger.warning("%s: %s (%s)", reason, dict(Counter(dropped["source"])), ids)
    return rows.select(kept)


def add_boxes(rows: Dataset, records: list[dict], growth: list[float]) -> tuple[Dataset, list[GrownBox], dict]:
    """The rows with `bbox` (4 ints, percent) and `teacher_response`, their boxes, and the report."""
    kept = [i for i, record in enumerate(records) if "teacher_response" in record]
    if not kept:
        raise UserError(f"none of the {len(rows)} images could be boxed: {records[0]['error']}; check the data set")
    boxes, cut_points = grow([records[i] for i in kept], growth)
    sources = list(rows["source"])
    report = summarise(boxes, [sources[i] for i in kept], cut_points, growth)
    errors = [record for record in records if "error" in record]
    report["left_out"] = [{"question_id": record["question_id"], "error": record["error"]} for record in errors]
    columns = {"bbox": [None] * len(rows), "teacher_response": [None] * len(rows)}
    for i, box in zip(kept, boxes, strict=True):
        columns["bbox"][i], columns["teacher_response"][i] = list(box.bbox_pct), records[i]["teacher_response"]
    # Columns go in before rows go out: adding one to a selection of rows, datasets would first copy all the images.
    rows = rows.remove_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return keep(rows, kept, "unreadable or rejected images, left out of the SFT part"), boxes, report


def log_report(report: dict) -> None:
    """The gist of the report."""
    logger.info("responses: %s", report["responses"])
    logger.info("%d of %d name no box: whole image", report["whole_image_fallbacks"], report["rows"])
    logger.info("cut points of relative area: %s", " ".join(f"{point:.5f}" for point in report["cut_points"]))
    logger.info("rows grown by %s: %s", report["growth"], report["rows_by_fifth"])


def describe(args: argparse.Namespace, settings: dict, report: dict, parts: dict[str, Dataset]) -> str:
    """The card of the data set."""
    counts = {part: Counter(rows["source"]) for part, rows in parts.items()}
    sources = [
        {"name": source.name, "path": source.path, "licence": licence(source.path)}
        | {part: count[source.name] for part, count in counts.items()}
        for source in map(parse_source, args.dataset_path)
    ]
    return write_card(report, settings, sources)


def save_whole(parts: dict[Path, Dataset], files: dict[Path, bytes]) -> None:
    """Save each part in its folder, with files, all or none: complete beside the targets, then moved there."""
    temporary = {folder: folder.with_name(f".{folder.name}.tmp") for folder in parts}
    try:
        for folder, rows in parts.items():
            shutil.rmtree(temporary[folder], ignore_errors=True)
            rows.cast_column("image", Image()).save_to_disk(temporary[folder])
        for path, content in files.items():
            (temporary[path.parent] / path.name).write_bytes(content)
        for folder in parts:
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
            temporary[folder].rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot save: {error}; free space or name another --output_path") from error
    finally:
        for folder in temporary.values():
            shutil.rmtree(folder, ignore_errors=True)


def report_files(folder: Path, report: dict, boxes: list[GrownBox], rows: Dataset) -> dict[Path, bytes]:
    """The files that lie beside the rows of the SFT part."""
    picture = io.BytesIO()
    draw_report(boxes, rows).save(picture, "PNG")
    return {
        folder / "teacher_report.json": json.dumps(report, indent=2).encode(),
        folder / "teacher_report.png": picture.getvalue(),
    }


def main() -> int:
    args = parse_args()
    start_logging(args)
    set_seed(SEED)
    folders = output_folders(args)
    sft_rows, rest = halve(load_sources(args.dataset_path, args.split, args.max_samples), args.sft_share)
    grpo_rows = with_references(rest)
    if rank() > 0:
        assist(args, sft_rows)
        return 0
    settings = teacher_settings(args)
    with Journal(args.output_path, settings) as journal:
        if args.push_to_hub:
            prepare_repository(args.push_to_hub)
        records = collect(args, journal, sft_rows)
        boxed_rows, boxes, report = add_boxes(sft_rows, records, args.growth)
        parts = {"sft": boxed_rows}
        if grpo_rows is not None:
            parts["grpo"] = with_readable_images(grpo_rows, journal)
            unreadable = len(grpo_rows) - len(parts["grpo"])
            without_references = len(rest) - len(grpo_rows)
            report["left_out_of_grpo"] = {"no references": without_references, "unreadable images": unreadable}
        files = report_files(folders["sft"], report, boxes, boxed_rows)
        card = describe(args, settings, report, parts)
        files |= {folders[part] / "README.md": card.encode() for part in parts}
        save_whole({folders[part]: rows for part, rows in parts.items()}, files)
    log_report(report)
    if "grpo" not in parts and folders["grpo"].exists():
        logger.warning("%s is of an earlier run; this one made no GRPO part", folders["grpo"])
    if args.push_to_hub:
        push(args.push_to_hub, {part: folders[part] for part in parts})
    for part, rows in parts.items():
        print(f"{folders[part]}: {len(rows)} rows")
    complete = len(boxed_rows) == len(sft_rows) and len(parts.get("grpo", [])) == len(grpo_rows or [])
    return 0 if complete else COMPLETE_WITH_FAILURES


if __name__ == "__main__":
    run(main)
