"""Answer files with their meta files, boxes and scores, read from a folder."""

import copy
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm.boxes import Bbox, is_not_needed, parse_bbox
from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError, listed
from cropvlm.runs.predictions import PredictionFile, meta_path, read_file, read_meta, rows_of
from cropvlm.runs.provenance import file_checksum, model_checksum
from cropvlm.runs.scoring import ScoredRows, score_file

logger = logging.getLogger(__name__)

_load_rows = functools.cache(load_rows)  # shared by all results with the same source


class Result:
    """An answer file with its meta file, and those of `boxes` that its crops may have been cut by.

    Several croppers may have written the same boxes; then the answers are those of each.
    """

    def __init__(self, path: Path, boxes: Sequence[PredictionFile]):
        self.path, self.file = path, read_file(path, "answerer")
        self.records = self.file.records
        self.meta = meta = checked_meta(path, "models.answerer", "settings.mode", "counts.rows", "counts.seconds")
        self.settings = meta["settings"]
        self.answerer: str = meta["models"]["answerer"]
        self.with_crop: bool = self.settings["mode"] == "cropvlm"
        self.control: str | None = self.settings.get("control")  # what is shown in the crop's place
        self.benchmark = dataset_name(meta["dataset_path"], meta.get("dataset"))
        self.failed = [row["question_id"] for row in meta.get("failed") or []]  # rows without an answer
        recorded, key = (meta.get("boxes") or {}).get("checksum"), self.settings.get("boxes")
        self.box_files = [
            file
            for file in (boxes if key else [])
            if (file_checksum(file.path) == recorded if recorded else file.key(meta["counts"]["rows"]) == key)
        ]
        self.boxes = next(iter(self.box_files), None)
        if key and not self.boxes:
            logger.warning("%s: the box file that it was made with is not in the folder", path)
        size = self.settings.get("longest_edge") or self.settings.get("max_pixels")
        cropper = Path(self.boxes.cropper).name if self.boxes else "crop" if self.with_crop else "no crop"
        self.name = f"{self.benchmark}: {Path(self.answerer).name}{f', {size} px' if size else ''}, {cropper}"

    @property
    def failures(self) -> str:
        """The number of failed rows and some of their ids, in words; empty without any."""
        count = max(len(self.failed), self.meta["counts"].get("failed") or 0)
        named = f" ({listed([repr(i) for i in self.failed], limit=3)})" if self.failed else ""
        return f"{count} rows failed{named}" if count else ""

    @property
    def all_rows(self) -> Any:
        """The rows of the data set."""
        path, *limits = (self.meta.get(key) for key in ("dataset_path", "split", "max_samples"))
        return _load_rows(path, *limits, dataset=self.meta.get("dataset"))

    @functools.cached_property
    def rows(self) -> Any:
        """The rows that were answered, images encoded."""
        return rows_of(self.meta, self.all_rows)

    @functools.cached_property
    def scored(self) -> ScoredRows:
        try:
            return score_file(self.file, self.all_rows)
        except UserError as error:
            raise UserError(f"{self.path} cannot be scored: {error}") from error

    @functools.cached_property
    def asked(self) -> list[tuple]:
        """Id, question and references of each scored row: equal where the same was asked."""
        return list(zip(self.scored.ids, self.scored.asked, map(tuple, self.scored.references), strict=True))

    @functools.cached_property
    def box_records(self) -> list[dict[str, Any]]:
        """The box record of each scored row; empty where the box is unknown."""
        known = {record["question_id"]: record for record in (self.boxes.records if self.boxes else [])}
        return [known.get(question_id, {}) for question_id in self.scored.ids]

    @property
    def box_texts(self) -> list[str | None]:
        """The cropper's text for each scored row; None where it is unknown."""
        return [record.get("answer") for record in self.box_records]

    @functools.cached_property
    def bboxes(self) -> list[Bbox | None]:
        """The box of each scored row, in percent; None for a missing or invalid one."""
        return [parse_bbox(text or "") for text in self.box_texts]

    @property
    def needs(self) -> np.ndarray | None:
        """The need of each scored row's crop, (n,); None where it is not recorded."""
        found = [record.get("need") for record in self.box_records]
        return None if None in found else np.array(found)

    @property
    def cropped(self) -> np.ndarray:
        """Whether each scored row was answered with a crop, (n,)."""
        threshold = self.settings.get("need_threshold")
        if threshold is not None:
            return self.needs >= threshold
        return np.array([self.with_crop and not is_not_needed(text or "") for text in self.box_texts])

    def values(self, metric: str) -> np.ndarray:
        """Return the score of every scored row, or 100 for those among the `refusals` or `crops`."""
        if metric == "refusals":  # empty answers and those without an option; failed rows are not refusals
            return self.scored.refusals * [question_id not in self.failed for question_id in self.scored.ids]
        return 100.0 * self.cropped if metric == "crops" else self.scored.scores


