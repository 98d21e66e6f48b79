"""Rows per second behind the hours of a plan: logged on this machine, else a GPU's in `benchmarks/README.md`."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from cropvlm.runs.predictions import read_meta

TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "README.md"
# Kinds of work, as `benchmarks/gpu.sh` calls them.
BOXES, ANSWERS, SFT, GRPO, TEACHER = "boxes", "both answers", "SFT", "GRPO step", "teacher 7B"
# A line of its table: the work, the image size, prompts of a step; rows a second, or seconds a step.
LINE = re.compile(
    rf"\| (?P<kind>{'|'.join((BOXES, ANSWERS, SFT, GRPO, TEACHER))})(?: (?P<size>\d+) px)?(?:, (?P<rows>\d+) prompts)? "
    r"\| (?P<number>[\d.]+) (?P<unit>rows/s|s) \|"
)
MEASURED_MODEL = "SmolVLM-256M"  # in all lines but the teacher's


@dataclass(frozen=True)
class Work:
    """The work of a stage. size: px at which its model sees images; None where that is the model's own.

    reward: of GRPO. server: the model is not on this machine.
    """

    kind: str
    model: str
    size: int | None = None
    reward: str | None = None
    server: bool = False


@dataclass(frozen=True)
class Rate:
    """Rows per second, and where the figure is from."""

    rows_per_second: float
    source: str


def measured_rates(folder: Path) -> dict[Work, Rate]:
    """Return the rates of boxes and answers that the meta files below a folder tell of this machine.

    Of several files for one kind of work the slowest counts: answers with the crop take longer than without, and the
    seconds of a resumed run leave out its first part.
    """
    rates: dict[Work, Rate] = {}
    for path in sorted(folder.rglob("*.meta.json")) if folder.is_dir() else []:
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


def published_rates(path: Path = TABLE) -> dict[tuple[str, int | None], float]:
    """Return rows per second by kind of work and image size, from the tables of a README; the last of a kind counts."""
    rates = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := LINE.match(line):
            number = float(match["number"])
            rate = number if match["unit"] == "rows/s" else int(match["rows"] or 1) / number
            rates[match["kind"], int(match["size"]) if match["size"] else None] = rate
    return rates


def rate_of(work: Work, measured: dict[Work, Rate], published: dict[tuple[str, int | None], float]) -> Rate | None:
    """Return the rate of a piece of work: measured on this machine, else estimated from the published ones."""
    if work in measured:
        return measured[work]
    other = work.kind == ANSWERS and MEASURED_MODEL not in work.model
    kind = TEACHER if other else work.kind  # the one figure of a larger model
    rates = {size: rate for (name, size), rate in published.items() if name == kind}
    if not rates:
        return None
    rate, origin = _at_size(rates, work.size)
    notes = []
    if other:
        origin = f"nearest figure: {kind}"
        notes += ["the model is behind a server"] if work.server else []
    elif kind == ANSWERS:
        notes.append("for both answers")
    if work.reward == "accuracy":
        notes.append("with the likelihood reward")
    return Rate(rate, "; ".join(["benchmarks/README.md", *([origin] if origin else []), *notes]))


def _at_size(rates: dict[int | None, float], size: int | None) -> tuple[float, str]:
    """Return the rate for images of a size and its origin, empty where that size was measured.

    Between two measured sizes the seconds of a row grow with the pixels of its image; without a size, or beyond the
    measured ones, the nearest counts, the largest where the model decides.
    """
    if size in rates or None in rates:
        return rates[size if size in rates else None], ""
    sizes = sorted(rates)
    if size is not None and sizes[0] < size < sizes[-1]:
        low, high = max(s for s in sizes if s < size), min(s for s in sizes if s > size)
        share = (size**2 - low**2) / (high**2 - low**2)
        seconds = (1 - share) / rates[low] + share / rates[high]
        return 1 / seconds, f"interpolated between {low} and {high} px"
    nearest = max(sizes) if size is None else min(sizes, key=lambda known: abs(known - size))
    return rates[nearest], f"nearest figure: {nearest} px"
