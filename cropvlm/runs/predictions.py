"""Prediction files: records, meta file, atomic writing, joining on question_id.

A prediction file is a JSON list of `{"question_id": ..., "answer": ...}` in data set order. No torch in here.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropvlm.errors import UserError, failure, listed, shorten
from cropvlm.runs import provenance
from cropvlm.runs.files import check_writable, write_json
from cropvlm.runs.provenance import hash_of

KINDS = {"cropper": "boxes", "answerer": "answers"}  # role of a model in a meta file -> what it writes
SOURCE = ("dataset_path", "dataset", "split", "max_samples")  # keyword arguments of `load_rows`
META_TYPES = dict.fromkeys(SOURCE[:3], str) | {"max_samples": int, "settings": dict, "failed": list, "left_out": list}


def meta_path(path: str | Path) -> Path:
    """The meta file of a prediction file: `textvqa_bbox.json` -> `textvqa_bbox.meta.json`."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".meta.json")


def build_meta(
    source: dict, models: dict, settings: dict, counts: dict, failed: Sequence[dict] = (), known: dict | None = None
) -> dict[str, Any]:
    """The content of a meta file (docs/files.md).

    source: keyword arguments of `load_rows`, by which the next stage sees the same rows. counts: rows, invalid boxes,
    seconds and the like. failed: `question_id` and `reason` of each row without an answer. known: checksums of inputs.
    """
    return {
        **{key: source.get(key) for key in SOURCE},
        "models": {role: sorted(name) if isinstance(name, set) else name for role, name in models.items()},
        **(known or {}),
        "settings": settings,
        "versions": provenance.library_versions(),
        "counts": counts | provenance.peak_memory(),
        "failed": list(failed),
    }


def write_predictions(path: str | Path, records: list[dict], meta: dict) -> None:
    """Write the meta file, then the prediction file: where the latter exists, both are complete.

    Of the records, `question_id` (str or int, type kept), `answer` (str) and the `need` of a box are written.
    """
    check_output(path)
    write_json(meta_path(path), meta)
    write_json(path, [{key: r[key] for key in ("question_id", "answer", "need") if key in r} for r in records])


def check_output(path: str | Path) -> None:
    """Make the folder of a prediction file. Raises `UserError` if it or its meta file cannot be written."""
    check_writable(path)
    check_writable(meta_path(path))


def read_predictions(path: str | Path) -> list[dict]:
    """The records of a prediction file, in its order. Raises `UserError` for any other file."""
    records = _read_json(path)
    for record in records if isinstance(records, list) else [records]:
        known = record if isinstance(record, dict) else {}
        if type(known.get("question_id")) not in (str, int) or type(known.get("answer")) is not str:
            expected = 'expected a JSON list of {"question_id": ..., "answer": ...}'
            raise UserError(f"{path} is not a prediction file: it holds {shorten(repr(record))}, {expected}")
    return records


def read_meta(path: str | Path) -> dict:
    """The meta of the prediction file `path`; empty without a meta file. Raises `UserError` for any other content."""
    if not meta_path(path).exists():
        return {}
    meta = _read_json(meta_path(path))
    if not isinstance(meta, dict):
        raise UserError(f"{meta_path(path)} is not a meta file: it holds {shorten(repr(meta))}, expected an object")
    for key, kind in META_TYPES.items():
        if type(value := meta.get(key)) not in (kind, type(None)):
            expected = f"expected a value of type {kind.__name__} or null"
            raise UserError(f"{meta_path(path)}: {key} is {shorten(repr(value))}, {expected}")
    return meta


def rows_of(meta: dict, rows: Any) -> Any:
    """The rows of a `Dataset` that the prediction file with this meta holds: all but those that it leaves out."""
    left_out = set(meta.get("left_out") or [])
    return rows.select([i for i, question_id in enumerate(rows["question_id"]) if question_id not in left_out])


