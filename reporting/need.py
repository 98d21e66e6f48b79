"""Whether to crop: accuracy against cost when the rows with the greatest need alone get their crop.

Both answers of every row are known, so one pair of files whose boxes have a need gives the whole curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.boxes import bbox_area_pct
from cropvlm.runs.scoring import bootstrap_means, interval_95
from reporting.pairs import Pair

MOST_LOST = 1.0  # points that a saving may cost
COLUMNS = ("setting", "never", "always", "decides itself", "crops, %", "over random", "95% interval",
           "largest saving of crops, %", "area above random, points", "precision", "recall",
           "cost: never, itself, always", "the cropper's", "learnt for")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a question costs the answerer without a crop and with one, and the cropper (None: unknown), in `unit`."""

    never: float
    always: float
    cropper: float | None
    unit: str

    def at(self, crops: float) -> float:
        """The answerer's cost where that share of the rows gets a crop."""
        return self.never + crops * (self.always - self.never)


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
        """The largest share of crops saved, in percent, whose paired 95% interval excludes a loss of `MOST_LOST`.

        Looked for in steps of 1%.
        """
        scored, n = self.pair.after.scored, len(self.needs)
        for k in sorted({-(-n * percent // 100) for percent in range(101)}):  # the fewest crops first
            change = np.zeros(n)
            change[self.orders["decide"][k:]] = -self.pair.gains[self.orders["decide"][k:]]
            if change @ scored.weights <= -MOST_LOST:
                continue  # no interval around it excludes the loss, and a bootstrap takes its time
            if interval_95(bootstrap_means(change, scored.weights, scored.questions))[0] > -MOST_LOST:
                return 100 * (n - k) / n
        return 0.0

    def summary(self) -> dict[str, Any]:
        """The curve in numbers; precision and recall of `needed` are over the rows that the crop changed."""
        decide, n = self.accuracies(self.orders["decide"]), len(self.needs)
        scored = self.pair.after.scored
        over = over_random(self.needs >= 0, self.pair.gains, scored.weights)
        random = np.linspace(decide[0], decide[-1], n + 1)
        needed, better, changed = self.needs >= 0, self.pair.gains > 0, self.pair.gains != 0
        hits = int((needed & better).sum())
        return {
            "file": str(self.pair.after.path),
            "learnt_for": ((self.pair.after.boxes.meta.get("cropper") or {}).get("need")),
            "never": float(decide[0]),
            "always": float(decide[-1]),
            "decides_itself": float(decide[self.own_crops]),
            "crops_pct": 100 * self.own_crops / n,
            "over_random": float(over @ scored.weights),
            "over_random_interval_95": interval_95(bootstrap_means(over, scored.weights, scored.questions)),
            "largest_saving_pct": self.saving(),
            "area_above_random": float((decide - random).mean()),
            "precision": hits / int((needed & changed).sum()) if (needed & changed).any() else None,
            "recall": hits / int(better.sum()) if better.any() else None,
        }


def over_random(cropped: np.ndarray, gains: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each row adds to the score over that of as many crops at random, (n,): its share of their covariance.

    cropped: whether a row gets its crop. gains: what the crop gains.
    """
    return (cropped - cropped @ weights) * (gains - gains @ weights)


def need_curves(pairs: Sequence[Pair]) -> list[NeedCurve]:
    """The curves of the pairs whose boxes all have a need, and whose rows all got their crop."""
    found = []
    for pair in pairs:
        needs = pair.after.needs
        if pair.after.settings.get("need_threshold") is None and needs is not None:
            found.append(NeedCurve(pair, needs))
    return found


def need_row(curve: NeedCurve, name: str, cost: Cost) -> tuple[str, ...]:
    """The line of a curve, as `COLUMNS` names it."""
    _, learnt, *values = curve.summary().values()
    points = [cost.never, cost.at(curve.own_crops / len(curve.needs)), cost.always]
    costs = f"{', '.join(f'{point:.4g}' for point in points)} {cost.unit}", cell(cost.cropper)
    return name, *map(cell, values), *costs, f"{learnt['answerer']}, {learnt['longest_edge']} px" if learnt else ""


def cell(value: float | tuple[float, float] | None) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]:+.2f}, {value[1]:+.2f}]"
    return "" if value is None else f"{value:.2f}"
