"""Files written whole or not at all."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
