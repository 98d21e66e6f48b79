"""The report as Markdown and as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from reporting.claims import Claims
from reporting.pairs import Pair
from reporting.results import Result
from reporting.verdicts import Verdict

COLUMNS = ("figure or claim", "reported", "reproduced", "difference", "95% interval", "verdict")


def verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    """Return the cells of a verdict's line, as `COLUMNS` names them."""
    reported = f"{verdict.reported:.2f}" if isinstance(verdict.reported, float | int) else verdict.reported
    interval = verdict.interval_95 and f"[{verdict.interval_95[0]:.2f}, {verdict.interval_95[1]:.2f}]"
    words = verdict.verdict + (f": {verdict.reason}" if verdict.reason else "")
    return (
        verdict.title,
        reported,
        number(verdict.ours) + (f" (over {verdict.over})" if verdict.over else ""),
        number(verdict.difference, sign=True),
        interval or "",
        words,
    )


def number(value: float | None, sign: bool = False) -> str:
    """Return a number with two decimals, empty for None."""
    return "" if value is None else f"{value:{'+' if sign else ''}.2f}"


def file_rows(results: Sequence[Result], names: Sequence[str], costs: Sequence[dict]) -> list[tuple[str, ...]]:
    """Return a line for each answer file: setting, score, error, rows, and what a question costs."""
    rows = []
    for result, name, cost in zip(results, names, costs, strict=True):
        summary = result.scored.summary()
        rows.append(
            (
                name,
                number(summary["score"]),
                number(summary["standard_error"]),
                str(summary["questions"]),
                f"{cost['seconds_per_question']:.3f}",
                str(cost["images_per_question"]),
                "unknown" if cost["image_tokens_per_question"] is None else f"{cost['image_tokens_per_question']:g}",
                str(result.path),
            )
        )
    return rows


FILE_COLUMNS = (
    "setting",
    "score",
    "standard error",
    "questions",
    "seconds a question",
    "images",
    "image tokens",
    "file",
)
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


def to_json(
    claims: Claims | None,
    verdicts: Sequence[Verdict],
    results: Sequence[Result],
    names: Sequence[str],
    costs: Sequence[dict],
    pairs: Sequence[Pair],
) -> dict[str, Any]:
    """Return the content of report.json."""
    content = {
        "title": claims.title if claims else None,
        "source": claims.source if claims else None,
        "verdicts": [vars(verdict) for verdict in verdicts],
        "files": [
            {"file": str(result.path), "setting": name, "cost": cost, "metric": result.scored.metric}
            | result.scored.summary()
            for result, name, cost in zip(results, names, costs, strict=True)
        ],
        "pairs": [
            {"file": str(pair.after.path), "other": str(pair.before.path), "score": pair.after.scored.mean}
            | pair.comparison
            for pair in pairs
        ],
    }
    return json.loads(json.dumps(content), parse_constant=lambda _: None)  # tuples become lists, nan null
