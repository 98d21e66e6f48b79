"""Whether to crop: accuracy against cost when the rows with the greatest need alone get their crop.

Both answers of every row are known, so one pair of files whose boxes have a need gives the whole curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.boxes import bbox_area_pct
from cropvlm.runs.scoring import standard_error
from reporting.pairs import Pair

MOST_LOST = 1.0  # points that a saving may cost
COLUMNS = ("setting", "never", "always", "decides itself", "crops, %", "largest saving of crops, %",
           "area above random, points", "precision", "recall")  # fmt: skip


@dataclass(frozen=True)
class NeedCurve:
    """The curve of a pair. needs: of its scored rows, (n,)."""

    pair: Pair
    needs: np.ndarray

    def accuracies(self, order: Sequence[int]) -> np.ndarray:
        """The score where the first k rows of `order` get their crop, k = 0..n: (n + 1,)."""
        gains = self.pair.gains * self.pair.after.scored.weights
        return self.pair.before.scored.mean + np.concatenate([[0.0], np.cumsum(gains[order])])

    @cached_property
    def orders(self) -> dict[str, np.ndarray]:
        """Who gets a crop first: by need, by the area of the box (small ones first), and by what it gains."""
        areas = np.array([bbox_area_pct(bbox) if bbox else 100.0 for bbox in self.pair.after.bboxes])
        keys = {"decide": -self.needs, "by box area": areas, "oracle": -self.pair.gains}
        return {name: np.argsort(key, kind="stable") for name, key in keys.items()}

    @property
    def own_crops(self) -> int:
        """The number of rows that get a crop where the cropper decides itself, at threshold 0."""
        return int((self.needs >= 0).sum())

    def saving(self) -> float:
        """The largest share of crops saved, in percent, whose paired 95% interval excludes a loss of `MOST_LOST`."""
        scored, n = self.pair.after.scored, len(self.needs)
        for k in range(n + 1):  # the fewest crops first
            lost = np.zeros(n)
            lost[self.orders["decide"][k:]] = -self.pair.gains[self.orders["decide"][k:]]
            error = standard_error(lost, scored.weights, scored.questions) or 0.0
            if lost @ scored.weights - 1.96 * error > -MOST_LOST:
                return 100 * (n - k) / n
        return 0.0

    def summary(self) -> dict[str, Any]:
        """The curve in numbers; precision and recall of `needed` are over the rows that the crop changed."""
        decide, n = self.accuracies(self.orders["decide"]), len(self.needs)
        random = np.linspace(decide[0], decide[-1], n + 1)
        needed, better, changed = self.needs >= 0, self.pair.gains > 0, self.pair.gains != 0
        hits = int((needed & better).sum())
        return {
            "file": str(self.pair.after.path),
            "never": float(decide[0]),
            "always": float(decide[-1]),
            "decides_itself": float(decide[self.own_crops]),
            "crops_pct": 100 * self.own_crops / n,
            "largest_saving_pct": self.saving(),
            "area_above_random": float((decide - random).mean()),
            "precision": hits / int((needed & changed).sum()) if (needed & changed).any() else None,
            "recall": hits / int(better.sum()) if better.any() else None,
        }


def need_curves(pairs: Sequence[Pair]) -> list[NeedCurve]:
    """The curves of the pairs whose boxes all have a need, and whose rows all got their crop."""
    found = []
    for pair in pairs:
        boxes = pair.after.boxes
        needs = [record.get("need") for record in boxes.records] if boxes else []
        needs = [needs[i] for i in pair.after.scored.indices] if needs else [None]
        if pair.after.settings.get("need_threshold") is None and None not in needs:
            found.append(NeedCurve(pair, np.array(needs)))
    return found


def need_row(curve: NeedCurve, name: str) -> tuple[str, ...]:
    """The line of a curve, as `COLUMNS` names it."""
    _, *values = curve.summary().values()
    return name, *("" if value is None else f"{value:.2f}" for value in values)
