"""Prediction files: records, meta file, atomic writing, joining on question_id; the journal of a running job.

A prediction file is a JSON list of `{"question_id": ..., "answer": ...}` in data set order. No torch in here.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from cropvlm.cli import UserError

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "pillow")


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON, whole or not at all: a temporary file in the same folder becomes `path`.

    A list of dicts gets one line per record. Text is escaped to ASCII, so that any str a model or a server
    returned (lone surrogates too) survives. Raises `UserError` where the file cannot be written.
    """
    if isinstance(obj, list):
        text = "[" + ",".join("\n" + json.dumps(record, allow_nan=False) for record in obj) + "\n]\n"
    else:
        text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_writable(path: str | Path) -> None:
    """Make the folder of the file `path` and see that `path` can be written; `UserError` if it cannot."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is a folder or a device; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: the processes of one launch look at the same time.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another output") from error


def meta_path(path: str | Path) -> Path:
    """The meta file of a prediction file: `textvqa_bbox.json` -> `textvqa_bbox.meta.json`."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".meta.json")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide what a model says, as installed."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def build_meta(
    *,
    dataset_path: str,
    split: str | None,
    max_samples: int | None,
    models: dict[str, str | None],
    settings: dict[str, Any],
    counts: dict[str, Any],
    dataset: str | None = None,
    failed: list[dict] | None = None,
) -> dict[str, Any]:
    """The content of a meta file: the arguments as given, and the versions of the installed libraries.

    `dataset_path`, `split`, `max_samples` and `dataset` are what the next stage hands to `cropvlm.data.load_rows`,
    so that it sees the same rows. `counts` holds rows, invalid boxes and seconds where they mean something,
    `failed` the `question_id` of each row that has no answer, and the `reason`.
    """
    return {
        "dataset_path": str(dataset_path),
        "dataset": dataset,
        "split": split,
        "max_samples": max_samples,
        "models": models,
        "settings": settings,
        "versions": library_versions(),
        "counts": counts,
        "failed": failed or [],
    }


def write_predictions(path: str | Path, records: list[dict], meta: dict) -> None:
    """Write the meta file, then the prediction file: where the latter stands, both are complete.

    Only `question_id` (str or int, type kept) and `answer` (str) of each record are written. Raises
    `ValueError` for a record of another form or a doubled id, `UserError` where the files cannot be written.
    """
    for i, record in enumerate(records):
        if not _is_record(record):
            raise ValueError(f"record {i} is no prediction record: {record!r}")
    if doubled := _doubled([record["question_id"] for record in records]):
        raise ValueError(f"doubled question_id: {_some(doubled)}")
    check_writable(path)
    write_json(meta_path(path), meta)
    write_json(path, [{"question_id": r["question_id"], "answer": r["answer"]} for r in records])


def read_predictions(path: str | Path) -> list[dict]:
    """The records of a prediction file, in its order. Raises `UserError` for whatever is no such file."""
    records = _read_json(path)
    form = 'expected a JSON list of {"question_id": ..., "answer": ...}'
    if not isinstance(records, list):
        raise UserError(f"{path} is no prediction file: it holds a {type(records).__name__}, {form}")
    for i, record in enumerate(records):
        if not _is_record(record):
            raise UserError(f"{path} is no prediction file: item {i} is {repr(record)[:80]}, {form}")
    return records


def read_meta(path: str | Path) -> dict:
    """The meta of the prediction file `path`; empty if there is none beside it. Raises `UserError` if it is none."""
    if not meta_path(path).exists():
        return {}
    meta = _read_json(meta_path(path))
    if not isinstance(meta, dict):
        raise UserError(f"{meta_path(path)} is no meta file: it holds a {type(meta).__name__}, expected an object")
    for key, kind in {"dataset_path": str, "dataset": str, "split": str, "max_samples": int}.items():
        value = meta.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{meta_path(path)}: {key} is {value!r}, expected a value of type {kind.__name__} or null")
    return meta


