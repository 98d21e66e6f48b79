"""The records that a run keeps beside its output until that is written."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropvlm.errors import UserError
from cropvlm.runs.files import open_locked, writing
from cropvlm.runs.provenance import differences

BEGINNING = b'{"settings": {'  # of every journal


class Journal:
    """The rows that a run has done so far, as JSON lines beside its target, so that a killed run can continue.

    The first line holds the settings that determine the rows' content, not those that only affect the speed. Every
    further line is one row, a dict with `question_id`. The file is locked while the journal is open. A last line cut by
    SIGKILL is dropped.

        with Journal(output, settings) as journal:
            journal.append([{"question_id": 7, "answer": "[0, 0, 50, 50]."}])
            write_predictions(output, [journal.rows[i] for i in ids], meta)
            journal.remove()

    Args:
        target: file or folder that the run will write in the end. The journal is `{target}.journal.jsonl`.
        settings: a value that is missing counts as None.

    Raises `UserError` on entering where another run holds it or wrote it with other settings, where its place is taken
    by something else, and where it cannot be read or written.
    """

    def __init__(self, target: str | Path, settings: dict[str, Any]):
        target = Path(target)
        self.path = target.with_name(target.name + ".journal.jsonl")
        self.settings = json.loads(json.dumps(settings))  # as they will be read back: tuples become lists
        self.rows: dict[str | int, dict] = {}

    def __enter__(self) -> "Journal":
        self._file = open_locked(self.path)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.rows:
            self.remove()  # nothing to keep, as where the model could not be loaded; the lock is still held
        self._file.close()

    def append(self, rows: Iterable[dict]) -> None:
        """Keep `rows`: they are in the file, and in `self.rows` by `question_id`, when this returns."""
        rows = list(rows)
        self._write(rows)
        self.rows.update((row["question_id"], row) for row in rows)

    def remove(self) -> None:
        """Delete the file. Call it when the final file is in place."""
        self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if not content.startswith(BEGINNING[: len(content)]):
            raise self._unreadable(1)
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            header, *rows = [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1)]
            self._check_settings(header["settings"], len(rows))
            self.rows = {row["question_id"]: row for row in rows}
        self._file.truncate(len(whole))  # opened for appending: writing goes on at the new end
        if not whole:
            try:
                self._write([{"settings": self.settings}])
            except UserError:
                self.remove()
                raise

    def _parse(self, number: int, line: bytes) -> dict:
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(line):
                case {"settings": dict()} as header if number == 1:
                    return header
                case {"question_id": str() | int()} as row if number > 1:
                    return row
        raise self._unreadable(number)

    def _unreadable(self, number: int) -> UserError:
        return UserError(f"line {number} of {self.path} is not readable; delete the file to start anew")

    def _check_settings(self, theirs: dict[str, Any], rows_done: int) -> None:
        if found := differences(theirs, self.settings):
            raise UserError(
                f"{self.path} holds {rows_done} rows of a run with other settings ({'; '.join(found)}); "
                "repeat that run to finish it, name another output, or delete the file to start anew"
            )

    def _write(self, rows: list[dict]) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with writing(self.path):
            while data:  # an unbuffered file may take a part
                data = data[self._file.write(data) :]
