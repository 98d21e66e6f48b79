"""Folders of prediction files for the report's tests, as the generating scripts write them."""

import hashlib
import json
from pathlib import Path

import datasets
from pictures import png
from PIL import Image

from cropvlm.runs.predictions import write_predictions
from reporting.claims_file import read_claims
from reporting.report import Report, judge_folder

COUNT = 100
BOXES = [f"[0, 0, {i % 50 + 1}, 50]." for i in range(COUNT)]  # of SFT, where answers are in p/


def write_rows(folder: Path, count: int = COUNT, **columns: list) -> None:
    """Save rows with the ids 0.., one reference "yes" each and a small image."""
    image = {"bytes": png(Image.new("RGB", (40, 20), "green")), "path": None}
    rows = {
        "question_id": list(range(count)),
        "question": [f"question {i}?" for i in range(count)],
        "answers": [["yes"]] * count,
        "image": [image] * count,
        **columns,
    }
    features = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    features.save_to_disk(folder)


def right(number: int, count: int = COUNT) -> list[str]:
    """Answers of which the first `number` are right."""
    return ["yes" if i < number else "no" for i in range(count)]


def write_boxes(
    path: Path, texts: list[str], cropper: str, dataset: str, record: dict | None = None, **settings
) -> None:
    """Write a box file with its meta file. record: what the cropper's training recorded of itself."""
    meta = {
        **({"cropper": record} if record else {}),
        "dataset_path": dataset,
        "models": {"cropper": cropper, "cropper_base": None},
        "settings": {"longest_edge": 64, **settings},
        "counts": {"rows": len(texts)},
    }
    write_predictions(path, [{"question_id": i, "answer": text} for i, text in enumerate(texts)], meta)


def write_answers(
    path: Path, answers: list[str], dataset_path: str, answerer: str = "vlm", boxes: list[str] | None = None, **meta
) -> None:
    """Write an answer file with its meta file. meta: replaces keys of its own; settings are added."""
    settings = {"mode": "base" if boxes is None else "cropvlm", "longest_edge": 64, "max_pixels": None}
    if boxes is not None:
        settings["boxes"] = hashlib.sha256(json.dumps(boxes).encode()).hexdigest()[:16]
    content = {
        "dataset_path": dataset_path,
        "dataset": None,
        "split": None,
        "max_samples": None,
        "models": {"answerer": answerer},
        "settings": settings | meta.pop("settings", {}),
        "counts": {"rows": len(answers), "seconds": 2.0},
        **meta,
    }
    write_predictions(path, [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)], content)


CLAIMS = """
title: a test
source: made up
benchmarks:
  rows: {rows: 100}
answerers:
  small: {title: small, model: vlm, longest_edge: 64}
croppers:
  sft: {title: SFT, stage: SFT, model: models/sft, longest_edge: 64}
  grpo: {title: GRPO, stage: GRPO, model: models/grpo, longest_edge: 64, trained_on: rows}
  grpo_other: {title: GRPO elsewhere, stage: GRPO, model: models/other, longest_edge: 64, trained_on: others}
"""


def write_folder(folder: Path, scores: dict[str, int]) -> None:
    """Write predictions of which the given numbers of 100 are right, for `none` and croppers by model."""
    for name, number in scores.items():
        if name == "none":
            write_answers(folder / "none_answers.json", right(number), "rows")
            continue
        texts = [f"[{i % 7}, 0, 50, 50]." + " " * len(name) for i in range(COUNT)]  # other texts for each cropper
        write_boxes(folder / f"{name}_bbox.json", texts, f"models/{name}", "rows")
        write_answers(folder / f"{name}_answers.json", right(number), "rows", boxes=texts)


FIGURE = {"benchmark": "rows", "answerer": "small", "cropper": "none", "reported": 50, "margin": 12}
NONE, SFT, GRPO = ({"answerer": "small", "cropper": name} for name in ("none", "sft", "grpo"))


def judged() -> Report:
    """The folder p/ by claims.yaml."""
    return judge_folder(Path("p"), [read_claims("claims.yaml")])
