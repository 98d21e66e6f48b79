"""Results with and without the crop, paired by question, and where the gain comes from by their controls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.boxes import bbox_area_pct
from cropvlm.errors import UserError
from cropvlm.runs.controls import CONTROLS, other_rows
from cropvlm.runs.scoring import ScoredRows, compare
from reporting.results import Result

BASE, CROP = "no crop", "crop"
# part of the gain -> what it is the difference of
PARTS = {
    "gain": (CROP, BASE),
    "tokens of one more image": ("full_twice", BASE),
    "position": ("no_detail", "full_twice"),
    "detail": (CROP, "no_detail"),
    "place": (CROP, "elsewhere"),
}
TOO_TIGHT, WRONG_PLACE, MISLED, UNEXPLAINED = CAUSES = ("too tight", "wrong place", "misled", "unexplained")


@dataclass(frozen=True)
class Pair:
    """Two results for the same rows: `after`, whose gain is looked at, and `before`. controls: of `after`, by name."""

    after: Result
    before: Result
    controls: dict[str, Result] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.after.name

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """The paired difference, its 95% interval and how many questions moved; see `cropvlm.runs.scoring.compare`."""
        return self.after.scored.compare(self.before.scored)

    @cached_property
    def gains(self) -> np.ndarray:
        """The gain of every scored row in points, (n,)."""
        return self.after.scored.scores - self.before.scored.scores

    @cached_property
    def region_areas(self) -> list[float] | None:
        """The area of each row's true region if the data set has one, else of its box, in percent of the image."""
        if "true_bbox" in self.after.rows.column_names:
            true = list(self.after.rows["true_bbox"])
            return [bbox_area_pct(true[i]) for i in self.after.scored.indices]
        return self.box_areas if self.after.boxes else None

    @property
    def box_areas(self) -> list[float]:
        """The area of each row's box in percent of the image, all of which an invalid box shows."""
        return [bbox_area_pct(bbox) if bbox else 100.0 for bbox in self.after.bboxes]

    @cached_property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The comparison behind each part of the gain, then the crop against each other control; see `compare`."""
        results = {BASE: self.before, CROP: self.after} | self.controls
        used = {name for names in PARTS.values() for name in names}
        others = {f"crop over {name}": (CROP, name) for name in self.controls if name not in used}
        named = {**PARTS, **others}.items()
        return {part: _compare(results[a], results[b]) for part, (a, b) in named if {a, b} <= results.keys()}

    @property
    def stolen(self) -> float | None:
        """Percent of the answers under `partner` that fit the partner's references better than the question's own."""
        if "partner" not in self.controls:
            return None
        rows, scored = self.controls["partner"].all_rows, self.controls["partner"].scored
        partners = dict(zip(rows["question_id"], other_rows("partner", rows), strict=True))
        theirs, known = [partners[question_id] for question_id in scored.ids], list(rows["answers"])
        kept = [k for k, j in enumerate(theirs) if known[j]]
        answers = [scored.answers[k] for k in kept]
        fits = ScoredRows(rows.select([theirs[k] for k in kept]), answers, scored.metric).scores
        return float(100 * (fits > scored.scores[kept]).sum() / len(theirs))

    @cached_property
    def causes(self) -> list[str | None]:
        """The cause of each scored row's loss by the crop, None without one.

        too tight: not with four times the box's area. wrong place: not with the full image in the crop's place. misled:
        with both. unexplained: a control that would tell was not run.
        """
        causes = {"wider": TOO_TIGHT, "full_twice": WRONG_PLACE}
        known = {causes[name]: _by_id(self.controls[name]) for name in causes if name in self.controls}
        otherwise = MISLED if len(known) == len(causes) else UNEXPLAINED

        def cause(question_id: str | int, score: float) -> str:
            return next((cause for cause, scores in known.items() if scores[question_id] >= score), otherwise)

        rows = zip(_by_id(self.before).items(), self.gains, strict=True)
        return [cause(*row) if gain < 0 else None for row, gain in rows]

    @property
    def made_worse(self) -> dict[str, int]:
        """The number of rows that the crop made worse, by cause."""
        return {cause: self.causes.count(cause) for cause in CAUSES}


def pair_up(after: Result, before: Result) -> Pair:
    """Return the pair; `UserError` where the two have not answered the same questions."""
    if after.asked != before.asked:
        counts = f"{len(after.asked)} and {len(before.asked)}"
        raise UserError(f"{after.path} and {before.path} answer different questions: {counts}, not the same")
    return Pair(after, before)


def pairs(results: Sequence[Result], controls: Sequence[Result] = ()) -> list[Pair]:
    """Return each result with crops, paired with the same setting's result without, and its controls."""
    bases = {comparison_key(result): result for result in reversed(results) if not result.with_crop}
    found = []
    for after in results:
        before = bases.get(comparison_key(after)) if after.with_crop else None
        if before and after.asked == before.asked:
            same = [
                r
                for r in controls
                if comparison_key(r) == comparison_key(after) and r.settings.get("boxes") == after.settings.get("boxes")
            ]
            own = {result.control: result for result in same}
            found.append(Pair(after, before, {name: own[name] for name in CONTROLS if name in own}))
    return found


def comparison_key(result: Result) -> tuple:
    """Return what results must share to be compared: rows, and an answerer that sees and writes in the same way."""
    meta = [result.meta.get(key) for key in ("dataset_path", "dataset", "split", "max_samples")]
    sizes = ("longest_edge", "min_pixels", "max_pixels", "image_fit", "max_new_tokens", "dtype", "model_files")
    return *meta, result.answerer, *(result.settings.get(key) for key in sizes)


def _compare(result: Result, other: Result) -> dict[str, Any]:
    """Return the paired difference over the questions that both answer; a control may leave some out."""
    scored, known = result.scored, _by_id(other)
    both = [k for k, question_id in enumerate(scored.ids) if question_id in known]
    others = np.array([known[scored.ids[k]] for k in both])
    weights = scored.weights[both] / scored.weights[both].sum()
    compared = compare(scored.scores[both], others, weights, [scored.questions[k] for k in both])
    return compared | {"questions": len(both)}


def _by_id(result: Result) -> dict[str | int, float]:
    """Return the score of every scored row by its question id, in their order."""
    return dict(zip(result.scored.ids, result.scored.scores.tolist(), strict=True))
