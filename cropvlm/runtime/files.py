"""Files written whole or not at all."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cropvlm.cli import UserError


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON, whole or not at all: a temporary file in the same folder becomes `path`.

    A list of dicts gets one line per record. Text is escaped to ASCII, so that any str a model or a server
    returned (lone surrogates too) survives. Raises `UserError` where the file cannot be written.
    """
    if isinstance(obj, list):
        text = "[" + ",".join("\n" + json.dumps(record, allow_nan=False) for record in obj) + "\n]\n"
    else:
        text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; `UserError` where the file cannot be written."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
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


def open_locked(path: Path) -> BinaryIO:
    """Open a file for appending and reading; it is locked until it is closed or this process ends.

    Raises:
        UserError: another process holds it.
        OSError: it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        try:
            # A record lock belongs to this process alone. flock would pass to forked preprocessing
            # workers, and those outlive a killed parent by seconds: the rerun would be refused.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another run is writing here ({path} is locked); wait for it to end") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # the run that held the lock has meanwhile ended and removed the file: take a new one


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that is made if need be; the file is removed afterwards.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_locked(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another output") from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
