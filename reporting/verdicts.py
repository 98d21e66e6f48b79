"""Verdicts on figures and claims, by equivalence.

A figure is reproduced where the 95% interval lies within reported +- margin, a claim where it lies beyond the bar
(above 0 without one); not reproduced where it lies on the other side; else inconclusive: the questions are too few.
What was made with other models, data or settings than the file names is not comparable, and the report says in what.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cropvlm.runs.scoring import bootstrap_means, interval_95
from reporting.claims import Claims, Item, Setting
from reporting.matching import Match, matches
from reporting.need import over_random
from reporting.results import Result

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_COMPARABLE, NOT_RUN = "not comparable", "not run"
ROUNDING = 1e-9  # points: weighted sums are not exact, and 70 of 100 questions keep a bar of 70
ALONE = "on these questions alone: the score is within its tolerance, and of others it says nothing"


@dataclass(frozen=True)
class Verdict:
    """A line of the report. runs: the trainings that `ours` is the mean of. spread: its deviation over them."""

    title: str
    kind: str  # figure or claim
    reported: float | str  # the figure, or the bar in words
    verdict: str
    ours: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    reason: str = ""  # why it is not comparable, what would decide it, or the commands that would run it
    margin: float | None = None
    over: str = ""  # the benchmarks and the number of trainings, where not all have run
    runs: int = 1
    spread: float | None = None


def judge(
    runs: Sequence[Claims], results: Sequence[Result], command: Callable[[Sequence[Setting]], str]
) -> list[Verdict]:
    """Return the verdict on every figure, then on every claim.

    runs: the claims file for each of several trainings. command: what would run settings.
    """
    found = [matches(claims, results) for claims in runs]
    return [judge_one(items, found, command) for items in zip(*(claims.items for claims in runs), strict=True)]


def judge_one(
    items: Sequence[Item], matches: Sequence[dict[Setting, Match | None]], command: Callable[[Sequence[Setting]], str]
) -> Verdict:
    """Return the verdict on a figure or claim, over the runs and benchmarks for which all of its settings have run.

    items, matches: one for each run.
    """
    item = items[0]
    head = {"title": item.title, "kind": item.kind, "reported": item.reported, "margin": item.margin}
    # [run][benchmark][score, over, of]
    found = [[[of_run[s] for s in c] for c in part.columns] for part, of_run in zip(items, matches, strict=True)]
    complete = [run for run in found if any(map(all, run))]
    covered = [b for b in range(len(item.columns)) if complete and all(all(run[b]) for run in complete)]
    if item.unknown and not covered:
        return Verdict(**head, verdict=NOT_COMPARABLE, reason=item.unknown)
    if not covered or (item.kind == "figure" and not item.unknown and len(covered) < len(item.columns)):
        wanted = [(s, of_run) for part, of_run in zip(items, matches, strict=True) for c in part.columns for s in c]
        missing = dict.fromkeys(part for s, of_run in wanted for part in s.answered if not of_run[part])
        return Verdict(**head, verdict=NOT_RUN, reason=command([*missing]))
    used = [[run[b] for b in covered] for run in complete]
    parts = [item.columns[b][0].benchmark.name for b in covered] if len(covered) < len(item.columns) else []
    parts += [f"{len(used)} of {len(items)} trainings"] if len(used) < len(items) else []
    head["over"] = ", ".join(parts)
    if all(run == used[0] for run in used):  # as without a cropper
        used = used[:1]
    reasons = [item.unknown] if item.unknown else _reasons(used, len(covered) > 1)
    if any(part.result.asked != column[0].result.asked for run in used for column in run for part in column):
        counts = sorted({len(part.result.scored.ids) for part in used[0][0]})
        reasons.insert(0, f"{' and '.join(map(str, counts))} questions are compared, which are not the same")
    elif evidence := gather(used, item):
        ours, interval, head["spread"], head["runs"], _ = evidence
        head |= {"ours": ours, "interval_95": interval}
        head["difference"] = None if item.nearest is None else ours - item.nearest
    else:
        reasons.insert(
            0, "the interval of the way from `over` to `of` does not lie above 0: a share of it means nothing"
        )
    if reasons:
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join(reasons))
    verdict, reason = decide(item, (ours, ours) if item.alone else interval, evidence)
    if item.alone:
        reason = ALONE if verdict == REPRODUCED else ""
    return Verdict(**head, verdict=verdict, reason=reason)


class Evidence(NamedTuple):
    """The value of a figure or claim over several runs. spread: its standard deviation over them, None for one run."""

    value: float
    interval: tuple[float, float]
    spread: float | None
    runs: int
    questions: int


def gather(used: Sequence, item: Item) -> Evidence | None:
    """Return the evidence of matches [run][benchmark][score, over, of]; None for the share of no way."""
    shown = 3 if item.metric == "over_random" else 2
    by_run, draws = pooled([[_difference(column[:shown], item) for column in run] for run in used])
    value = by_run.mean()
    if len(used[0][0]) == 1:
        draws = draws.clip(0, 100)  # the widening of few runs may lead beyond what a score can be
    if len(used[0][0]) > shown:
        way, ways = pooled([[_difference(column[:0:-1], item) for column in run] for run in used])
        if interval_95(ways)[0] <= ROUNDING:
            return None
        # The same samples of runs and questions above and below: a ratio of means, not a mean of ratios.
        value, by_run, draws = 100 * value / way.mean(), 100 * by_run / way, 100 * draws / ways
    questions = sum(len(set(_rows(column[0].result, item)[1])) for column in used[0])
    spread = float(by_run.std(ddof=1)) if len(used) > 1 else None
    return Evidence(float(value), interval_95(draws), spread, len(used), questions)


def pooled(parts: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over benchmarks in each run, (S,), and over bootstrap samples of runs and questions, (R,).

    parts: [run][benchmark] of a value and its means over bootstrap samples of the questions, (R,).
    """
    values = np.array([np.mean([value for value, _ in run]) for run in parts])
    means = np.array([np.mean([means for _, means in run], axis=0) for run in parts])  # (S, R)
    runs, n = means.shape
    if runs == 1:
        return values, means[0]
    centre = means.mean(axis=0)
    # A sample of S runs varies by (S - 1) / S of what S runs vary by: half, of two.
    spread = (means - centre) * math.sqrt(runs / (runs - 1))
    drawn = np.random.default_rng(0).integers(runs, size=(runs, n))
    return values, centre + spread[drawn, np.arange(n)].mean(axis=0)


