"""Rows per second behind the hours of a plan: measured on this machine, else those of a GPU in `rates.yaml`."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from cropvlm.runs.predictions import read_meta

PUBLISHED: dict[str, dict[int, float]] = yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text())
BOXES, ANSWERS, SFT, GRPO, TEACHER = PUBLISHED
MEASURED_MODEL = "SmolVLM-256M"  # of all kinds but the teacher


class Work(NamedTuple):
    """The work of a stage."""

    kind: str
    model: str
    size: int | None = None  # px at which the model sees images; None where that is its own


def measured_rates(folder: Path) -> dict[Work, float]:
    """Return the rows per second of boxes and answers by the meta files below a folder.

    Of several files for one kind of work the slowest counts: answers with the crop take longer than without.
    """
    rates: dict[Work, float] = {}
    for path in folder.rglob("[!.]*.meta.json"):
        meta = read_meta(path.with_name(path.name.replace(".meta.json", ".json")))
        counts, models, settings = (meta.get(part) or {} for part in ("counts", "models", "settings"))
        if counts.get("rows") and counts.get("seconds"):
            kind, role = (BOXES, "cropper") if "cropper" in models else (ANSWERS, "answerer")
            size = settings.get("longest_edge") or side(settings.get("max_pixels"))
            work = Work(kind, models.get(role), size)
            rates[work] = min(counts["rows"] / counts["seconds"], rates.get(work, math.inf))
    return rates


def side(pixels: int | None) -> int | None:
    """Return the side of a square of `pixels`."""
    return math.isqrt(pixels) if pixels else None


def rate_of(work: Work, measured: dict[Work, float]) -> tuple[float, str]:
    """Return the rows per second of a piece of work and their source: measured here, or estimated from published ones.

    Between two published sizes the seconds of a row grow with the pixels of its image; beyond them the nearest counts,
    the largest where the model decides.
    """
    if work in measured:
        return measured[work], "measured here"
    kind = TEACHER if work.kind == ANSWERS and MEASURED_MODEL not in work.model else work.kind
    sizes, rates = zip(*sorted(PUBLISHED[kind].items()), strict=True)
    size = work.size or sizes[-1]
    seconds = np.interp(size**2, np.square(sizes), 1 / np.array(rates))
    notes = ["one H200"]
    notes += [f"from {' and '.join(map(str, sizes))} px"] if size not in sizes and kind != TEACHER else []
    notes += ["by the rate of a 7B model"] if kind != work.kind else []
    return float(1 / seconds), ", ".join(notes)
