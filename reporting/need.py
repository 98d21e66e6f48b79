"""Whether to crop: accuracy against cost when the rows with the greatest need alone get their crop.

Both answers of every row are known, so one pair of files whose boxes have a need gives the whole curve.
"""

from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.runs.scoring import bootstrap_means, interval_95
from reporting.costs import costs
from reporting.gains import Pair

MOST_LOST = 1.0  # points that a saving may cost


class NeedCurve:
    """The curve of a pair whose boxes all have a need.

    orders: who gets a crop first: by need, by the area of the box (small ones first), and by what it gains.
    scores: by the name of an order, where its first k rows get their crop, k = 0..n: (n + 1,).
    needed: whether a row gets a crop where the cropper decides itself, at threshold 0, (n,).
    """

    def __init__(self, pair: Pair):
        self.pair, scored, needs = pair, pair.after.scored, pair.after.needs
        keys = {"decide": -needs, "by box area": np.array(pair.box_areas), "oracle": -pair.gains}
        self.orders = {name: np.argsort(key, kind="stable") for name, key in keys.items()}
        added = {name: np.cumsum((pair.gains * scored.weights)[order]) for name, order in self.orders.items()}
        self.scores = {name: pair.before.scored.mean + np.concatenate([[0.0], sums]) for name, sums in added.items()}
        self.needed = needs >= 0

    @cached_property
    def cost(self) -> dict[str, Any]:
        """The cost of a question to the answerer, without a crop and with one, and to the cropper (None: unknown)."""
        before, after, key = costs(self.pair.before), costs(self.pair.after), "image_tokens_per_question"
        of_cropper, unit = after.get(f"cropper_{key}"), "visual tokens"
        if None in (before[key], after[key]):
            key, of_cropper, unit = "images_per_question", 1, "images"
        return {"never": before[key], "always": after[key], "cropper": of_cropper, "unit": unit}

    @property
    def own_cost(self) -> float:
        """The answerer's cost where the cropper decides itself."""
        never, always = self.cost["never"], self.cost["always"]
        return never + int(self.needed.sum()) / len(self.needed) * (always - never)

    def saving(self) -> float:
        """The largest share of crops saved, in percent, whose paired 95% interval excludes a loss of `MOST_LOST`.

        Looked for in steps of 1%.
        """
        scored, n = self.pair.after.scored, len(self.needed)
        for k in sorted({-(-n * percent // 100) for percent in range(101)}):  # the fewest crops first
            change = np.zeros(n)
            change[self.orders["decide"][k:]] = -self.pair.gains[self.orders["decide"][k:]]
            if change @ scored.weights <= -MOST_LOST:
                continue  # no interval around it excludes the loss, and a bootstrap takes its time
            if interval_95(bootstrap_means(change, scored.weights, scored.questions))[0] > -MOST_LOST:
                return 100 * (n - k) / n
        return 0.0

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The curve in numbers; precision and recall of `needed` are over the rows that the crop changed."""
        decide, scored, needed = self.scores["decide"], self.pair.after.scored, self.needed
        over = over_random(needed, self.pair.gains, scored.weights)
        better, changed = self.pair.gains > 0, self.pair.gains != 0
        hits = int((needed & better).sum())
        return {
            "file": str(self.pair.after.path),
            "learnt_for": (self.pair.after.boxes.meta.get("cropper") or {}).get("need"),
            "never": float(decide[0]),
            "always": float(decide[-1]),
            "decides_itself": float(decide[needed.sum()]),
            "crops_pct": 100 * int(needed.sum()) / len(needed),
            "over_random": float(over @ scored.weights),
            "over_random_interval_95": interval_95(bootstrap_means(over, scored.weights, scored.questions)),
            "largest_saving_pct": self.saving(),
            "area_above_random": float((decide - np.linspace(decide[0], decide[-1], len(decide))).mean()),
            "precision": hits / int((needed & changed).sum()) if (needed & changed).any() else None,
            "recall": hits / int(better.sum()) if better.any() else None,
        }


def over_random(cropped: np.ndarray, gains: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each row's part in the score's advantage over the same number of crops at random, (n,).

    cropped: whether a row gets its crop. gains: of the crop. The advantage is their covariance.
    """
    return (cropped - cropped @ weights) * (gains - gains @ weights)
