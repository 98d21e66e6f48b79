"""Step 4: the cropper reads image and question and writes a box, kept in predictions/{name}_bbox.json.

    python3 generate_bbox.py --model_path models/grpo_512

A record's answer is the model's raw text; generate_final_answers.py reads it as a box. The same command continues an
interrupted run, asks failed rows again, and does nothing where model and data are those of a finished one. Exit code 3:
complete, but for some images that could not be read or that a server rejected; the meta file names them. On several
GPUs: accelerate launch generate_bbox.py --model_path ... (exit codes 2 and 3 become 1)

With --api_model a merged cropper behind an OpenAI-compatible server (--api_base: vLLM, SGLang, transformers serve)
writes the boxes. Its own processor resizes the images, as it was saved with the model; --longest_edge makes them
smaller before they are sent.

A cropper that was trained to write `Not needed.` decides by it whether a row needs a crop. With --need it writes a box
for every row, and `need` beside it: log p of a box's first token minus that of `Not needed.`, by which
generate_final_answers.py --need_threshold gives every share of crops. On labelled rows (create_dataset.py --label_need)
the meta file names a threshold, the need that 90% of those labelled as needing a crop reach.

Differences from the released experiment: rows are generated in batches; a `{name}_bbox.meta.json` says what was run.
"""

import argparse
import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from cropvlm.boxes import bbox_area_pct, is_not_needed, parse_bbox
from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError
from cropvlm.prompts import MAX_BOX_TOKENS, cropper_messages
from cropvlm.runs.cli import ArgumentParser, nonempty, pixels, positive, run, start_logging
from cropvlm.runs.predictions import check_output
from cropvlm.runs.prompt_sources import BoxPrompts
from cropvlm.runs.provenance import hash_of, row_hashes, row_keys, seen_rows
from cropvlm.runs.run import Job, Run
from cropvlm.runs.text_models import TextModel, add_common_flags, check_model_flags, cropper, data_sources


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=nonempty, help="cropper: Hub id, folder, or PEFT adapter folder")
    add("--base_model_path", type=nonempty, help="the adapter's base, where it has moved")
    add("--output", type=nonempty, default="predictions", help="folder, or a file that ends in .json (predictions)")
    add("--longest_edge", type=pixels, help="pixels of the longer side (default 512; servers: image's own)")
    add("--need", action="store_true", help="record with each box how much the row needs it, in nats")
    add("--max_new_tokens", type=positive, default=MAX_BOX_TOKENS, help="of a box (default 32)")
    add_common_flags(parser)
    args = parser.parse_args()
    check_model_flags(args, "model_path", "base_model_path")
    if args.need and args.api_model:
        raise UserError("--need reads the model's own probabilities, which a server does not give; use --model_path")
    if args.api_model is None and args.model_path is None:
        raise UserError("--model_path names the cropper, or --api_model one behind a server; give one of them")
    if is_file_name(args.output) and args.dataset and len(args.dataset) > 1:
        raise UserError("--output names one file, --dataset several data sets; name a folder or leave --output out")
    return args


def is_file_name(output: str) -> bool:
    """Whether `--output` is the box file itself, rather than the folder for it."""
    return output.endswith(".json") and not Path(output).is_dir()


def box_job(args: argparse.Namespace, model: TextModel, source: dict[str, Any]) -> Job:
    """One data set to box: its file is checked, its rows are loaded."""
    name = args.name or dataset_name(source["dataset_path"], source["dataset"])
    path = Path(args.output) if is_file_name(args.output) else Path(args.output) / f"{name}_bbox.json"
    check_output(path)
    rows = load_rows(**source)
    keys = row_keys(rows)
    settings = {"longest_edge": model.longest_edge, "max_new_tokens": args.max_new_tokens}
    settings |= {"prompt": cropper_messages("{question}")} | ({"need": True} if args.need else {})
    labels = list(rows["needed"]) if args.need and "needed" in rows.column_names else []
    needed = [question_id for question_id, label in zip(rows["question_id"], labels, strict=False) if label is True]
    settings |= {"labels": hash_of(json.dumps(needed))} if labels else {}
    output = model.output(path, source, rows, keys, settings, partial(count_boxes, needed=frozenset(needed)))
    if args.model_path and (seen := len(seen_rows(args.model_path) & row_hashes(rows, keys))):
        output.known["cropper"] = output.known["cropper"] | {"seen_rows": seen}
    return Job(list(rows["question_id"]), BoxPrompts(rows), [output], keys)


def count_boxes(records: list[dict], needed: Collection[str | int] = frozenset()) -> dict[str, Any]:
    """Invalid boxes (answered with the whole image later) and mean area of the valid ones.

    needed: ids of the rows that are labelled as needing a crop. `need_of_90_pct` is the need that 90% of them reach: a
    threshold that is as strict in every training.
    """
    boxes = [box for box in (parse_bbox(record["answer"]) for record in records) if box]
    not_needed = sum(is_not_needed(record["answer"]) for record in records)
    needs = [record["need"] for record in records if "need" in record]
    labelled = sorted((r["need"] for r in records if "need" in r and r["question_id"] in needed), reverse=True)
    return {
        "invalid_boxes": len(records) - len(boxes) - not_needed,
        **({"not_needed": not_needed} if not_needed else {}),
        **({"needed": sum(need >= 0 for need in needs)} if needs else {}),
        **({"need_of_90_pct": labelled[-(-9 * len(labelled) // 10) - 1]} if labelled else {}),
        "mean_area_pct": round(sum(map(bbox_area_pct, boxes)) / len(boxes), 2) if boxes else None,
    }


def main() -> int:
    args = parse_args()
    start_logging(args)
    model = cropper(args)
    jobs = [box_job(args, model, source) for source in data_sources(args)]  # all checked before the weights load
    return Run(jobs, model.generate).finish()


if __name__ == "__main__":
    run(main)
