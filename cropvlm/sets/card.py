"""Files beside the rows: the report, counts and a picture of some boxes, and the card, the page on the Hub."""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from huggingface_hub import HfApi
from PIL import Image

from cropvlm.boxes import area_cut_points, bbox_area_pct, px_to_pct
from cropvlm.data.catalog import locate
from cropvlm.data.images import open_image
from cropvlm.errors import failure
from cropvlm.runs.drawing import INK, contact_sheet, tile
from cropvlm.runs.provenance import library_versions, sources_of
from cropvlm.sets.flags import Source
from cropvlm.teacher import GrownBox

SHEET_COLUMNS, SHEET_ROWS, TILE = 6, 4, 240  # 24 boxes, pixels a side
TEACHER_COLOR, GROWN_COLOR = "#d62728", "#1f77b4"
UNKNOWN_LICENCE = "see the source"
CARD = """---
license:
{licences}
task_categories:
- visual-question-answering
tags:
- cropvlm
---

# Training data of CropVLM

Images and questions from the sources below. Each row of the SFT part has a box that helps to answer its
question (`bbox`: x1, y1, x2, y2 in percent of width and height), outlined by a teacher model and grown
if small. No human drew a box. The GRPO part holds the other rows, without boxes. Images are the
sources' own files, byte for byte.

| source | from | licence | SFT rows | GRPO rows |
|---|---|---|---|---|
{table}

- Teacher: {teacher}, greedy, at most {settings[max_new_tokens]} new tokens, images of {least} to {most} pixels
- Prompt: `{prompt!r}`
- Responses: {responses}. A response without a box counts as the whole image.{need}
- Cut points of relative area: {cut_points}
- Growth of the area, smallest fifth first: {fifths}
- Made by `create_dataset.py` of CropVLM (arXiv 2511.19820) with {versions}

`teacher_report.json` has the counts per source, `teacher_report.png` shows 24 of the boxes.
"""
NEED = """
- Need of a crop (`needed`): {needed} rows, not {not_needed}; by {reward_model}, which sees images at {longest_edge} px:
  `loss_gap`, the log-likelihood of the answer with the crop less that without, is at least {threshold} nats"""


def summarise(
    boxes: list[GrownBox], sources: Sequence[str], cut_points: Sequence[float], growth: Sequence[float]
) -> dict:
    """Return the counts of `teacher_report.json`; areas are shares of the image (0..1).

    sources: of each box. cut_points: over all boxes; `cut_points_of_real_boxes` are those without whole-image fallbacks
    and boxes without area. growth: area multipliers, smallest fifth first.
    """
    real = [box.area for box in boxes if box.kind == "box" and box.area > 0]
    counts, boxes_of = _counts(boxes), {name: [] for name in sources}
    for box, source in zip(boxes, sources, strict=True):
        boxes_of[source].append(box)
    return {
        "rows": counts["rows"],
        "responses": counts["responses"],
        "whole_image_fallbacks": sum(box.kind != "box" for box in boxes),
        "boxes_without_area": sum(box.area == 0 for box in boxes),
        "boxes_without_area_after_growth": sum(bbox_area_pct(box.bbox_pct) == 0 for box in boxes),
        "growth": list(growth),
        "cut_points": list(cut_points),
        "cut_points_of_real_boxes": list(area_cut_points(real)) if real else None,
        "rows_by_fifth": counts["rows_by_fifth"],
        "mean_area_before": sum(box.area for box in boxes) / len(boxes),
        "mean_area_after": sum(bbox_area_pct(box.bbox_pct) for box in boxes) / len(boxes) / 100,
        "sources": {name: _counts(part) for name, part in boxes_of.items()},
    }


def _counts(boxes: list[GrownBox]) -> dict:
    kinds, fifths = Counter(box.kind for box in boxes), Counter(box.fifth for box in boxes)
    return {"rows": len(boxes), "responses": dict(kinds.most_common()), "rows_by_fifth": [fifths[i] for i in range(5)]}