@dataclass(frozen=True)
class PredictionFile:
    """A prediction file: its records and its meta file (empty without one)."""

    path: Path
    meta: dict[str, Any]
    records: list[dict]

    @property
    def name(self) -> str | None:
        """`textvqa` for predictions/textvqa_bbox.json; None for a file with another kind of name."""
        match = re.fullmatch(r"(.+)_bbox", self.path.stem)
        return match and match[1]

    @property
    def cropper(self) -> str:
        return self.meta["models"]["cropper"]

    def needs(self, ids: Sequence[str | int]) -> list[float]:
        """The need of the rows with these question ids, 0 for one that failed. `UserError` without `--need`'s."""
        known = {record["question_id"]: record.get("need") for record in self.records}
        known |= {row["question_id"]: 0.0 for row in self.meta.get("failed") or []}
        found = [known[question_id] for question_id in ids]
        if not all(isinstance(need, int | float) for need in found):
            raise UserError(f"--need_threshold: {self.path} lacks the need of some rows; expected boxes of --need")
        return found

    def key(self, rows: int) -> str:
        """A hash of the first `rows` texts, by which the settings of answers know these boxes."""
        return hash_of(json.dumps([record["answer"] for record in self.records[:rows]]))

    def known(self) -> dict[str, Any]:
        """Their checksum and their cropper, for the meta file of answers."""
        return {"checksum": provenance.file_checksum(self.path), "cropper": self.meta.get("cropper")}


def read_file(path: str | Path, role: str) -> PredictionFile:
    """A file of boxes (role `cropper`) or answers (`answerer`). `UserError` for others, as far as its meta knows."""
    meta = read_meta(path)
    models = meta.get("models")
    named = [name for name in KINDS if isinstance(models, dict) and name in models]
    if named and role not in named:
        raise UserError(f"{path} holds {KINDS[named[0]]}, by its meta file; expected {KINDS[role]}")
    return PredictionFile(Path(path), meta, read_predictions(path))


def check_same_data(file: PredictionFile, rows: Any, keys: list[int] | None = None) -> None:
    """Raise `UserError` if a file was made from other rows than `rows`, by its meta.

    keys: of `row_keys`; None compares no images. References count if both have some.
    """
    recorded = (file.meta.get("settings") or {}) | (file.meta.get("data") or {})
    now = {"images": keys and hash_of(json.dumps(keys)), "references": provenance.references_hash(rows)}
    if "question" in rows.column_names:
        now["questions"] = provenance.questions_hash(rows)
    changed = [name for name, value in now.items() if value and recorded.get(name) not in (None, value)]
    if changed:
        seen = f"the {' and '.join(changed)} of {shorten(str(file.meta.get('dataset_path')))} have changed since it"
        raise UserError(f"{file.path}: {seen} was made; restore that data set, or run the step again")


def join_on_question_id(records: list[dict], rows: Any, name: str = "the prediction file") -> list[str]:
    """The answers of `records` in the order of `rows`, joined on `question_id` (7 and "7" are two ids).

    rows: a `datasets.Dataset` or a list of dicts. name: of `records`, for messages. Raises `UserError`, naming a few,
    if ids are missing, duplicate or unknown.
    """
    # The column alone: going through the rows of a Dataset would read every image.
    row_ids = list(rows["question_id"]) if hasattr(rows, "column_names") else [row["question_id"] for row in rows]
    record_ids = [record["question_id"] for record in records]
    known, given = set(row_ids), set(record_ids)
    faults = {
        "missing": [i for i in row_ids if i not in given],
        "duplicate": [i for i, count in Counter(record_ids).items() if count > 1],
        "unknown": [i for i in record_ids if i not in known],
    }
    if any(faults.values()):
        seen = [f"{len(ids)} {fault}: {listed(list(map(repr, ids)), 5)}" for fault, ids in faults.items() if ids]
        expected = "give the data set, split and number of rows that it was made from"
        raise UserError(f"the question_ids of {name} are not those of the data set ({'; '.join(seen)}); {expected}")
    answers = {record["question_id"]: record["answer"] for record in records}
    return [answers[i] for i in row_ids]


def _read_json(path: str | Path) -> Any:
    with failure(f"cannot read {path}, expected a JSON file"):
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
