"""The rows that a run has done so far, so that a killed run can go on."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropvlm.cli import UserError
from cropvlm.runtime.files import open_locked


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
            self._file = open_locked(self.path)
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
