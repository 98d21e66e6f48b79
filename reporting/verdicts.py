"""Verdicts on figures and claims: reproduced, not reproduced, not comparable (and why), or not run.

A figure is reproduced if ours lies within its tolerance, or the reported value within our 95% interval. A claim is
reproduced if its value keeps its bar; without a bar, if the whole 95% interval of the difference lies above 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropvlm.errors import UserError
from cropvlm.runs.scoring import bootstrap_means, interval_95
from reporting.claims import Claim, Claims, Figure, Setting
from reporting.results import Result

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
NOT_COMPARABLE, NOT_RUN = "not comparable", "not run"
ROUNDING = 1e-9  # points: weighted sums are not exact, and 70 of 100 questions keep a bar of 70


@dataclass(frozen=True)
class Verdict:
    """A line of the report. reported: a figure, or the bar in words. ours, difference, interval_95: points, or None."""

    title: str
    kind: str  # figure or claim
    reported: float | str
    verdict: str
    ours: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    reason: str = ""  # why it is not comparable, or the commands that would run it
    over: str = ""  # the benchmarks, where not all have run


@dataclass(frozen=True)
class Match:
    """The result that comes nearest to a setting, and in what it differs."""

    result: Result
    differences: tuple[str, ...]


def match(setting: Setting, results: Sequence[Result], claims: Claims) -> Match | None:
    """Return the result for a setting, else the nearest that differs in size, split, rows or training set alone.

    Raises `UserError` where two files with different answers fit.
    """
    found = [Match(r, d) for r in results if (d := differences(setting, r, claims)) is not None]
    if not found:
        return None
    best, *others = sorted(found, key=lambda item: len(item.differences))
    for other in others:
        if not best.differences and not other.differences and best.result.records != other.result.records:
            first, second = best.result.path, other.result.path
            raise UserError(f"two files for one setting ({setting.title}): {first} and {second}; move one away")
    return best


def differences(setting: Setting, result: Result, claims: Claims) -> tuple[str, ...] | None:
    """Return in what a result differs from a setting; None if it belongs to another one altogether."""
    wanted, answerer = setting.cropper, setting.answerer
    if (result.benchmark, result.answerer, result.with_crop) != (
        setting.benchmark.name,
        answerer.model,
        wanted is not None,
    ):
        return None
    pairs = [
        ("split", result.meta.get("split"), setting.benchmark.split),
        ("rows", result.meta["counts"]["rows"], setting.benchmark.rows),
        ("answerer's longest edge", result.settings.get("longest_edge"), answerer.longest_edge),
        ("answerer's min pixels", result.settings.get("min_pixels"), answerer.min_pixels),
        ("answerer's max pixels", result.settings.get("max_pixels"), answerer.max_pixels),
    ]
    if wanted is not None:
        known = {cropper.model: cropper for cropper in claims.croppers.values()}
        used = known.get(result.boxes.cropper) if result.boxes else None
        if used is None or (used.stage, used.reward) != (wanted.stage, wanted.reward):
            return None
        edge = result.boxes.meta["settings"].get("longest_edge")
        pairs += [
            ("cropper's longest edge", edge, wanted.longest_edge),
            ("cropper trained on", used.trained_on, wanted.trained_on),
        ]
    return tuple(f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if theirs not in (None, ours))


def judge(claims: Claims, results: Sequence[Result], command: Callable[[Sequence[Setting]], str]) -> list[Verdict]:
    """Return the verdict on every figure, then on every claim. command: what would run settings."""
    matches = {setting: match(setting, results, claims) for setting in claims.settings}
    figures = [judge_figure(figure, matches, command) for figure in claims.figures]
    return figures + [judge_claim(claim, matches, command) for claim in claims.claims]


def judge_figure(figure: Figure, matches: dict[Setting, Match | None], command: Callable) -> Verdict:
    """Return the verdict on a figure: within the tolerance, or the reported value within the interval."""
    head = {"title": figure.title, "kind": "figure", "reported": figure.reported}
    run = [setting for setting in figure.settings if matches[setting]]
    missing = [setting for setting in figure.settings if not matches[setting]]
    if missing and (not run or figure.unknown is None):
        return Verdict(**head, verdict=NOT_RUN, reason=command(list(dict.fromkeys(missing))))
    parts = [_values(matches[setting], figure.metric) for setting in run]
    ours, interval = _mean([value for value, _ in parts]), interval_95(_mean([means for _, means in parts]))
    head |= {"ours": ours, "difference": ours - figure.reported, "interval_95": interval, "over": _over(run, missing)}
    reasons = [figure.unknown] if figure.unknown else _reasons(run, matches)
    if reasons:
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join(reasons))
    close = abs(ours - figure.reported) <= figure.tolerance + ROUNDING
    good = close or interval[0] - ROUNDING <= figure.reported <= interval[1] + ROUNDING
    return Verdict(**head, verdict=REPRODUCED if good else NOT_REPRODUCED)


def judge_claim(claim: Claim, matches: dict[Setting, Match | None], command: Callable) -> Verdict:
    """Return the verdict on a claim, over the benchmarks for which all of its settings have run."""
    head = {"title": claim.says, "kind": "claim", "reported": bar(claim)}
    columns = list(zip(*filter(None, (claim.score, claim.over, claim.of)), strict=True))  # by benchmark
    run = [column for column in columns if all(matches[setting] for setting in column)]
    missing = [setting for column in columns for setting in column if not matches[setting]]
    if not run:
        return Verdict(**head, verdict=NOT_RUN, reason=command(list(dict.fromkeys(missing))))
    found = [[matches[setting] for setting in column] for column in run]
    parts = [_difference(column[0], column[1] if claim.over else None, claim.metric) for column in found]
    ours, means = _mean([value for value, _ in parts]), _mean([means for _, means in parts])
    if claim.of:
        ways = [_difference(column[2], column[1], claim.metric) for column in found]
        way = _mean([value for value, _ in ways])
        if way == 0:
            reason = "its settings `of` and `over` score the same"
            return Verdict(**head, verdict=NOT_COMPARABLE, ours=ours, reason=reason)
        with np.errstate(divide="ignore", invalid="ignore"):
            ours, means = 100 * ours / way, np.nan_to_num(100 * means / _mean([means for _, means in ways]))
    interval = interval_95(means)
    benchmarks = [column[0] for column in run]
    head |= {"ours": ours, "interval_95": interval, "over": _over(benchmarks, missing)}
    bars = [value for value in (claim.at_least, claim.at_most) if value is not None]
    head["difference"] = ours - bars[0] if bars else None
    if reasons := _reasons([setting for column in run for setting in column], matches):
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join(reasons))
    return Verdict(**head, verdict=REPRODUCED if keeps_bar(claim, ours, interval) else NOT_REPRODUCED)


def keeps_bar(claim: Claim, value: float, interval: tuple[float, float]) -> bool:
    """Return whether a value is at least and at most the claim's bars; without bars, whether all of it is above 0."""
    if claim.at_least is None and claim.at_most is None:
        return interval[0] > 0
    low = claim.at_least is None or value >= claim.at_least - ROUNDING
    return low and (claim.at_most is None or value <= claim.at_most + ROUNDING)


