"""Pairs of results for the same questions, such as with and without the crop, and how each question moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cropvlm.boxes import bbox_area_pct
from cropvlm.errors import UserError
from reporting.results import Result


@dataclass(frozen=True)
class Pair:
    """Two results for the same rows: `after`, whose gain is looked at, and `before`."""

    after: Result
    before: Result

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
        rows, indices = self.after.rows, self.after.scored.indices
        if "true_bbox" in rows.column_names:
            true = list(rows["true_bbox"])
            return [bbox_area_pct(true[i]) for i in indices]
        if self.after.boxes is None:
            return None
        return [bbox_area_pct(bbox) if bbox else 100.0 for bbox in self.after.bboxes]


def pair_up(after: Result, before: Result) -> Pair:
    """Return the pair; `UserError` where the two have not answered the same questions."""
    if after.asked != before.asked:
        counts = f"{len(after.asked)} and {len(before.asked)}"
        raise UserError(f"{after.path} and {before.path} answer different questions: {counts}, not the same")
    return Pair(after, before)


def pairs(results: Sequence[Result]) -> list[Pair]:
    """Return every result with crops beside the one of the same answerer, image size and rows without."""
    bases = {setting_key(result): result for result in reversed(results) if not result.with_crop}
    found = [Pair(r, bases[setting_key(r)]) for r in results if r.with_crop and setting_key(r) in bases]
    return [pair for pair in found if pair.after.asked == pair.before.asked]


def setting_key(result: Result) -> tuple:
    """What results must share to be compared: rows, and an answerer that sees and writes in the same way."""
    meta = [result.meta.get(key) for key in ("dataset_path", "dataset", "split", "max_samples")]
    sizes = ("longest_edge", "min_pixels", "max_pixels", "image_fit", "max_new_tokens", "dtype", "model_files")
    return *meta, result.answerer, *(result.settings.get(key) for key in sizes)
