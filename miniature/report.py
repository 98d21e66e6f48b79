"""Put the miniature's figures together: the results table (JSON and Markdown) and a contact sheet of the boxes.

    python3 -m miniature.report --dataset_path datasets/miniature --name miniature

reads predictions/{name}_*.json as the six scripts wrote them, and predictions/{run}_*.json where GRPO has a part in
them; scores as `vqa_accuracy.py --metric vqa` does. Ends with 3 where one of the paper's claims fails.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cropvlm.boxes import bbox_area_pct, parse_bbox, pct_to_px
from cropvlm.cli import COMPLETE_WITH_FAILURES, ArgumentParser, run
from cropvlm.crops import crop_or_full_image, open_image
from cropvlm.data import load_rows
from cropvlm.inference.predictions import join_on_question_id, read_predictions
from cropvlm.metrics import vqa_accuracy
from cropvlm.runtime.files import write_json

# setting -> (answer file, box file), each without the name (or, where GRPO has a part in the answers, the run) in front
SETTINGS = {
    "no crop": ("base_answers", None),
    "true box": ("true_cropvlm_answers", "true_bbox"),
    "teacher box": ("teacher_cropvlm_answers", "teacher_bbox"),
    "SFT": ("sft_cropvlm_answers", "sft_bbox"),
    "GRPO": ("grpo_cropvlm_answers", "grpo_bbox"),
    "unseen answerer, no crop": ("unseen_base_answers", None),
    "unseen answerer, GRPO": ("unseen_cropvlm_answers", "grpo_bbox"),
}
THUMB = 220  # pixels a picture in the contact sheet


@dataclass
class Setting:
    """One line of the table: the VQA accuracy (0..1) of every question and the text of its box."""

    accuracies: np.ndarray
    boxes: list[str] | None

    def summary(self, setting: str) -> dict:
        parsed = [parse_bbox(text) for text in self.boxes or []]
        # No box, or none that can be read, means the whole image: 100%.
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
    """Every setting of the table, its answers and boxes joined to the rows on question_id."""

    def column(part: str) -> list[str]:
        path = folder / f"{run if part.startswith(('grpo', 'unseen')) else name}_{part}.json"
        return join_on_question_id(read_predictions(path), rows, str(path))

    return {
        setting: Setting(
            np.array([vqa_accuracy(text, refs) for text, refs in zip(column(answers), rows["answers"], strict=True)]),
            column(boxes) if boxes else None,
        )
        for setting, (answers, boxes) in SETTINGS.items()
    }


def paired_difference(after: Setting, before: Setting) -> tuple[float, float]:
    """Mean difference over the questions and its standard error, both in points."""
    difference = 100 * (after.accuracies - before.accuracies)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def placard_fit(boxes: list[str], placards: list[Sequence[int]]) -> tuple[float, float]:
    """How boxes lie to the placards' own, which are in percent and rounded outwards.

    Returns: the share of the boxes (0..1) that hold a placard, or all but 3% of its area; and the median of their
    longer sides, each in the placard's side of that direction. A box that cannot be read is the whole image.
    """
    box = np.array([parse_bbox(text) or (0, 0, 100, 100) for text in boxes], float)
    placard = np.array(placards, float)
    sides, own = box[:, 2:] - box[:, :2], placard[:, 2:] - placard[:, :2]
    shared = np.minimum(placard[:, 2:], box[:, 2:]) - np.maximum(placard[:, :2], box[:, :2])
    held = np.clip(shared, 0, None).prod(1) / own.prod(1)
    return float((held > 0.97).mean()), float(np.median((sides / own).max(1)))


def fit_table(settings: dict[str, Setting], placards: list[Sequence[int]]) -> str:
    """The Markdown table of `placard_fit`, for the boxes that a model has written."""
    lines = ["| boxes | hold the whole placard, % | sides, in the placard's (median) |", "|---|---|---|"]
    for name in ("teacher box", "SFT", "GRPO"):
        share, sides = placard_fit(settings[name].boxes, placards)
        lines.append(f"| {name} | {100 * share:.1f} | {sides:.2f} |")
    return "\n".join(lines)


def claims(settings: dict[str, Setting]) -> list[tuple[str, bool]]:
    """What the paper claims, as far as so small a world can show it: a sentence with figures, and whether it holds."""
    mean = {name: 100 * setting.accuracies.mean() for name, setting in settings.items()}
    grpo, grpo_se = paired_difference(settings["GRPO"], settings["SFT"])
    unseen, unseen_se = paired_difference(settings["unseen answerer, GRPO"], settings["unseen answerer, no crop"])
    way = 100 * (mean["GRPO"] - mean["no crop"]) / (mean["true box"] - mean["no crop"])
    return [
        (f"without a crop the text is too small to read: {mean['no crop']:.1f} (at most 40)", mean["no crop"] <= 40),
        (f"with the true box it can be read: {mean['true box']:.1f} (at least 85)", mean["true box"] >= 85),
        (
            f"SFT helps: {mean['SFT'] - mean['no crop']:+.1f} over no crop (at least +10)",
            mean["SFT"] >= mean["no crop"] + 10,
        ),
        (f"GRPO helps more: {grpo:+.1f} over SFT, standard error {grpo_se:.1f} (above 2)", grpo > 2 * grpo_se),
        (f"GRPO goes {way:.0f}% of the way from no crop to the true box (at least 70%)", way >= 70),
        (
            f"an answerer that training never saw gains {unseen:+.1f}, standard error {unseen_se:.1f} (above 2)",
            unseen > 2 * unseen_se,
        ),
    ]


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


def contact_sheet(rows, settings: dict[str, Setting], count: int = 12) -> Image.Image:
    """The first `count` questions: the image with true (green), SFT (red) and GRPO box (blue), then the three crops."""
    drawn = {"true box": "lime", "SFT": "red", "GRPO": "blue"}
    sheet = Image.new("RGB", (2 * 4 * (THUMB + 8), -(-count // 2) * (THUMB + 24)), "white")
    for i in range(min(count, len(rows))):
        image = open_image(rows[i]["image"])
        left, top = (i % 2) * 4 * (THUMB + 8), (i // 2) * (THUMB + 24)
        marked = image.copy()
        for setting, color in drawn.items():
            if bbox := parse_bbox(settings[setting].boxes[i]):
                ImageDraw.Draw(marked).rectangle(pct_to_px(bbox, *image.size), outline=color, width=4)
        crops = [crop_or_full_image(image, settings[setting].boxes[i])[0] for setting in drawn]
        for column, (picture, color) in enumerate(zip([marked, *crops], ["black", *drawn.values()], strict=True)):
            scale = THUMB / max(picture.size)
            picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
            x = left + column * (THUMB + 8)
            sheet.paste(picture, (x, top + 18))
            ImageDraw.Draw(sheet).rectangle(
                (x, top + 18, x + picture.width - 1, top + 17 + picture.height), outline=color, width=2
            )
        ImageDraw.Draw(sheet).text((left, top + 2), rows[i]["question"], fill="black")
    return sheet


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_path", default="datasets/miniature")
    parser.add_argument("--split", default="test")
    parser.add_argument("--name", default="miniature")
    parser.add_argument("--run", help="name of the GRPO run, where it is not the same")
    parser.add_argument("--predictions", type=Path, default=Path("predictions"))
    return parser.parse_args()


def main() -> int:
    """Return 3 where a claim fails."""
    args = parse_args()
    rows = load_rows(args.dataset_path, args.split)
    name = args.run or args.name
    settings = read_settings(args.predictions, args.name, name, rows)
    summaries = [setting.summary(title) for title, setting in settings.items()]
    write_json(args.predictions / f"{name}_results.json", summaries)
    judged = claims(settings)
    verdicts = "\n".join(f"- {'holds' if holds else 'FAILS'}: {claim}" for claim, holds in judged)
    text = f"{markdown(summaries)}\n\n{fit_table(settings, rows['true_bbox'])}\n\n{verdicts}"
    (args.predictions / f"{name}_results.md").write_text(f"{text}\n", encoding="utf-8")
    contact_sheet(rows, settings).save(args.predictions / f"{name}_boxes.png")
    print(text)
    return 0 if all(holds for _, holds in judged) else COMPLETE_WITH_FAILURES


if __name__ == "__main__":
    run(main)
