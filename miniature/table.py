"""The miniature's results table (JSON and Markdown), how its boxes fit the placards, and a contact sheet.

    python3 -m miniature.table --dataset_path datasets/miniature --name miniature

reads predictions/{name}_*.json as the six scripts wrote them, and predictions/{run}_*.json where they depend on
GRPO; scores as `vqa_accuracy.py --metric vqa` does. `scripts/report.py` judges the claims.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cropvlm.boxes import bbox_area_pct, parse_bbox
from cropvlm.crops import crop_or_full_image
from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.metrics import vqa_accuracy
from cropvlm.runs.cli import ArgumentParser, run
from cropvlm.runs.drawing import INK, LINE, contact_sheet, tile
from cropvlm.runs.files import write_json
from cropvlm.runs.predictions import join_on_question_id, read_predictions

# setting -> (answer file, box file), each without its prefix: the name or, where the answers depend on GRPO, the run
SETTINGS = {
    "no crop": ("base_answers", None),
    "true box": ("true_cropvlm_answers", "true_bbox"),
    "teacher box": ("teacher_cropvlm_answers", "teacher_bbox"),
    "SFT": ("sft_cropvlm_answers", "sft_bbox"),
    "GRPO": ("grpo_cropvlm_answers", "grpo_bbox"),
    "unseen answerer, no crop": ("unseen_base_answers", None),
    "unseen answerer, GRPO": ("unseen_cropvlm_answers", "grpo_bbox"),
}
BOX_COLORS = {"true box": "lime", "SFT": "red", "GRPO": "blue"}
THUMB = 220  # pixels a side of a picture in the contact sheet
EXAMPLES = 12


@dataclass
class Setting:
    """A row of the table: answer, VQA accuracy (0..1) and text of the box (None: no crop) of every question."""

    answers: list[str]
    accuracies: np.ndarray
    boxes: list[str] | None

    def summary(self, setting: str) -> dict:
        parsed = [parse_bbox(text) for text in self.boxes or []]
        # A missing or invalid box means the whole image: 100%.
        areas = [bbox_area_pct(bbox) if bbox else 100.0 for bbox in parsed] or [100.0]
        valid = sum(bbox is not None for bbox in parsed) / len(parsed) if parsed else 0.0
        return {
            "setting": setting,
            "accuracy": round(100 * float(self.accuracies.mean()), 2),
            "valid_boxes": round(100 * valid, 2),
            "mean_area_pct": round(sum(areas) / len(areas), 2),
            "questions": len(self.accuracies),
        }


def read_settings(folder: Path, name: str, run: str, rows) -> dict[str, Setting]:
    """Return every setting of the table, its answers and boxes joined to the rows on question_id."""

    def column(part: str) -> list[str]:
        path = folder / f"{run if part.startswith(('grpo', 'unseen')) else name}_{part}.json"
        return join_on_question_id(read_predictions(path), rows, str(path))

    settings = {}
    for setting, (answer_file, box_file) in SETTINGS.items():
        answers = column(answer_file)
        scores = [vqa_accuracy(answer, references) for answer, references in zip(answers, rows["answers"], strict=True)]
        settings[setting] = Setting(answers, np.array(scores), column(box_file) if box_file else None)
    return settings


def placard_fit(boxes: list[str], placards: list[Sequence[int]]) -> tuple[float, float]:
    """Return how well boxes fit the placards, whose boxes are in percent and rounded outwards.

    Two figures: the share of boxes (0..1) that hold at least 97% of their placard's area, and the median ratio of
    box to placard along the side where it is larger. An invalid box counts as the whole image.
    """
    box = np.array([parse_bbox(text) or (0, 0, 100, 100) for text in boxes], float)
    placard = np.array(placards, float)
    sides, own = box[:, 2:] - box[:, :2], placard[:, 2:] - placard[:, :2]
    shared = np.minimum(placard[:, 2:], box[:, 2:]) - np.maximum(placard[:, :2], box[:, :2])
    held = np.clip(shared, 0, None).prod(1) / own.prod(1)
    return float((held > 0.97).mean()), float(np.median((sides / own).max(1)))


def fit_table(settings: dict[str, Setting], placards: list[Sequence[int]]) -> str:
    """Return `placard_fit` of the boxes that a model has written, as a Markdown table."""
    lines = ["| boxes | hold the whole placard, % | sides, in the placard's (median) |", "|---|---|---|"]
    for name in ("teacher box", "SFT", "GRPO"):
        share, sides = placard_fit(settings[name].boxes, placards)
        lines.append(f"| {name} | {100 * share:.1f} | {sides:.2f} |")
    return "\n".join(lines)


def markdown(summaries: list[dict]) -> str:
    lines = [
        "| setting | VQA accuracy | valid boxes, % | mean area, % of the image | questions |",
        "|---|---|---|---|---|",
    ]
    lines += [
        "| {setting} | {accuracy:.2f} | {valid_boxes:.1f} | {mean_area_pct:.1f} | {questions} |".format(**s)
        for s in summaries
    ]
    return "\n".join(lines)


def draw_examples(rows, settings: dict[str, Setting], count: int = EXAMPLES) -> Image.Image:
    """Return a picture of the first `count` questions, two per row: the image with its boxes, then their crops.

    The top row names the columns. Below each picture are the answer from it and whether it is right.
    """
    colors = {"image": INK, **BOX_COLORS}
    tiles = [tile(None, (THUMB, LINE), lines=[heading]) for heading in [*colors.items()] * 2]
    for i in range(min(count, len(rows))):
        image = open_image(rows[i]["image"])
        boxes = {name: settings[name].boxes[i] for name in BOX_COLORS}
        marked = [(bbox, BOX_COLORS[name]) for name, text in boxes.items() if (bbox := parse_bbox(text))]
        answers = {"image": settings["no crop"], **{name: settings[name] for name in BOX_COLORS}}
        for name, color in colors.items():
            picture = crop_or_full_image(image, boxes[name])[0] if name in boxes else image
            lines = [verdict(answers[name], i), (rows[i]["question"] if picture is image else "", INK)]
            overlaid = marked if name == "image" else []
            tiles.append(
                tile(picture, (THUMB, THUMB + 2 * LINE), boxes=overlaid, frame=color, lines=lines, font_size=11)
            )
    return contact_sheet(tiles, 2 * len(colors))


def verdict(setting: Setting, i: int) -> tuple[str, str]:
    """Return the answer to question `i` with right, wrong or its accuracy in percent, and a color for it."""
    accuracy = setting.accuracies[i]
    word, color = {1: ("right", "green"), 0: ("wrong", "red")}.get(accuracy, (f"{100 * accuracy:.0f}%", "darkorange"))
    return f"{setting.answers[i]}: {word}", color


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_path", default="datasets/miniature")
    parser.add_argument("--split", default="test")
    parser.add_argument("--name", default="miniature")
    parser.add_argument("--run", help="name of the GRPO run, if it differs from --name")
    parser.add_argument("--predictions", type=Path, default=Path("predictions"))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows = load_rows(args.dataset_path, args.split)
    name = args.run or args.name
    settings = read_settings(args.predictions, args.name, name, rows)
    summaries = [setting.summary(title) for title, setting in settings.items()]
    write_json(args.predictions / f"{name}_results.json", summaries)
    text = f"{markdown(summaries)}\n\n{fit_table(settings, rows['true_bbox'])}"
    (args.predictions / f"{name}_results.md").write_text(f"{text}\n", encoding="utf-8")
    draw_examples(rows, settings).save(args.predictions / f"{name}_boxes.png")
    print(text)


if __name__ == "__main__":
    run(main)
