"""Write a column of boxes as a box file, so that `generate_final_answers.py` can show what such boxes are worth.

    python3 -m miniature.boxes --dataset_path datasets/miniature --split test --column true_bbox \
        --output predictions/miniature_true_bbox.json
"""

import argparse

from cropvlm.boxes import format_bbox
from cropvlm.cli import ArgumentParser, run
from cropvlm.data import load_rows
from cropvlm.inference.predictions import build_meta, write_predictions


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_path", required=True, help="where the boxes are")
    parser.add_argument("--split")
    parser.add_argument("--column", required=True, help="column of (x1, y1, x2, y2) in percent")
    parser.add_argument("--of", help="data set that the boxes are for; default: the same")
    parser.add_argument("--output", required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # The split of --of where it is given: the folder of boxes then has none.
    rows = load_rows(args.dataset_path, None if args.of else args.split)
    records = [
        {"question_id": question_id, "answer": format_bbox(bbox)}
        for question_id, bbox in zip(rows["question_id"], rows[args.column], strict=True)
    ]
    meta = build_meta(
        dataset_path=args.of or args.dataset_path,
        split=args.split,
        max_samples=None,
        models={"cropper": f"column {args.column} of {args.dataset_path}"},
        settings={"column": args.column},
        counts={"rows": len(records)},
    )
    write_predictions(args.output, records, meta)


if __name__ == "__main__":
    run(main)
