"""Answer files with their meta files, boxes and scores, read from a folder."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm.boxes import Bbox, is_not_needed, parse_bbox
from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError, listed
from cropvlm.runs.predictions import BoxFile, meta_path, read_boxes, read_meta, read_predictions, rows_of
from cropvlm.runs.provenance import file_checksum, model_checksum
from cropvlm.runs.scoring import ScoredRows, score_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """An answer file, its meta file, and the box files that its crops may have been cut by (none: full image).

    Several croppers may have written the same boxes; then the answers are those of each.
    """

    path: Path
    meta: dict[str, Any]
    records: list[dict]
    box_files: tuple[BoxFile, ...]

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
    def boxes(self) -> BoxFile | None:
        return self.box_files[0] if self.box_files else None

    @property
    def benchmark(self) -> str:
        return dataset_name(self.meta["dataset_path"], self.meta.get("dataset"))

    @property
    def failures(self) -> str:
        """The rows without an answer, in words; empty without any."""
        ids = [repr(row["question_id"]) for row in self.meta.get("failed") or []]
        count = max(len(ids), self.meta["counts"].get("failed") or 0)
        return f"{count} rows failed" + (f" ({listed(ids, limit=3)})" if ids else "") if count else ""

    @functools.cached_property
    def rows(self) -> Any:
        """The rows that were answered, images encoded."""
        return rows_of(self.meta, self.all_rows)

    @property
    def all_rows(self) -> Any:
        """The rows of the data set; shared by all results with the same source."""
        try:
            path, *limits = (self.meta.get(key) for key in ("dataset_path", "split", "max_samples"))
            return _load_rows(path, *limits, dataset=self.meta.get("dataset"))
        except UserError as error:
            raise UserError(f"the questions of {self.path} cannot be loaded: {error}") from error

    @functools.cached_property
    def scored(self) -> ScoredRows:
        rows = self.all_rows
        try:
            return score_file(self.path, rows)
        except UserError as error:
            raise UserError(f"{self.path} cannot be scored: {error}") from error

    @functools.cached_property
    def asked(self) -> list[tuple]:
        """What tells the scored questions from others: id, question and references of each."""
        return list(zip(self.scored.ids, self.scored.asked, map(tuple, self.scored.references), strict=True))

    @functools.cached_property
    def bboxes(self) -> list[Bbox | None]:
        """The box of each scored row, in percent; None for a missing or invalid one."""
        return [None if text is None else parse_bbox(text) for text in self.box_texts]

    @property
    def needs(self) -> np.ndarray | None:
        """The need of each scored row's crop, (n,); None where the boxes do not say it."""
        needs = {record["question_id"]: record.get("need") for record in (self.boxes.records if self.boxes else [])}
        found = [needs.get(question_id) for question_id in self.scored.ids]
        return None if None in found else np.array(found)

    @property
    def cropped(self) -> np.ndarray:
        """Whether each scored row was answered with a crop, (n,)."""
        threshold = self.settings.get("need_threshold")
        if threshold is not None:
            return self.needs >= threshold
        return np.array([self.with_crop and not is_not_needed(text or "") for text in self.box_texts])

    @functools.cached_property
    def box_texts(self) -> list[str | None]:
        """What the cropper wrote for each scored row; None where that is unknown."""
        texts = {record["question_id"]: record["answer"] for record in (self.boxes.records if self.boxes else [])}
        return [texts.get(question_id) for question_id in self.scored.ids]

    def values(self, metric: str) -> np.ndarray:
        """Return the score of every scored row, for `refusals` 100 where an answer is empty or names no option, or for
        `crops` 100 where it was made with a crop.

        Failed rows are not refusals.
        """
        if metric == "crops":
            return 100.0 * self.cropped
        failed = {row["question_id"] for row in self.meta.get("failed") or []}
        answered = np.array([question_id not in failed for question_id in self.scored.ids])
        return self.scored.scores if metric == "score" else self.scored.refusals * answered


_load_rows = functools.cache(load_rows)


def read_folder(folder: str | Path) -> list[Result]:
    """Return the results of all answer files below a folder, sorted by path.

    Files without a meta file are named in a warning and left out. Raises `UserError` without any, or for a
    meta file of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with prediction files")
    boxes = [read_box_file(path) for path in with_meta(folder.rglob("[!.]*_bbox.json"))]
    results = [read_result(path, boxes) for path in with_meta(folder.rglob("[!.]*_answers.json"))]
    if not results:
        raise UserError(f"{folder} has no answer files (*_answers.json) with meta files; run steps 4 and 5 first")
    return results


def with_meta(paths: Any) -> list[Path]:
    """Return the files that have a meta file, sorted; the others are named in a warning."""
    paths = sorted(paths)
    for path in paths:
        if not meta_path(path).exists():
            logger.warning("%s has no meta file; left out", path)
    return [path for path in paths if meta_path(path).exists()]


def read_box_file(path: Path) -> BoxFile:
    """Return a box file with its meta file; `UserError` if either has another form."""
    _check_meta(path, {"models": ("cropper",), "settings": (), "counts": ("rows",)})
    return read_boxes(path)


def read_result(path: Path, boxes: Sequence[BoxFile]) -> Result:
    """Return an answer file with its meta file and, of `boxes`, those that it was made with."""
    meta = _check_meta(path, {"models": ("answerer",), "settings": ("mode",), "counts": ("rows", "seconds")})
    used: tuple[BoxFile, ...] = ()
    if key := meta["settings"].get("boxes"):
        recorded = (meta.get("boxes") or {}).get("checksum")
        used = tuple(
            file
            for file in boxes
            if (file_checksum(file.path) == recorded if recorded else file.key(meta["counts"]["rows"]) == key)
        )
        if not used:
            logger.warning("%s: the box file that it was made with is not in the folder", path)
    return Result(path, meta, read_predictions(path), used)


def changed_model(meta: dict[str, Any], role: str) -> str | None:
    """Return the local folder of a file's model if it holds another model now; None also where nothing is recorded."""
    path, base = meta["models"].get(role), meta["settings"].get("base_model_path")
    recorded = (meta.get(role) or {}).get("checksum")
    here = recorded and isinstance(path, str) and Path(path).is_dir()
    return path if here and model_checksum(path, base) != recorded else None


def _check_meta(path: Path, needed: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    meta = read_meta(path)
    for part, keys in {"dataset_path": (), **needed}.items():
        value = meta.get(part)
        missing = [key for key in keys if not isinstance(value, dict) or key not in value]
        if value is None or missing:
            name = f"{part}.{missing[0]}" if missing else part
            raise UserError(f"{meta_path(path)} was written by another version, it has no {name}; run its step again")
    return meta