@functools.cache  # of the same two files the same result: runs that share them are one
def at_threshold(after: Result, before: Result, threshold: float) -> Result:
    """Return a result as `after`, with the answers of `before` where a box's need is below a threshold.

    Both answer the same rows. Raises `UserError` where the need of a box is unknown.
    """
    if not after.boxes:
        raise UserError(f"the box file of {after.path} is missing, which has the need of each row")
    made = copy.copy(after)
    made.settings = after.settings | {"need_threshold": threshold}
    full = {record["question_id"]: record for record in before.records}
    needs = after.boxes.needs([record["question_id"] for record in after.records])
    shown = zip(after.records, needs, strict=True)
    made.records = [crop if need >= threshold else full[crop["question_id"]] for crop, need in shown]
    made.scored = ScoredRows(after.rows, [record["answer"] for record in made.records], after.scored.metric)
    return made


def read_folder(folder: str | Path) -> list[Result]:
    """Return the results of all answer files below a folder, sorted by path; `UserError` without any."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with prediction files")
    boxes = read_box_files(folder.rglob("[!.]*_bbox.json"))
    results = [Result(path, boxes) for path in with_meta(folder.rglob("[!.]*_answers.json"))]
    if not results:
        raise UserError(f"{folder} has no answer files (*_answers.json) with meta files; run steps 4 and 5 first")
    return results


def with_meta(paths: Iterable[Path]) -> list[Path]:
    """Return the files that have a meta file, sorted; the others are named in a warning."""
    found = {path: meta_path(path).exists() for path in sorted(paths)}
    for path in found:
        if not found[path]:
            logger.warning("%s has no meta file; left out", path)
    return [path for path in found if found[path]]


def read_box_files(paths: Iterable[Path]) -> list[PredictionFile]:
    """Return those of the box files that have a meta file."""
    paths = with_meta(paths)
    for path in paths:
        checked_meta(path, "models.cropper", "settings", "counts.rows")
    return [read_file(path, "cropper") for path in paths]


def changed_model(meta: dict[str, Any], role: str) -> str | None:
    """Return the local folder of a file's model if it holds another model now; None also where nothing is recorded."""
    path, base = meta["models"].get(role), meta["settings"].get("base_model_path")
    recorded = (meta.get(role) or {}).get("checksum")
    here = recorded and isinstance(path, str) and Path(path).is_dir()
    return path if here and model_checksum(path, base) != recorded else None


def checked_meta(path: Path, *needed: str) -> dict[str, Any]:
    """Return the meta file of a prediction file, which has `needed`, such as `counts.rows`."""
    meta = read_meta(path)
    for name in ("dataset_path", *needed):
        part, _, key = name.partition(".")
        value = meta.get(part)
        if value is None or (key and (not isinstance(value, dict) or key not in value)):
            raise UserError(f"{meta_path(path)} was written by another version, it has no {name}; run its step again")
    return meta
