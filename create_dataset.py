"""Make the training sets: a teacher outlines a region per question, small boxes grow, each source is halved.

    python3 create_dataset.py
    python3 create_dataset.py --dataset_path textvqa docvqa infovqa stvqa

The first reads the train split of TextVQA, asks Qwen2.5-VL-7B-Instruct for the boxes of its first half, and writes
`datasets/cropvlm_dataset_sft` (with `bbox`, in percent, and `teacher_response`) and `datasets/cropvlm_dataset_grpo`.
The second takes the release's four sources, whole. A set that concatenates them serves as well; rows without ids are
numbered. Beside the rows of the SFT part lie `teacher_report.json`, `teacher_report.png` and the card. On several
GPUs: accelerate launch create_dataset.py ...

Responses are kept as they come in `datasets/cropvlm_dataset.journal.jsonl`: the same command continues after an
interruption, asks again for what a server rejected, and does nothing where both parts are there, made from the same
inputs. `--from_journal` grows and saves again without the teacher, with other `--growth` for instance. With --api_model
a Qwen2.5-VL behind an OpenAI-compatible server is the teacher (--api_base: vLLM, SGLang); --min_pixels and --max_pixels
must then lie within the server's own bounds.
With --label_need the reward model labels each row of the SFT part by whether the teacher's crop helps it (`loss_gap` in
nats, `needed`), in the first process alone; SFT then teaches `Not needed.` where it does not.

Exit code 3: complete, but for rows whose image could not be read, or that the server or the memory was too small for;
they are named. Under `accelerate launch` exit codes 2 and 3 become 1.

Differences from the released experiment: the teacher answers in batches, by plain greedy search; its boxes are mapped
back from the image as it saw it to the original before they grow; rows without references are left out of the GRPO
part.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from cropvlm.errors import UserError
from cropvlm.runs.cli import COMPLETE_WITH_FAILURES, ArgumentParser, run, start_logging
from cropvlm.runs.processes import exchange, rank
from cropvlm.runs.text_models import check_model_flags
from cropvlm.sets.flags import add_flags
from cropvlm.teacher import grow

logger = logging.getLogger("cropvlm.create_dataset")

SEED = 42


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_flags(parser)
    args = parser.parse_args()
    check_model_flags(args)
    of_labels = ("reward_model", "reward_longest_edge", "need_threshold")
    given = [f"--{name}" for name in of_labels if getattr(args, name) != parser.get_default(name)]
    if given and not args.label_need:
        raise UserError(f"{', '.join(given)}: of the labels, which need --label_need; add it or leave this out")
    return args


def create_dataset(args: argparse.Namespace) -> tuple[int, dict[str, Path]]:
    """Make both parts; return the exit code and their folders."""
    from transformers import set_seed  # slow imports, after the flags

    from cropvlm.runs.hub import create_repository
    from cropvlm.runs.provenance import INPUTS, SOURCES, row_keys
    from cropvlm.sets.card import origins, part_files, summarise
    from cropvlm.sets.need_labels import label_need
    from cropvlm.sets.responses import in_units, response_run, teacher
    from cropvlm.sets.rows import halve, load_sources, with_boxes, with_readable_images, with_references
    from cropvlm.sets.saving import code_before, describe_inputs, output_folders, save_whole

    set_seed(SEED)
    folders = output_folders(args.output_path, args.dataset_path)
    model = teacher(args)

    # Load. Of each source the first rows get boxes; the others are for GRPO, which needs references.
    sources = load_sources(args.dataset_path, args.split, args.max_samples)
    sft_rows, other_rows = halve(sources, args.sft_share)
    grpo_rows = other_rows and with_references(other_rows)
    rows = {"sft": sft_rows} | ({} if grpo_rows is None else {"grpo": grpo_rows})
    # The first process alone looks at the images of the GRPO part, and at what was made before.
    keys = {part: row_keys(some) for part, some in rows.items() if part == "sft" or rank() == 0}

    # Compare. Where both parts are there, made from the same inputs, nothing is left to do but to send them.
    run = response_run(model, args.output_path, sft_rows, keys["sft"])
    settings, made = run.outputs[0].settings, {part: folders[part] for part in rows}
    inputs = describe_inputs(args, settings, rows, keys)
    if args.push_to_hub and rank() == 0:
        create_repository(args.push_to_hub, "dataset", private=True)
    before = None if args.from_journal or rank() > 0 else code_before(made, inputs)
    if (code := exchange([before])[0]) is not None:  # as the first process sees it
        return code, made

    # Ask. Every process asks for its share; the first one continues with all responses.
    with run:
        (records,) = run.collect(run.jobs[0])
        if rank() > 0:
            return 0, made

        # Grow, small boxes more than large ones.
        boxes, cut_points = grow(in_units(records, args.teacher_box_format), args.growth)

        # Filter. Rows that training could not use are named and left out.
        parts = {"sft": with_boxes(sft_rows, records, boxes)}
        boxes = [box for box in boxes if box]
        report = summarise(boxes, list(parts["sft"]["source"]), cut_points, args.growth)
        report["left_out"] = [{key: r[key] for key in ("question_id", "error")} for r in records if "error" in r]
        if args.label_need:
            parts["sft"], report["need"] = label_need(parts["sft"], args)
        if grpo_rows is not None:
            parts["grpo"] = with_readable_images(grpo_rows, keys["grpo"], run.outputs[0].journal)
            unreadable, without_references = len(grpo_rows) - len(parts["grpo"]), len(other_rows) - len(grpo_rows)
            report["left_out_of_grpo"] = {"no references": without_references, "unreadable images": unreadable}

        # Save, both parts or none.
        code = COMPLETE_WITH_FAILURES if report["left_out"] or len(parts.get("grpo", [])) < len(grpo_rows or []) else 0
        inputs = {"exit_code": code, "to_ask_again": sum("rejected" in record for record in records), "inputs": inputs}
        made_from = {SOURCES: origins(args.dataset_path, sources, args.split), INPUTS: inputs}
        save_whole(args.output_path, parts, part_files(parts, boxes, report, settings, args.dataset_path, made_from))
    log_result(report, parts, folders)
    return code, made


def log_result(report: dict, parts: dict[str, Any], folders: dict[str, Path]) -> None:
    """Log the gist of the report, and print what was saved where."""
    logger.info("responses: %s", report["responses"])
    fallbacks, rows = report["whole_image_fallbacks"], report["rows"]
    level = logging.WARNING if 2 * fallbacks > rows else logging.INFO
    logger.log(level, "%d of %d responses without a box: whole image", fallbacks, rows)
    logger.info("cut points of relative area: %s", " ".join(f"{point:.5f}" for point in report["cut_points"]))
    logger.info("rows grown by %s: %s", report["growth"], report["rows_by_fifth"])
    if "grpo" not in parts and folders["grpo"].exists():
        logger.warning("%s is of an earlier run; this one made no GRPO part", folders["grpo"])
    for part, rows in parts.items():
        print(f"{folders[part]}: {len(rows)} rows")


def main() -> int:
    args = parse_args()
    start_logging(args)
    code, made = create_dataset(args)
    if args.push_to_hub and rank() == 0:
        from cropvlm.sets.card import push

        push(args.push_to_hub, made)
    return code


if __name__ == "__main__":
    run(main)
