"""The tables of a report; a row is a dict from column to text."""

from collections.abc import Sequence
from typing import Any

from reporting.claims import Claims
from reporting.costs import costs
from reporting.gains import Pair
from reporting.need import NeedCurve
from reporting.results import Result
from reporting.verdicts import Verdict

Row = dict[str, str]
ESCAPED = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|"})
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
NEED_COLUMNS = (  # of the numbers of a curve's summary
    *("never", "always", "decides itself", "crops, %", "over random", "95% interval"),
    *("largest saving of crops, %", "area above random, points", "precision", "recall"),
)


def points(value: Any, sign: str = "") -> str:
    """Return a number, or both of an interval, with two decimals; text unchanged, None as an empty text."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list | tuple):
        return f"[{', '.join(points(each, sign) for each in value)}]"
    return f"{value:{sign}.2f}"


def short(value: Any) -> str:
    """Return a value with four digits at the most; None as an empty text."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict_row(verdict: Verdict) -> Row:
    trainings = f" over {verdict.runs} trainings, deviation {points(verdict.spread)}" if verdict.runs > 1 else ""
    return {
        "figure or claim": verdict.title,
        "reported": points(verdict.reported) + (f" +- {verdict.margin:g}" if verdict.margin is not None else ""),
        "reproduced": points(verdict.ours) + (f" (over {verdict.over})" if verdict.over else ""),
        "difference": points(verdict.difference, "+"),
        "95% interval": points(verdict.interval_95) + trainings,
        "verdict": verdict.verdict,
        "why": verdict.reason,
    }


def pair_row(pair: Pair, before: str, after: str, name: str | None = None) -> Row:
    """Return both scores, in columns of these names, their difference, and how many questions moved."""
    compared = pair.comparison
    return {
        "setting": name or pair.name,
        before: points(compared["other_score"]),
        after: points(pair.after.scored.mean),
        "difference": points(compared["difference"], "+"),
        "95% interval": points(compared["interval_95"], "+"),
        **{key: str(compared[key]) for key in ("better", "worse", "equal")},
    }


def gain_rows(pair: Pair) -> list[Row]:
    """Return the parts of a gain, the share of stolen answers, and the causes of losses; nothing without controls."""
    if not pair.controls:
        return []
    cells = [(part, c["difference"], c["interval_95"], c["questions"]) for part, c in pair.parts.items()]
    if pair.stolen is not None:
        questions = len(pair.controls["partner"].scored.scores)
        cells.append(("answers that are the partner's, percent", f"{pair.stolen:.1f}", "", questions))
    cells += [(f"made worse: {cause}", "", "", count) for cause, count in pair.made_worse.items() if count]
    columns = ("setting", "part", "points", "95% interval", "questions")
    rows = [(pair.name, part, points(gain, "+"), points(interval, "+"), str(n)) for part, gain, interval, n in cells]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def need_row(curve: NeedCurve) -> Row:
    _, learnt, *values = curve.summary.values()
    numbers = [points(value, "+" if isinstance(value, tuple) else "") for value in values]
    spent = [short(float(value)) for value in (curve.cost["never"], curve.own_cost, curve.cost["always"])]
    return {
        "setting": curve.pair.name,
        **dict(zip(NEED_COLUMNS, numbers, strict=True)),
        "cost: never, itself, always": f"{', '.join(spent)} {curve.cost['unit']}",
        "the cropper's": points(curve.cost["cropper"]),
        "learnt for": f"{learnt['answerer']}, {learnt['longest_edge']} px" if learnt else "",
    }


def file_rows(results: Sequence[Result]) -> list[Row]:
    """Return for each answer file its score and what a question costs, without columns that are empty in all."""
    rows = []
    for result in results:
        known = result.scored.summary() | costs(result)
        cells = {column: short(known.get(key)) for column, key in COST_COLUMNS.items()}
        rows.append(
            {"setting": result.name, **cells, "file": ": ".join(filter(None, [str(result.path), result.failures]))}
        )
    return [{column: row[column] for column in row if any(other[column] for other in rows)} for row in rows]


def cropper_rows(claims: Sequence[Claims], results: Sequence[Result]) -> list[Row]:
    """Return for each cropper whose boxes were used, after the one that it starts from, what its training recorded."""
    reported = {cropper.model: cropper.hours for run in claims for cropper in run.croppers.values()}
    rows: dict[str, Row] = {}

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


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table; cells are escaped."""
    cells = [[" ".join(text.translate(ESCAPED).split()) for text in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [rows[0], ["---"] * len(rows[0]), *cells])