def _difference(column: Sequence[Match], item: Item) -> tuple[float, np.ndarray]:
    """Return a result's mean, or its mean difference from a second one's, and the bootstrap means, by question.

    Questions that all agree say nothing of one in 3/n others: then such a share of them, drawn anew for each sample,
    lies at one end of the scale. For `over_random` the value is the advantage over the same number of crops at random,
    where a second result has no crop and a third has all.
    """
    results = [found.result for found in column]
    rows, questions, weights = _rows(results[0], item)
    if item.metric == "over_random":
        _, never, always = (result.scored.scores[rows] for result in results)
        values = over_random(results[0].cropped[rows], always - never, weights)
    else:
        first, *others = (result.values(item.metric)[rows] for result in results)
        values = first - others[0] if others else first
    means = bootstrap_means(values, weights, questions)
    if np.ptp(values) == 0:
        rng = np.random.default_rng(0)
        ends = rng.choice([0.0 if len(results) == 1 else -100.0, 100.0], len(means))
        means += rng.beta(1, len(set(questions)), len(means)) * (ends - means)  # P(share > x) = (1 - x)^n
    return float(values @ weights), means


def _rows(result: Result, item: Item) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return which scored rows a figure or claim is about, and their questions and weights."""
    scored, widths = result.scored, item.widths
    if widths is None:
        return np.arange(len(scored.scores)), scored.questions, scored.weights
    boxes = list(result.rows["true_bbox"])
    sizes = [boxes[i][2] - boxes[i][0] for i in scored.indices]
    rows = np.array([k for k, width in enumerate(sizes) if widths[0] <= width <= widths[1]])
    return rows, [scored.questions[k] for k in rows], scored.weights[rows] / scored.weights[rows].sum()


def decide(item: Item, interval: tuple[float, float], evidence: Evidence) -> tuple[str, str]:
    """Return the verdict on an interval, and if it holds a bar what would decide."""
    low, high = interval
    inside = min(low - item.least, item.most - high)  # how far it lies on the right side
    if inside > ROUNDING or (inside >= -ROUNDING and not item.strict):
        return REPRODUCED, ""
    if max(item.least - high, low - item.most) > ROUNDING:
        return NOT_REPRODUCED, ""
    distance = min(abs(evidence.value - bar) for bar in (item.least, item.most))
    return INCONCLUSIVE, what_would_decide(distance, (high - low) / 2, evidence)


def what_would_decide(distance: float, half: float, evidence: Evidence) -> str:
    """Return how many questions, or trainings, would make an interval as narrow as the distance to the nearest bar.

    half: of the interval. Its width falls with the root of the number.
    """
    if distance <= half / 100:
        return "it lies on the bar, so no number of questions would decide"
    _, _, spread, runs, questions = evidence
    of_runs = 1.96 * (spread or 0) / math.sqrt(runs)
    left = distance**2 - max(half**2 - of_runs**2, 0)  # what the questions leave to the runs
    if of_runs > 0.7 * half and left > 0:
        return f"about {math.ceil(runs * of_runs**2 / left)} trainings would decide; there are {runs}"
    return f"about {math.ceil(questions * (half / distance) ** 2)} questions would decide; there are {questions}"


def _reasons(used: Sequence, several: bool) -> list[str]:
    """Return why results are not comparable, each reason once. several: benchmarks, which are named then."""
    found = []
    for column in (column for run in used for column in run):
        results = [part.result for part in column]
        reasons = [d for part in column for d in part.differences] + [r.failures for r in results if r.failures]
        for key in ("max_new_tokens", "dtype", "image_fit", "model_files"):
            of_model = [r.settings.get(key) for r in results if r.answerer == results[0].answerer]
            values = dict.fromkeys(str(value) for value in of_model if value is not None)
            if len(values) > 1:
                reasons.append(f"answers with {key} {' and '.join(values)} are compared")
        found += [f"{results[0].benchmark}: {reason}" if several else reason for reason in reasons]
    return list(dict.fromkeys(found))