def bar(claim: Claim) -> str:
    """Return the bar in words."""
    bars = {"at least": claim.at_least, "at most": claim.at_most}
    return " and ".join(f"{word} {value:g}" for word, value in bars.items() if value is not None) or "above 0"


def _values(found: Match, metric: str) -> tuple[float, np.ndarray]:
    """Return the mean of a result and its bootstrap means."""
    scored, values = found.result.scored, found.result.values(metric)
    return float(values @ scored.weights), bootstrap_means(values, scored.weights, scored.questions)


def _difference(score: Match, over: Match | None, metric: str) -> tuple[float, np.ndarray]:
    """Return a result's mean, or its mean difference from another's, and the bootstrap means; paired by question."""
    if over is None:
        return _values(score, metric)
    first, second = score.result, over.result
    if _ids(first) != _ids(second):  # not comparable either, which `match` has said
        (mean, means), (other, other_means) = _values(score, metric), _values(over, metric)
        return mean - other, means - other_means
    values = first.values(metric) - second.values(metric)
    weights, questions = first.scored.weights, first.scored.questions
    return float(values @ weights), bootstrap_means(values, weights, questions)


def _ids(result: Result) -> list:
    ids = list(result.rows["question_id"])
    return [ids[i] for i in result.scored.indices]


def _mean(parts: Sequence) -> Any:
    """Return the mean over benchmarks, of numbers or of arrays."""
    return sum(parts) / len(parts)


def _reasons(settings: Sequence[Setting], matches: dict[Setting, Match | None]) -> list[str]:
    """Return in what the results differ from their settings, each once."""
    several = len({setting.benchmark for setting in settings}) > 1
    return list(
        dict.fromkeys(
            f"{setting.benchmark.name}: {difference}" if several else difference
            for setting in settings
            for difference in matches[setting].differences
        )
    )


def _over(run: Sequence[Setting], missing: Sequence[Setting]) -> str:
    """Return the benchmarks that a mean is over, where some have not run."""
    return ", ".join(dict.fromkeys(setting.benchmark.name for setting in run)) if missing else ""


def failed(verdicts: Sequence[Verdict]) -> bool:
    """Return whether a figure or claim was run and not reproduced."""
    return any(verdict.verdict == NOT_REPRODUCED for verdict in verdicts)
