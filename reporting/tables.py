"""The lines of the report's tables."""

from collections.abc import Sequence
from typing import Any

from reporting.claims import Claims
from reporting.pairs import Pair
from reporting.results import Result
from reporting.verdicts import Verdict

COLUMNS = ("figure or claim", "reported", "reproduced", "difference", "95% interval", "verdict", "why")


def verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    """Return the cells of a verdict's line, as `COLUMNS` names them."""
    reported = f"{verdict.reported:.2f}" if isinstance(verdict.reported, float | int) else verdict.reported
    interval = verdict.interval_95 and f"[{verdict.interval_95[0]:.2f}, {verdict.interval_95[1]:.2f}]"
    if verdict.runs > 1 and verdict.spread is not None:
        interval = f"{interval} over {verdict.runs} trainings, deviation {verdict.spread:.2f}"
    return (
        verdict.title,
        reported,
        number(verdict.ours) + (f" (over {verdict.over})" if verdict.over else ""),
        number(verdict.difference, sign=True),
        interval or "",
        verdict.verdict,
        verdict.reason,
    )


def number(value: float | None, sign: bool = False) -> str:
    """Return a number with two decimals, empty for None."""
    return "" if value is None else f"{value:{'+' if sign else ''}.2f}"


FILE_COLUMNS = {  # column -> what it holds of a score's summary or a cost
    "score": "score",
    "standard error": "standard_error",
    "questions": "questions",
    "seconds a question": "seconds_per_question",
    "of the cropper": "cropper_seconds_per_question",
    "images": "images_per_question",
    "image tokens": "image_tokens_per_question",
    "the cropper's": "cropper_image_tokens_per_question",
    "peak GiB": "peak_memory_gib",
    "GPU": "gpu",
}


def file_rows(results: Sequence[Result], names: Sequence[str], costs: Sequence[dict]) -> list[tuple[str, ...]]:
    """Return a line for each answer file: setting, score, error, rows, and what a question costs."""
    rows = []
    for result, name, cost in zip(results, names, costs, strict=True):
        known = result.scored.summary() | cost
        shown = str(result.path) + (f": {result.failures}" if result.failures else "")
        rows.append((name, *(_cell(known.get(key)) for key in FILE_COLUMNS.values()), shown))
    return rows


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


CROPPER_COLUMNS = ("cropper", "stage", "reward", "px", "rows", "steps", "seed", "reported hours")


def cropper_rows(claims: Sequence[Claims], results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return a line for each trained cropper whose boxes were used: what its training recorded of itself."""
    hours = {cropper.model: cropper.hours for run in claims for cropper in run.croppers.values()}
    rows = {}
    for file in (file for result in results for file in result.box_files):
        record = file.meta.get("cropper") or {}
        if "stage" in record:
            known = record | {"steps": f"{record.get('steps')} of {record.get('planned_steps')}"}
            cells = [known.get(key) for key in ("stage", "reward", "longest_edge", "rows", "steps", "seed")]
            rows[file.cropper] = (file.cropper, *map(_cell, [*cells, hours.get(file.cropper)]))
    return list(rows.values())


PAIR_COLUMNS = ("setting", "without", "with", "difference", "95% interval", "better", "worse", "equal")


def pair_rows(pairs: Sequence[Pair], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a line for each pair: both scores, the difference and its interval, and how many questions moved."""
    rows = []
    for pair, name in zip(pairs, names, strict=True):
        compared = pair.comparison
        low, high = compared["interval_95"]
        moved = [str(compared[key]) for key in ("better", "worse", "equal")]
        scores = [number(compared["other_score"]), number(pair.after.scored.mean)]
        rows.append((name, *scores, number(compared["difference"], sign=True), f"[{low:+.2f}, {high:+.2f}]", *moved))
    return rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; text of files is escaped, so that it stays text."""
    lines = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
