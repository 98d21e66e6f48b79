"""Make the training sets: a teacher outlines a region per question, small boxes grow, the rows are halved.

    python3 create_dataset.py

reads the train split of TextVQA, asks Qwen2.5-VL-7B-Instruct for the boxes of its first half, and writes
`datasets/cropvlm_dataset_sft` (with `bbox`, in percent, and `teacher_response`) and
`datasets/cropvlm_dataset_grpo`. Responses are kept as they come in `datasets/cropvlm_dataset.journal.jsonl`:
the same command goes on after an interruption, and rebuilds both folders without the teacher when all
responses are there.

Differences from the released experiment: the teacher answers in batches; its boxes are mapped back from the
image as it saw it to the original before they grow; an unreadable image is skipped with its id (exit code 3).
"""

import argparse
import contextlib
import logging
import shutil
from collections import Counter
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm
from transformers import set_seed

from cropvlm.boxes import GROWTH, area_cut_points, area_multiplier, expand_bbox
from cropvlm.cli import COMPLETE_WITH_FAILURES, UserError, run
from cropvlm.data import load_rows
from cropvlm.modeling import device_and_dtype, load_model, load_processor
from cropvlm.predictions import Journal
from cropvlm.prompts import teacher_messages
from cropvlm.runs import batch_size, positive, start_logging, worker_count
from cropvlm.teacher import DEFAULT_TEACHER, check_teacher, outline, read_response

logger = logging.getLogger("cropvlm.create_dataset")

SEED = 42


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_path", default="lmms-lab/textvqa", help="benchmark, hub id or folder")
    parser.add_argument("--split", help="default: train, or the only one")
    parser.add_argument("--max_samples", type=positive, help="only the first rows, both parts together")
    parser.add_argument("--model_path", default=DEFAULT_TEACHER, help="teacher: hub id or folder")
    parser.add_argument("--output_path", default="datasets/cropvlm_dataset", help="_sft and _grpo are added")
    parser.add_argument("--sft_share", type=float, default=0.5, help="share of the rows to box; 1: all")
    parser.add_argument("--batch_size", type=batch_size, default="auto", help="rows, or auto")
    parser.add_argument("--num_workers", type=int, help="processes that preprocess; default: 0 on a CPU")
    parser.add_argument("--min_pixels", type=positive, help="of the image as the teacher sees it")
    parser.add_argument("--max_pixels", type=positive, help="of the image as the teacher sees it")
    parser.add_argument("--max_new_tokens", type=positive, default=128)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="log every response")
    args = parser.parse_args()
    if not 0 < args.sft_share <= 1:
        raise UserError(f"--sft_share {args.sft_share}: expected a number above 0 and up to 1, such as 0.5")
    return args


def output_folder(args: argparse.Namespace, part: str) -> Path:
    """`{output_path}_sft` or `{output_path}_grpo`, free or a saved data set that may be replaced."""
    folder = Path(f"{args.output_path}_{part}")
    if folder.exists() and not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} exists and is no saved data set; name another --output_path")
    return folder


def journal_settings(args: argparse.Namespace) -> dict:
    """What decides the teacher's response to a question_id; how many rows are asked for does not."""
    keys = ("dataset_path", "split", "model_path", "min_pixels", "max_pixels", "max_new_tokens")
    return {key: getattr(args, key) for key in keys} | {"prompt": teacher_messages("{question}")}


def ask_teacher(args: argparse.Namespace, rows: Dataset, journal: Journal) -> None:
    """Bring into the journal the teacher's response to every row that is not there yet."""
    ids = rows["question_id"]
    done = [question_id for question_id in ids if question_id in journal.rows]
    if len(done) == len(ids):
        logger.info("all %d responses are in %s", len(ids), journal.path)
        return
    device, dtype = device_and_dtype(args.gpu)
    processor = load_processor(args.model_path, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    check_teacher(processor, args.model_path)
    model = load_model(args.model_path, device=device, dtype=dtype)
    options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size}
    workers = worker_count(args.num_workers, device.type)
    with tqdm(total=len(ids), initial=len(done), unit="row", desc="teacher", smoothing=0.05) as progress:
        for record in outline(model, processor, rows, done=done, num_workers=workers, **options):
            journal.append([record])
            logger.debug("%s", record)
            progress.update()


