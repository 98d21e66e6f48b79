"""Write a column of boxes as a box file, so that `generate_final_answers.py` shows how much such boxes help.

    python3 -m miniature.known_boxes --dataset_path datasets/miniature --split test --column true_bbox \\
        --output predictions/miniature_true_bbox.json
"""

import argparse

from cropvlm.boxes import format_bbox
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError
from cropvlm.runs.cli import ArgumentParser, nonempty, run
from cropvlm.runs.predictions import build_meta, check_output, write_predictions


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--dataset_path", type=nonempty, required=True, help="data set that holds the boxes")
    add("--split", type=nonempty, help="its split, or that of --of if given")
    add("--column", type=nonempty, required=True, help="column of (x1, y1, x2, y2) in percent")
    add("--of", type=nonempty, help="data set that the boxes are for; default: the same")
    add("--output", type=nonempty, required=True, help="the box file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_output(args.output)
    # The split of --of if given: the folder of boxes then has no splits.
    rows = load_rows(args.dataset_path, None if args.of else args.split)
    if args.column not in rows.column_names:
        raise UserError(f"--column {args.column}: {args.dataset_path} has {', '.join(rows.column_names)}")
    records = [
        {"question_id": question_id, "answer": format_bbox(bbox)}
        for question_id, bbox in zip(rows["question_id"], rows[args.column], strict=True)
    ]
    source = {"dataset_path": args.dataset_path if args.of is None else args.of, "split": args.split}
    models = {"cropper": f"column {args.column} of {args.dataset_path}"}
    meta = build_meta(source, models, {"column": args.column}, {"rows": len(records)})
    write_predictions(args.output, records, meta)


if __name__ == "__main__":
    run(main)
