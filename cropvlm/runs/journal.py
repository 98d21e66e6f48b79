"""The records that a run keeps beside its output until that is written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropvlm.errors import UserError, failure
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

    target: file or folder that the run will write in the end. The journal is `{target}.journal.jsonl`.

    Raises `UserError` on entering where another run holds it or wrote it with other settings, where its place is taken
    by something else, and where it cannot be read or written.
    """

    def __init__(self, target: str | Path, settings: dict[str, Any]):
        target = Path(target)
        self.path = target.with_name(target.name + ".journal.jsonl")
        self.settings = settings
        self.rows: dict[str | int, dict] | None = None  # until the file has been found to be this run's

    def __enter__(self) -> "Journal":
        self._file = open_locked(self.path)
        try:
            self._load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.rows == {}:
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
        whole = content[: content.rfind(b"\n") + 1]
        with failure(f"{self.path} is not readable as a journal; delete the file to start anew"):
            if not content.startswith(BEGINNING[: len(content)]):
                raise ValueError("it holds no settings")
            header, *records = map(json.loads, whole.splitlines() or [BEGINNING + b"}}"])
            rows = {record["question_id"]: record for record in records}
        if rows and (found := differences(header["settings"], self.settings)):
            raise UserError(
                f"{self.path} holds {len(rows)} rows of a run with other settings ({'; '.join(found)}); "
                "repeat that run to finish it, name another output, or delete the file to start anew"
            )
        self.rows = rows
        self._file.truncate(len(whole) if rows else 0)  # opened for appending: writing continues at the new end
        if not rows:
            self._write([{"settings": self.settings}])

    def _write(self, rows: list[dict]) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with writing(self.path):
            while data:  # an unbuffered file may take a part
                data = data[self._file.write(data) :]