def add_boxes(rows: Dataset, journal: Journal) -> tuple[Dataset, list]:
    """The rows with `bbox` (4 ints, percent) and `teacher_response`, and the ids of the rows left out.

    METHOD, steps 2 to 4: a response that names no box counts as the whole image; cut points of relative area
    over all boxes; small boxes grow.
    """
    records = [journal.rows[question_id] for question_id in rows["question_id"]]
    kept = [i for i, record in enumerate(records) if "error" not in record]
    unreadable = [record["question_id"] for record in records if "error" in record]
    if not kept:
        raise UserError(f"none of the {len(records)} images can be read ({records[0]['error']}); check the data set")
    boxes, kinds = [], Counter()
    for record in (records[i] for i in kept):
        width, height = record["size"]
        bbox_px, kind = read_response(record["teacher_response"], record["seen_size"], record["size"])
        kinds[kind] += 1
        boxes.append((bbox_px or (0, 0, width, height), width, height))
    areas = [(x2 - x1) * (y2 - y1) / (width * height) for (x1, y1, x2, y2), width, height in boxes]
    cut_points = area_cut_points(areas)
    multipliers = [area_multiplier(area, cut_points, GROWTH) for area in areas]
    boxes_pct = [list(expand_bbox(*box, multiplier)) for box, multiplier in zip(boxes, multipliers, strict=True)]
    logger.info("responses: %s", dict(kinds.most_common()))
    fallbacks = len(kept) - kinds["box"]
    logger.info("%d of %d name no box: whole image", fallbacks, len(kept))
    logger.info("cut points of relative area: %s", ", ".join(f"{point:.5f}" for point in cut_points))
    logger.info("grown by: %s", {factor: multipliers.count(factor) for factor in GROWTH})
    rows = rows.remove_columns([name for name in ("bbox", "teacher_response") if name in rows.column_names])
    rows = rows if len(kept) == len(records) else rows.select(kept).flatten_indices()
    rows = rows.add_column("bbox", boxes_pct)
    responses = [records[i]["teacher_response"] for i in kept]
    return rows.add_column("teacher_response", responses), unreadable


def save_whole(parts: dict[Path, Dataset]) -> None:
    """Save every part in its folder, all or none: complete beside the targets, then moved there."""
    temporary = {folder: folder.with_name(f".{folder.name}.tmp") for folder in parts}
    try:
        for folder, rows in parts.items():
            shutil.rmtree(temporary[folder], ignore_errors=True)
            rows.save_to_disk(temporary[folder])
        for folder in parts:
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
            temporary[folder].rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot save the data sets: {error}; free space or name another --output_path") from error
    finally:
        for folder in temporary.values():
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    args = parse_args()
    start_logging(args)
    set_seed(SEED)
    sft_folder, grpo_folder = output_folder(args, "sft"), output_folder(args, "grpo")

    rows = load_rows(args.dataset_path, args.split, args.max_samples, default_split="train")
    num_sft = int(len(rows) * args.sft_share)
    if num_sft == 0:
        raise UserError(f"--sft_share {args.sft_share} of {len(rows)} rows is none; give more rows")
    sft_rows = rows.select(range(num_sft))
    with Journal(args.output_path, journal_settings(args)) as journal:
        try:
            ask_teacher(args, sft_rows, journal)
        finally:
            if not journal.rows:
                journal.remove()  # a teacher that could not be loaded binds nobody to its settings
        sft_rows, unreadable = add_boxes(sft_rows, journal)
        parts = {sft_folder: sft_rows}
        if num_sft < len(rows):
            parts[grpo_folder] = rows.select(range(num_sft, len(rows)))
        save_whole(parts)
    for folder, part in parts.items():
        print(f"{folder}: {len(part)} rows")
    if unreadable:
        logger.warning("unreadable images, skipped: %s", ", ".join(map(str, unreadable)))
        return COMPLETE_WITH_FAILURES
    return 0


if __name__ == "__main__":
    run(main)