def join_on_question_id(records: list[dict], rows: Any, name: str = "the prediction file") -> list[str]:
    """The answers of `records` in the order of `rows`, joined on `question_id` (7 and "7" are two ids).

    rows: a `datasets.Dataset` or a list of dicts, with `question_id`. name: what the message calls `records`.
    Raises `UserError`, naming a few, if ids are missing, doubled or strange.
    """
    # The column alone: going through the rows of a Dataset would read every image.
    row_ids = list(rows["question_id"]) if hasattr(rows, "column_names") else [row["question_id"] for row in rows]
    record_ids = [record["question_id"] for record in records]
    known, given = set(row_ids), set(record_ids)
    faults = {
        "missing": [i for i in row_ids if i not in given],
        "doubled": _doubled(record_ids),
        "strange": [i for i in record_ids if i not in known],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(ids)} {fault}: {_some(ids)}" for fault, ids in faults.items() if ids)
        raise UserError(
            f"the question_ids of {name} are not those of the data set ({listed}); "
            "give the data set, split and number of rows that it was made from"
        )
    answers = {record["question_id"]: record["answer"] for record in records}
    return [answers[i] for i in row_ids]


class Journal:
    """The rows that a run has done so far, as JSON lines beside its target, so that a killed run can go on.

    The first line holds the run's settings: what decides the rows' content (models, their dtype, data set, split,
    sizes, prompt), not what only decides the speed (batch size, which GPU). Every further line is one row, a dict with
    `question_id`. The file is locked while the journal is open. A last line cut by SIGKILL is dropped.

        with Journal(output, settings) as journal:
            todo = [i for i in ids if i not in journal.rows]
            ...
            journal.append([{"question_id": 7, "answer": "[0, 0, 50, 50]."}])
            write_predictions(output, [journal.rows[i] for i in ids], meta)
            journal.remove()

    target: file or folder that the run will write in the end. The journal is `{target}.journal.jsonl`.
    Raises `UserError` on entering if another run holds it, if it was written with other settings, or if it is
    not readable or writable.
    """

    def __init__(self, target: str | Path, settings: dict[str, Any]):
        target = Path(target)
        self.path = target.with_name(target.name + ".journal.jsonl")
        self.settings = json.loads(json.dumps(settings))  # as they will be read back: tuples become lists
        self.rows: dict[str | int, dict] = {}

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open_locked()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; name another output") from error
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.rows:
            self.remove()  # nothing to keep, as where the model could not be loaded; the lock is still held
        with contextlib.suppress(OSError):  # a full disk was already reported by append
            self._file.close()

    def append(self, rows: Iterable[dict]) -> None:
        """Keep `rows`: they are in the file, and in `self.rows` by `question_id`, when this returns."""
        rows = list(rows)
        self._write(rows)
        self.rows.update((row["question_id"], row) for row in rows)

    def remove(self) -> None:
        """Delete the file. Call it when the final file stands."""
        self.path.unlink(missing_ok=True)

    def _open_locked(self):
        while True:
            file = self.path.open("a+b")
            try:
                # A record lock belongs to this process alone. flock would pass to forked preprocessing
                # workers, and those outlive a killed parent by seconds: the rerun would be refused.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(f"another run is writing here ({self.path} is locked); wait for it to end") from None
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                return file
            file.close()  # the run that held the lock has meanwhile ended and removed the file: take a new one

    def _load(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))  # opened for appending: writing goes on at the new end
        if not whole:
            return self._write([{"settings": self.settings}])
        header, *rows = [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        self._check_settings(header["settings"], len(rows))
        self.rows = {row["question_id"]: row for row in rows}
        return None

    def _parse(self, number: int, line: bytes) -> dict:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        good = isinstance(row, dict) and (
            isinstance(row.get("settings"), dict) if number == 1 else isinstance(row.get("question_id"), (str, int))
        )
        if not good:
            raise UserError(f"line {number} of {self.path} is not readable; delete the file to start anew")
        return row

    def _check_settings(self, theirs: dict[str, Any], rows_done: int) -> None:
        if theirs == self.settings:
            return
        differing = [
            f"{key} {theirs.get(key)!r} there, {self.settings.get(key)!r} here"
            for key in sorted(theirs.keys() | self.settings.keys())
            if theirs.get(key) != self.settings.get(key)
        ]
        raise UserError(
            f"{self.path} holds {rows_done} rows of a run with other settings ({'; '.join(differing)}); "
            "repeat that run to finish it, name another output, or delete the file to start anew"
        )

    def _write(self, rows: list[dict]) -> None:
        try:
            self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name an existing JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); make it again") from error


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("question_id"), (str, int))
        and not isinstance(record["question_id"], bool)
        and isinstance(record.get("answer"), str)
    )


def _doubled(ids: Iterable[str | int]) -> list[str | int]:
    return [i for i, count in Counter(ids).items() if count > 1]


def _some(ids: list[str | int], limit: int = 5) -> str:
    return ", ".join(repr(i) for i in ids[:limit]) + (", ..." if len(ids) > limit else "")
