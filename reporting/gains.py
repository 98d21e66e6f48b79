"""Where a gain comes from: the crop's answers against those of its controls, paired by question."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.runs.controls import CONTROLS, other_rows
from cropvlm.runs.prompt_sources import shared_keys
from cropvlm.runs.scoring import ScoredRows, compare
from reporting.pairs import Pair, setting_key
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
class Gain:
    """The gain of a pair, and the answers of its controls by their names."""

    pair: Pair
    controls: dict[str, Result]

    @cached_property
    def results(self) -> dict[str, Result]:
        return {BASE: self.pair.before, CROP: self.pair.after} | self.controls

    def parts(self) -> dict[str, dict[str, Any]]:
        """The comparison behind each part of the gain, then the crop against each other control; see `compare`."""
        used = {name for names in PARTS.values() for name in names}
        others = {f"crop over {name}": (CROP, name) for name in self.controls if name not in used}
        named = {**PARTS, **others}.items()
        return {part: self._compare(*names) for part, names in named if set(names) <= self.results.keys()}

    def _compare(self, name: str, other: str) -> dict[str, Any]:
        """The paired difference over the questions that both answer."""
        first, second = (scores_by_id(self.results[key]) for key in (name, other))
        both = [k for k, question_id in enumerate(first) if question_id in second]
        ids, scored = [[*first][k] for k in both], self.results[name].scored
        scores, others = (np.array([by_id[i] for i in ids]) for by_id in (first, second))
        weights = scored.weights[both] / scored.weights[both].sum()
        return compare(scores, others, weights, [scored.questions[k] for k in both]) | {"questions": len(ids)}

    @property
    def stolen(self) -> float | None:
        """Percent of the answers under `partner` that fit the partner's references better than the question's own."""
        if "partner" not in self.controls:
            return None
        rows, scored = self.controls["partner"].all_rows, self.controls["partner"].scored
        partners = dict(zip(rows["question_id"], other_rows("partner", *shared_keys(rows)), strict=True))
        theirs = [partners[question_id] for question_id in scores_by_id(self.controls["partner"])]
        known = list(rows["answers"])
        kept = [k for k, j in enumerate(theirs) if known[j]]
        answers = [scored.answers[k] for k in kept]
        fits = ScoredRows(rows.select([theirs[k] for k in kept]), answers, scored.metric).scores
        return float(100 * (fits > scored.scores[kept]).sum() / len(theirs))

    @cached_property
    def causes(self) -> list[str | None]:
        """Why the crop made a scored row worse, None for the others.

        too tight: not with four times the box's area. wrong place: not with the full image in the crop's place. misled:
        with both. unexplained: a control that would tell was not run.
        """
        before = scores_by_id(self.pair.before)
        known = {name: scores_by_id(self.controls[name]) for name in ("wider", "full_twice") if name in self.controls}

        def cause(question_id: Any) -> str:
            regained = [name for name, scores in known.items() if scores[question_id] >= before[question_id]]
            if regained:
                return TOO_TIGHT if regained[0] == "wider" else WRONG_PLACE
            return MISLED if len(known) == 2 else UNEXPLAINED

        return [cause(i) if gain < 0 else None for i, gain in zip(before, self.pair.gains, strict=True)]

    @property
    def made_worse(self) -> dict[str, int]:
        """The number of rows that the crop made worse, by cause."""
        return {cause: self.causes.count(cause) for cause in CAUSES}

    def summary(self) -> dict[str, Any]:
        file = str(self.pair.after.path)
        return {"file": file, "parts": self.parts(), "stolen": self.stolen, "made_worse": self.made_worse}


def gains(pairs: Sequence[Pair], controls: Sequence[Result]) -> list[Gain]:
    """The pairs that have controls: those of the same answerer, image size, rows and boxes."""
    found = []
    for pair in pairs:
        own = [
            r
            for r in controls
            if setting_key(r) == setting_key(pair.after) and r.settings.get("boxes") == pair.after.settings.get("boxes")
        ]
        if own:
            by_name = {result.control: result for result in own}
            found.append(Gain(pair, {name: by_name[name] for name in CONTROLS if name in by_name}))
    return found


def scores_by_id(result: Result) -> dict[str | int, float]:
    """The score of every scored row by its question id, in their order."""
    ids = list(result.rows["question_id"])
    return dict(zip([ids[i] for i in result.scored.indices], result.scored.scores.tolist(), strict=True))
