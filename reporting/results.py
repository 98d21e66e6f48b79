"""Answer files with their meta files, boxes and scores, read from a folder."""

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm.boxes import Bbox, parse_bbox
from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import benchmark_for, load_rows
from cropvlm.errors import UserError
from cropvlm.metrics import option_letter
from cropvlm.runs.predictions import BoxFile, join_on_question_id, meta_path, read_meta, read_predictions, rows_of
from cropvlm.runs.scoring import ScoredRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """An answer file, its meta file, the boxes that its crops were cut by (None: full image), and its scores."""

    path: Path
    meta: dict[str, Any]
    records: list[dict]
    boxes: BoxFile | None

    @property
    def settings(self) -> dict[str, Any]:
        return self.meta["settings"]

    @property
    def answerer(self) -> str:
        return self.meta["models"]["answerer"]

    @property
    def with_crop(self) -> bool:
        return self.settings["mode"] == "cropvlm"

    @property
    def control(self) -> str | None:
        """What is shown in the crop's place (`cropvlm.runs.controls`); None for the crop itself, and for no crop."""
        return self.settings.get("control")

    @property
    def need_threshold(self) -> float | None:
        """The need from which on a row got its crop; None where all rows did, or none."""
        return self.settings.get("need_threshold")

    @property
    def box_key(self) -> str | None:
        """What tells the cropper's boxes behind the answers from others."""
        return self.settings.get("boxes")

    @property
    def benchmark(self) -> str:
        return dataset_name(self.meta["dataset_path"], self.meta.get("dataset"))

    @functools.cached_property
    def rows(self) -> Any:
        """The rows that were answered, images encoded."""
        return rows_of(self.meta, self.all_rows)

    @property
    def all_rows(self) -> Any:
        """The rows of the data set; shared by all results with the same source."""
        source = {key: self.meta.get(key) for key in ("dataset_path", "dataset", "split", "max_samples")}
        try:
            return _load_rows(json.dumps(source))
        except UserError as error:
            raise UserError(f"the questions of {self.path} cannot be loaded: {error}") from error

    @functools.cached_property
    def scored(self) -> ScoredRows:
        answers = join_on_question_id(self.records, self.rows, str(self.path))
        source = [self.meta.get(key) for key in ("dataset_path", "dataset", "split")]
        try:
            return ScoredRows(self.rows, answers, benchmark_for(*source).metric)
        except UserError as error:
            raise UserError(f"{self.path} cannot be scored: {error}") from error

    @functools.cached_property
    def bboxes(self) -> list[Bbox | None]:
        """The box of each scored row, in percent; None for a missing or invalid one."""
        if self.boxes is None:
            return [None] * len(self.scored.indices)
        return [parse_bbox(self.boxes.texts[i]) for i in self.scored.indices]

    def values(self, metric: str) -> np.ndarray:
        """Return the score of every scored row, or for `refusals` 100 where an answer is empty or names no option."""
        if metric == "score":
            return self.scored.scores
        letters = self.scored.metric == "letter"
        return np.array([100.0 * (not a or (letters and option_letter(a) is None)) for a in self.scored.answers])


@functools.cache
def _load_rows(source: str) -> Any:
    """Return the rows of a source, JSON of `load_rows`'s arguments; loaded once."""
    return load_rows(**json.loads(source))


def read_folder(folder: str | Path) -> list[Result]:
    """Return the results of all answer files below a folder, sorted by path.

    Files without a meta file are named in a warning and left out. Raises `UserError` without any, or for a
    meta file of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with prediction files")
    boxes = [read_boxes(path) for path in _with_meta(folder.rglob("*_bbox.json"))]
    results = [read_result(path, boxes) for path in _with_meta(folder.rglob("*_answers.json"))]
    if not results:
        raise UserError(f"{folder} has no answer files (*_answers.json) with meta files; run steps 4 and 5 first")
    return results


def _with_meta(paths: Any) -> list[Path]:
    paths = sorted(paths)
    for path in paths:
        if not meta_path(path).exists():
            logger.warning("%s has no meta file; left out", path)
    return [path for path in paths if meta_path(path).exists()]


def read_boxes(path: Path) -> BoxFile:
    """Return a box file with its meta file; `UserError` if either has another form."""
    meta = _checked_meta(path, {"models": ("cropper",), "settings": (), "counts": ("rows",)})
    return BoxFile(path, meta, read_predictions(path))


def read_result(path: Path, boxes: Sequence[BoxFile]) -> Result:
    """Return an answer file with its meta file and, of `boxes`, those that it was made with."""
    meta = _checked_meta(path, {"models": ("answerer",), "settings": ("mode",), "counts": ("rows", "seconds")})
    key = meta["settings"].get("boxes")
    used = None
    if meta["settings"]["mode"] == "cropvlm":
        used = next((file for file in boxes if key == file.key(meta["counts"]["rows"])), None)
        if used is None:
            logger.warning("%s: the box file that it was made with is not in the folder", path)
    return Result(path, meta, read_predictions(path), used)


def _checked_meta(path: Path, needed: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    meta = read_meta(path)
    for part, keys in {"dataset_path": (), **needed}.items():
        value = meta.get(part)
        missing = [key for key in keys if not isinstance(value, dict) or key not in value]
        if value is None or missing:
            name = f"{part}.{missing[0]}" if missing else part
            raise UserError(f"{meta_path(path)} was written by another version, it has no {name}; run its step again")
    return meta
