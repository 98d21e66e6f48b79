"""Verdicts on figures and claims, by equivalence.

A figure is reproduced where the 95% interval lies within reported +- margin, a claim where it lies beyond the bar
(above 0 without one); not reproduced where it lies on the other side; else inconclusive: the questions are too few.
What was made with other models, data or settings than the file names is not comparable, and the report says in what.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm.data.catalog import BENCHMARKS, dataset_name
from cropvlm.data.rows import benchmark_for
from cropvlm.errors import UserError
from cropvlm.prompts import BRIEF_ANSWER, answerer_messages, cropper_messages
from cropvlm.runs.predictions import BoxFile
from cropvlm.runs.scoring import bootstrap_means, interval_95
from reporting.claims import Claim, Claims, Cropper, Figure, Setting
from reporting.need import over_random
from reporting.results import Result, changed_model

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_COMPARABLE, NOT_RUN = "not comparable", "not run"
ROUNDING = 1e-9  # points: weighted sums are not exact, and 70 of 100 questions keep a bar of 70


@dataclass(frozen=True)
class Verdict:
    """A line of the report. reported: a figure, or the bar in words. ours, difference, interval_95: points, or None.

    runs: how many trainings it is the mean of. spread: the standard deviation over them.
    """

    title: str
    kind: str  # figure or claim
    reported: float | str
    verdict: str
    ours: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    reason: str = ""  # why it is not comparable, what would decide it, or the commands that would run it
    over: str = ""  # the benchmarks, where not all have run
    runs: int = 1
    spread: float | None = None


@dataclass(frozen=True)
class Match:
    """The result that comes nearest to a setting, and in what it differs."""

    result: Result
    differences: tuple[str, ...]


Matches = dict[Setting, Match | None]


def match(setting: Setting, results: Sequence[Result], claims: Claims) -> Match | None:
    """Return the result for a setting, else the nearest that differs in settings, data or training alone.

    Raises `UserError` where two files with different answers fit.
    """

    def rank(item: Match) -> tuple[int, bool]:
        """Of equal ones, that by the model of the setting's own name comes first."""
        names = {file.cropper for file in item.result.box_files}
        own = setting.cropper is None or setting.cropper.model_on(setting.benchmark.name) in names
        return len(item.differences), not own

    found = [Match(r, d) for r in results if (d := differences(setting, r, claims)) is not None]
    best, *others = sorted(found, key=rank) or [None]
    for other in others:
        if rank(best) == rank(other) and not best.differences and best.result.records != other.result.records:
            first, second = best.result.path, other.result.path
            raise UserError(f"two files for one setting ({setting.title}): {first} and {second}; move one away")
    return best


def differences(setting: Setting, result: Result, claims: Claims) -> tuple[str, ...] | None:
    """Return in what a result differs from a setting; None if it belongs to another one altogether."""
    benchmark, answerer, cropper = setting.benchmark, setting.answerer, setting.cropper
    threshold = result.settings.get("need_threshold")
    shown = (result.benchmark, result.answerer, result.settings["mode"] != "base", result.control, threshold)
    if shown != (benchmark.name, answerer.model, cropper is not None, setting.control, setting.need_threshold):
        return None
    dtype = (result.settings.get("dtype") or "").removeprefix("torch.") or None
    pairs = [
        ("split", result.meta.get("split"), benchmark.split),
        ("rows", result.meta["counts"]["rows"] + len(result.meta.get("left_out") or []), benchmark.rows),
        ("answerer's longest edge", result.settings.get("longest_edge"), answerer.longest_edge),
        ("answerer's min pixels", result.settings.get("min_pixels"), answerer.min_pixels),
        ("answerer's max pixels", result.settings.get("max_pixels"), answerer.max_pixels),
        ("answerer's max_new_tokens", *_if_known(result.settings.get("max_new_tokens"), answerer.max_new_tokens)),
        ("answerer's dtype", *_if_known(dtype, answerer.dtype)),
    ]
    found = [f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if theirs not in (None, ours)]
    if result.settings.get("prompt") not in (None, *_answer_prompts(result)):
        found.append("another prompt of the answerer")
    if changed := changed_model(result.meta, "answerer"):
        found.append(f"{changed} has changed since it answered")
    if benchmark.metric and result.scored.metric != benchmark.metric:
        found.append(f"metric {result.scored.metric} instead of {benchmark.metric}")
    if cropper is not None:
        of_boxes = [
            d for file in _known_boxes(result) if (d := _boxes_differ(setting, result, file, claims)) is not None
        ]
        if not of_boxes:
            return None
        found += min(of_boxes, key=len)
    return tuple(found)