def draw_report(boxes: list[GrownBox], rows: Any) -> Image.Image:
    """Return a contact sheet of 24 rows with the teacher's and the grown box, and the question below.

    rows: the data set that the boxes belong to, images undecoded.
    """
    number = min(len(boxes), SHEET_COLUMNS * SHEET_ROWS)
    tiles = []
    for i in (i * len(boxes) // number for i in range(number)):  # evenly, so that every large source shows
        row, box = rows[i], boxes[i]
        drawn = [(px_to_pct(box.bbox_px, *box.size), TEACHER_COLOR), (box.bbox_pct, GROWN_COLOR)]
        question = [(row["question"], INK)]
        image = open_image(row["image"])
        tiles.append(tile(image, (TILE - 8, TILE - 8), boxes=drawn, lines=question, font_size=10))
    return contact_sheet(tiles, SHEET_COLUMNS)


def part_files(
    parts: dict[str, Dataset],
    boxes: list[GrownBox],
    report: dict,
    settings: dict,
    sources: list[Source],
    made_from: dict,
) -> dict[str, dict[str, bytes]]:
    """Return the files beside the rows of each part, by name: card and `made_from`, for SFT the report as well.

    boxes: of the SFT part. report, settings: see `write_card`. made_from: what else is kept as JSON, by file name.
    """
    picture = io.BytesIO()
    draw_report(boxes, parts["sft"]).save(picture, "PNG")
    counts = {part: Counter(rows["source"]) for part, rows in parts.items()}
    described = [
        {"name": source.name, "path": source.path, "licence": licence(source.path)}
        | {part: count[source.name] for part, count in counts.items()}
        for source in sources
    ]
    both = {name: json.dumps(known, indent=2).encode() for name, known in made_from.items()}
    both["README.md"] = write_card(report, settings, described).encode()
    of_sft = {"teacher_report.json": json.dumps(report, indent=2).encode(), "teacher_report.png": picture.getvalue()}
    return {part: both | (of_sft if part == "sft" else {}) for part in parts}


def licence(dataset_path: str) -> str:
    """Return the licence on a data set's page, several with commas; `UNKNOWN_LICENCE` if none can be read there."""
    source, names = locate(dataset_path).source, []
    with contextlib.suppress(Exception):  # the client raises exceptions of a dozen kinds
        tags = [] if Path(source).exists() else HfApi().dataset_info(source, timeout=10).tags
        names = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]  # as the card has them
    return ", ".join(names) or UNKNOWN_LICENCE


def origins(sources: Sequence[Source], loaded: Sequence[Dataset], split: str | None) -> list[dict]:
    """Return `name`, `path`, `split` and `commit` of every source, by which a training knows what it was trained on.

    split: as it was asked for; folders may keep no name of their split.
    """
    found = []
    for source, rows in zip(sources, loaded, strict=True):
        known = sources_of(source.path, rows)
        found += known if len(known) > 1 else [known[0] | {"name": source.name, "split": known[0]["split"] or split}]
    return found


def write_card(report: dict, settings: dict, sources: list[dict]) -> str:
    """Return the data set's card: Markdown with a YAML head.

    report: as `summarise` returns it. settings: of the teacher, as its journal holds them. sources: `name`, `path`,
    `licence` and number of rows in each part (`sft`, `grpo`).
    """
    table = [
        f"| {s['name']} | {_public(s['path'])} | {s['licence']} | {s['sft']} | {s.get('grpo', 0)} |" for s in sources
    ]
    named = [name for s in sources for name in s["licence"].split(", ")]  # as the Hub names them
    known = [name if re.fullmatch(r"[A-Za-z][\w.+-]*", name) else "other" for name in named]
    fifths = zip(report["rows_by_fifth"], report["growth"], strict=True)
    need = report.get("need")
    return CARD.format(
        licences="\n".join(f"- {name}" for name in dict.fromkeys(known)),
        table="\n".join(table),
        teacher=_public(settings["model_path"]),
        settings=settings,
        least=settings["min_pixels"] or "its own minimum",
        most=settings["max_pixels"] or "its own maximum",
        prompt=settings["prompt"][0]["content"][-1]["text"],
        responses=", ".join(f"{count} {kind}" for kind, count in report["responses"].items()),
        cut_points=", ".join(f"{100 * point:.3f}%" for point in report["cut_points"]),
        need=NEED.format(**need | {"reward_model": _public(need["reward_model"])}) if need else "",
        fifths=", ".join(f"{rows} rows x{factor:g}" for rows, factor in fifths),
        versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
    )


def _public(path: str) -> str:
    """A Hub id unchanged; for a local folder, existing or not, its name without its location."""
    is_local = Path(path).exists() or path.startswith(("/", ".", "~"))
    return f"{Path(path).name} (a local folder)" if is_local else path


def push(repo: str, folders: dict[str, Path]) -> None:
    """Send the card and the report, then the saved parts (name -> folder), as configurations that the card lists.

    Raises `UserError`; what is saved here stays.
    """
    with failure(f"the data set cannot be sent to {repo}; all is saved here, push again with --from_journal"):
        options = {"repo_id": repo, "repo_type": "dataset", "allow_patterns": ["README.md", "teacher_report.*"]}
        HfApi().upload_folder(folder_path=folders["sft"], **options)
        for part, folder in folders.items():
            load_from_disk(folder).push_to_hub(repo, config_name=part, split="train")
