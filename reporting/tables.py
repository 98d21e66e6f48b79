"""The rows of the report's tables, each a dict from column to text."""

from collections.abc import Sequence
from typing import Any

from reporting.claims import Claims
from reporting.gains import Gain
from reporting.pairs import Pair
from reporting.results import Result
from reporting.verdicts import Verdict

COST_COLUMNS = {  # column -> what it holds of a score's summary or a cost
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


def points(value: Any, sign: str = "") -> str:
    """Return a number, or both of an interval, with two decimals; a text as it is, and None as an empty one."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list | tuple):
        return f"[{', '.join(points(each, sign) for each in value)}]"
    return f"{value:{sign}.2f}"


def short(value: Any) -> str:
    """Return a value with four digits at the most; None as an empty text."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict_row(verdict: Verdict) -> dict[str, str]:
    interval = points(verdict.interval_95)
    if verdict.spread is not None:
        interval += f" over {verdict.runs} trainings, deviation {verdict.spread:.2f}"
    return {
        "figure or claim": verdict.title,
        "reported": points(verdict.reported) + (f" +- {verdict.margin:g}" if verdict.margin is not None else ""),
        "reproduced": points(verdict.ours) + (f" (over {verdict.over})" if verdict.over else ""),
        "difference": points(verdict.difference, "+"),
        "95% interval": interval,
        "verdict": verdict.verdict,
        "why": verdict.reason,
    }


def pair_row(pair: Pair, name: str, before: str, after: str) -> dict[str, str]:
    """Return both scores, under these names, their difference, and how many questions moved."""
    compared = pair.comparison
    return {
        "setting": name,
        before: points(compared["other_score"]),
        after: points(pair.after.scored.mean),
        "difference": points(compared["difference"], "+"),
        "95% interval": points(compared["interval_95"], "+"),
        **{key: str(compared[key]) for key in ("better", "worse", "equal")},
    }


def gain_rows(gain: Gain, name: str) -> list[dict[str, str]]:
    """Return the parts of a gain, the share of stolen answers, and the causes of losses."""

    def row(part: str, value: str, interval: str, questions: int) -> dict[str, str]:
        return {"setting": name, "part": part, "points": value, "95% interval": interval, "questions": str(questions)}

    rows = [
        row(part, points(compared["difference"], "+"), points(compared["interval_95"], "+"), compared["questions"])
        for part, compared in gain.parts().items()
    ]
    if (stolen := gain.stolen) is not None:
        questions = len(gain.controls["partner"].scored.scores)
        rows.append(row("answers that are the partner's, percent", f"{stolen:.1f}", "", questions))
    return rows + [row(f"made worse: {cause}", "", "", n) for cause, n in gain.made_worse.items() if n]


def file_rows(results: Sequence[Result], names: Sequence[str], costs: Sequence[dict]) -> list[dict[str, str]]:
    """Return for each answer file its score and what a question costs, without columns that are empty in all."""
    rows = []
    for result, name, cost in zip(results, names, costs, strict=True):
        known = result.scored.summary() | cost
        cells = {column: short(known.get(key)) for column, key in COST_COLUMNS.items()}
        rows.append({"setting": name, **cells, "file": ": ".join(filter(None, [str(result.path), result.failures]))})
    return [{column: row[column] for column in row if any(other[column] for other in rows)} for row in rows]


def cropper_rows(claims: Sequence[Claims], results: Sequence[Result]) -> list[dict[str, str]]:
    """Return for each cropper whose boxes were used, after the one that it starts from, what its training recorded."""
    reported = {cropper.model: cropper.hours for run in claims for cropper in run.croppers.values()}
    rows: dict[str, dict[str, str]] = {}

    def add(name: str, record: dict[str, Any]) -> None:
        if "stage" not in record:
            return
        add(record.get("base", ""), record.get("base_training") or {})
        cells = {
            **{column: record.get(column) for column in ("stage", "reward", "seed")},
            "px": record.get("longest_edge"),
            "rows": record.get("rows"),
            "steps": f"{record.get('steps')} of {record.get('planned_steps')}",
            "hours": record["seconds"] / 3600 if "seconds" in record else None,
            "GPU": record.get("gpu"),
            "reported hours": reported.get(name),
        }
        rows[name] = {"cropper": name} | {column: short(value) for column, value in cells.items()}

    for file in (file for result in results for file in result.box_files):
        add(file.cropper, file.meta.get("cropper") or {})
    return list(rows.values())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; text of files is escaped, so that it stays text."""
    lines = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