def _if_known(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return both, or nothing to compare where an older meta file does not say."""
    return ours, theirs if ours is not None else None


def _answer_prompts(result: Result) -> list[list[dict]]:
    source = [result.meta.get(key) for key in ("dataset_path", "dataset", "split")]
    own = benchmark_for(*source).instruction
    instruction = BRIEF_ANSWER if own is None else own
    return [answerer_messages("{question}", images, instruction) for images in (1, 2)]


def _known_boxes(result: Result) -> list[BoxFile]:
    """Return the box files of a result; without them, what its own meta file says of the cropper."""
    recorded = (result.meta.get("boxes") or {}).get("cropper")
    kept = {"models": {"cropper": None}, "settings": {}, "cropper": recorded}
    return list(result.box_files) or ([BoxFile(Path(), kept, [])] if recorded else [])


def _boxes_differ(setting: Setting, result: Result, boxes: BoxFile, claims: Claims) -> list[str] | None:
    """Return in what boxes differ from those of a setting's cropper; None if they are another one's.

    What the training recorded decides, and only without a record the name of the model.
    """
    wanted, record = setting.cropper, boxes.meta.get("cropper") or {}
    on = setting.benchmark.name
    named = {cropper.model_on(on): cropper for cropper in claims.croppers.values()}.get(boxes.cropper)
    data = claims.data.get(wanted.trained_on)
    settings = boxes.meta["settings"]
    pairs = [("cropper's longest edge", settings.get("longest_edge"), wanted.longest_edge)]
    pairs.append(("cropper's max_new_tokens", *_if_known(settings.get("max_new_tokens"), 32)))
    names = lambda sources: ", ".join(sorted(set(sources)))  # noqa: E731
    if "stage" in record:
        cost = (record.get("need") or {}).get("crop_cost")
        same = (record["stage"], record.get("reward"), cost) == (wanted.stage, wanted.reward, wanted.crop_cost)
        if boxes.cropper != wanted.model_on(on) and not same:
            return None
        rows = (data.grpo_rows if wanted.base else None) or data.rows if data else None
        pairs += [
            ("cropper's stage", record["stage"], wanted.stage),
            ("cropper's reward", record.get("reward"), wanted.reward),
            ("cropper trained at", record.get("longest_edge"), wanted.longest_edge),
            ("cropper trained on", names(s["name"] for s in record.get("sources", [])), data and names(data.names)),
            ("rows of its training", record.get("rows"), rows),
            ("seed", record.get("seed"), wanted.seed),
            ("steps of its training", record.get("steps"), record.get("planned_steps")),
        ]
        if wanted.base and claims.croppers[wanted.base].training is not None:
            pairs.append(("base", record.get("base"), claims.croppers[wanted.base].model))
    elif named is None or (named.stage, named.reward) != (wanted.stage, wanted.reward):
        return None
    else:
        pairs.append(("cropper trained on", named.trained_on, wanted.trained_on))
    found = [f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if theirs not in (None, ours)]
    if "stage" in record and cost != wanted.crop_cost:
        found.append(f"cropper's crop_cost {cost} instead of {wanted.crop_cost}")
    if settings.get("prompt") not in (None, cropper_messages("{question}")):
        found.append("another prompt of the cropper")
    if changed := changed_model(boxes.meta, "cropper"):
        found.append(f"{changed} has changed since it wrote the boxes")
    if trained_on(setting, result, record, claims):
        found.append("the cropper was trained on it")
    return found


def trained_on(setting: Setting, result: Result, record: dict[str, Any], claims: Claims) -> bool:
    """Whether the rows of a benchmark are among the sources of a cropper or of the one that it starts from."""
    name = setting.benchmark.name
    split = result.meta.get("split") or (BENCHMARKS[name].split if name in BENCHMARKS else None)
    recorded = [(source["name"], source.get("split")) for source in record.get("sources", [])]
    croppers: list[Cropper] = [*claims.bases(setting.cropper), setting.cropper]
    data = [claims.data[c.trained_on] for c in croppers if c.trained_on in claims.data]
    sources = recorded + [(source, "train") for part in data for source in part.names if not recorded]
    # Rows without splits, of either, are all there is.
    return any(dataset_name(source) == name and (None in (split, of) or split == of) for source, of in sources)


def judge(
    runs: Sequence[Claims], results: Sequence[Result], command: Callable[[Sequence[Setting]], str]
) -> list[Verdict]:
    """Return the verdict on every figure, then on every claim.

    runs: the claims file for each of several trainings. command: what would run settings.
    """
    matches = [{setting: match(setting, results, claims) for setting in claims.settings} for claims in runs]
    items = [list(zip(*part, strict=True)) for part in ([c.figures for c in runs], [c.claims for c in runs])]
    return [judge_one(of_runs, matches, command) for part in items for of_runs in part]


def judge_one(items: Sequence[Figure | Claim], matches: Sequence[Matches], command: Callable) -> Verdict:
    """Return the verdict on a figure or claim, over the runs and benchmarks for which all of its settings have run.

    items, matches: one for each run.
    """
    item = items[0]
    never = item.unknown if isinstance(item, Figure) else None
    head = {"title": item.title, "kind": type(item).__name__.lower(), "reported": item.bar}
    # [run][benchmark][score, over, of]
    found = [[[of_run[s] for s in c] for c in part.columns] for part, of_run in zip(items, matches, strict=True)]
    complete = [k for k, run in enumerate(found) if any(map(all, run))]
    covered = [b for b in range(len(item.columns)) if complete and all(all(found[k][b]) for k in complete)]
    missing = [s for part, of_run in zip(items, matches, strict=True) for c in part.columns for s in c if not of_run[s]]
    if never and not covered:
        return Verdict(**head, verdict=NOT_COMPARABLE, reason=never)
    if not covered or (isinstance(item, Figure) and not never and len(covered) < len(item.columns)):
        return Verdict(**head, verdict=NOT_RUN, reason=command(list(dict.fromkeys(missing))))
    used = [[found[k][b] for b in covered] for k in complete]
    if len(covered) < len(item.columns):
        head["over"] = ", ".join(item.columns[b][0].benchmark.name for b in covered)
    reasons = [never] if never else _reasons(used, len(covered) > 1)
    if any(len({tuple(part.result.asked) for part in column}) > 1 for run in used for column in run if len(column) > 1):
        counts = sorted({len(part.result.scored.ids) for part in used[0][0]})
        unpaired = f"{' and '.join(map(str, counts))} questions are compared, which are not the same"
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join([unpaired, *reasons]))
    evidence = Evidence.of(used, item)
    if evidence is None:
        reason = "the interval of the way from `over` to `of` does not lie above 0, so there is no share of it"
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join([reason, *reasons]))
    ours, (low, high) = evidence.value, evidence.interval
    head |= {"ours": ours, "interval_95": (low, high), "runs": len(complete), "spread": evidence.spread}
    head["difference"] = None if item.nearest is None else ours - item.nearest
    if reasons:
        return Verdict(**head, verdict=NOT_COMPARABLE, reason="; ".join(reasons))
    if isinstance(item, Figure) and item.tolerance is not None:
        low = high = ours
    return Verdict(**head, **decide(item, low, high, evidence))


@dataclass(frozen=True)
class Evidence:
    """What runs say of a figure or claim. by_run: its value in each, (S,). draws: of value, (R,), by the bootstrap."""

    value: float
    by_run: np.ndarray
    draws: np.ndarray
    questions: int

    @property
    def interval(self) -> tuple[float, float]:
        return interval_95(self.draws)

    @property
    def spread(self) -> float | None:
        return float(self.by_run.std(ddof=1)) if len(self.by_run) > 1 else None

    @classmethod
    def of(cls, used: Sequence, item: Figure | Claim) -> "Evidence | None":
        """Return the evidence of matches [run][benchmark][score, over, of]; None for the share of no way."""
        shown = 3 if item.metric == "over_random" else 2
        values, means = pooled([[_difference(column[:shown], item) for column in run] for run in used])
        questions = sum(len(set(_rows(column[0].result, item)[1])) for column in used[0])
        if len(used[0][0]) <= shown:
            return cls(float(values.mean()), values, over_runs(means), questions)
        way, ways = pooled([[_difference(column[:0:-1], item) for column in run] for run in used])
        if interval_95(over_runs(ways))[0] <= ROUNDING:
            return None
        # The same samples of runs and questions above and below: a ratio of means, not a mean of ratios.
        draws = 100 * over_runs(means) / over_runs(ways)
        return cls(float(100 * values.mean() / way.mean()), 100 * values / way, draws, questions)


def pooled(parts: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over benchmarks of values and of bootstrap means, for each run: (S,) and (S, R)."""
    values = np.array([np.mean([value for value, _ in run]) for run in parts])
    return values, np.array([np.mean([means for _, means in run], axis=0) for run in parts])


def over_runs(means: np.ndarray) -> np.ndarray:
    """Return means over bootstrap samples of the runs, (R,), from those over samples of questions in each, (S, R)."""
    runs, n = means.shape
    if runs == 1:
        return means[0]
    centre = means.mean(axis=0)
    # A sample of S runs varies by (S - 1) / S of what S runs vary by: half, of two.
    spread = (means - centre) * math.sqrt(runs / (runs - 1))
    drawn = np.random.default_rng(0).integers(runs, size=(runs, n))
    return centre + spread[drawn, np.arange(n)].mean(axis=0)


def _difference(column: Sequence[Match], item: Figure | Claim) -> tuple[float, np.ndarray]:
    """Return a result's mean, or its mean difference from a second one's, and the bootstrap means, by question.

    Of `over_random` that is what a result has over as many crops at random, between a second one and a third.
    """
    results = [found.result for found in column]
    rows, questions, weights = _rows(results[0], item)
    if item.metric == "over_random":
        _, never, always = (result.scored.scores[rows] for result in results)
        values = over_random(results[0].cropped[rows], always - never, weights)
    else:
        first, *others = (result.values(item.metric)[rows] for result in results)
        values = first - others[0] if others else first
    return float(values @ weights), bootstrap_means(values, weights, questions)


def _rows(result: Result, item: Figure | Claim) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return which scored rows a figure or claim is about, and their questions and weights."""
    scored, widths = result.scored, getattr(item, "widths", None)
    if widths is None:
        return np.arange(len(scored.scores)), scored.questions, scored.weights
    boxes = list(result.rows["true_bbox"])
    sizes = [boxes[i][2] - boxes[i][0] for i in scored.indices]
    rows = np.array([k for k, width in enumerate(sizes) if widths[0] <= width <= widths[1]])
    return rows, [scored.questions[k] for k in rows], scored.weights[rows] / scored.weights[rows].sum()


def decide(item: Figure | Claim, low: float, high: float, evidence: Evidence) -> dict[str, str]:
    """Return the verdict on an interval, and if it holds a bar what would decide."""
    inside = [low - bar if sign > 0 else bar - high for sign, bar in item.bars]  # how far it lies on the right side
    outside = [bar - high if sign > 0 else low - bar for sign, bar in item.bars]
    if min(inside) > ROUNDING or (min(inside) >= -ROUNDING and not item.strict):
        return {"verdict": REPRODUCED}
    if max(outside) > ROUNDING:
        return {"verdict": NOT_REPRODUCED}
    distance = min(abs(evidence.value - bar) for _, bar in item.bars)
    return {"verdict": INCONCLUSIVE, "reason": what_would_decide(distance, (high - low) / 2, evidence)}


def what_would_decide(distance: float, half: float, evidence: Evidence) -> str:
    """Return how many questions, or trainings, would make an interval as narrow as the distance to the nearest bar.

    half: of the interval. Its width falls with the root of the number.
    """
    if distance <= half / 100:
        return "it lies on the bar, so no number of questions would decide"
    runs = len(evidence.by_run)
    of_runs = 1.96 * (evidence.spread or 0) / math.sqrt(runs)
    left = distance**2 - max(half**2 - of_runs**2, 0)  # what the questions leave to the runs
    if of_runs > 0.7 * half and left > 0:
        return f"about {math.ceil(runs * of_runs**2 / left)} trainings would decide; there are {runs}"
    questions = math.ceil(evidence.questions * (half / distance) ** 2)
    return f"about {questions} questions would decide; there are {evidence.questions}"


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
