"""Rows per second behind the hours of a plan: logged on this machine, else those of a GPU in `rates.yaml`."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from cropvlm.runs.predictions import read_meta

PUBLISHED: dict[str, dict[int, float]] = yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text())
BOXES, ANSWERS, SFT, GRPO, TEACHER = PUBLISHED
MEASURED_MODEL = "SmolVLM-256M"  # of all kinds but the teacher


@dataclass(frozen=True)
class Work:
    """The work of a stage. size: px at which its model sees images; None where that is the model's own.

    server: the model is not on this machine.
    """

    kind: str
    model: str
    size: int | None = None
    server: bool = False


@dataclass(frozen=True)
class Rate:
    """Rows per second, and where the figure is from."""

    rows_per_second: float
    source: str


def measured_rates(folder: Path) -> dict[Work, Rate]:
    """Return the rates of boxes and answers that the meta files below a folder tell of this machine.

    Of several files for one kind of work the slowest counts: answers with the crop take longer than without.
    """
    rates: dict[Work, Rate] = {}
    for path in sorted(folder.rglob("[!.]*.meta.json")) if folder.is_dir() else []:
        meta = read_meta(path.with_name(path.name.replace(".meta.json", ".json")))
        counts, models, settings = (meta.get(part) or {} for part in ("counts", "models", "settings"))
        if not counts.get("rows") or not counts.get("seconds"):
            continue
        size, server = settings.get("longest_edge") or side(settings.get("max_pixels")), "server" in models
        kind, role = (BOXES, "cropper") if "cropper" in models else (ANSWERS, "answerer")
        work = Work(kind, models.get(role), size, server=server)
        rate = Rate(counts["rows"] / counts["seconds"], "measured here")
        rates[work] = min(rate, rates.get(work, rate), key=lambda each: each.rows_per_second)
    return rates


def side(pixels: int | None) -> int | None:
    """Return the side of a square of so many pixels."""
    return math.isqrt(pixels) if pixels else None


def rate_of(work: Work, measured: dict[Work, Rate]) -> Rate:
    """Return the rate of a piece of work: measured on this machine, else estimated from the published ones.

    Between two measured sizes the seconds of a row grow with the pixels of its image; beyond them the nearest counts,
    the largest where the model decides.
    """
    if work in measured:
        return measured[work]
    kind = TEACHER if work.kind == ANSWERS and MEASURED_MODEL not in work.model else work.kind
    sizes, rates = zip(*sorted(PUBLISHED[kind].items()), strict=True)
    size = work.size or sizes[-1]
    seconds = np.interp(size**2, np.square(sizes), 1 / np.array(rates))
    notes = ["one H200"]
    notes += [f"from {' and '.join(map(str, sizes))} px"] if size not in sizes and kind != TEACHER else []
    notes += ["by the rate of a 7B model"] if kind != work.kind else []
    notes += ["the model is behind a server"] if work.server else []
    return Rate(float(1 / seconds), ", ".join(notes))
