"""Files and folders written whole or not at all."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cropvlm.errors import UserError

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS without its lock daemon, Lustre without -o flock


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as JSON, as `write_text` does; a list gets one line per record."""
    # ASCII, so that any str a model or a server returned survives, lone surrogates too.
    if isinstance(obj, list):
        text = "[" + ",".join("\n" + json.dumps(record, allow_nan=False) for record in obj) + "\n]\n"
    else:
        text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Raises `UserError` where the file cannot be written."""
    with writing(path), replacing(path) as new, new.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError, of a full disk, a read-only folder or a long name, into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space there and run the same command again" if full else "name another output"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a free name beside `path`; the file or folder that the block makes there then takes the place of `path`.

    Where the block fails, what was there stays as it is. A link at `path` is replaced, not followed. What a killed run
    left behind here is removed.
    """
    path = Path(path)
    new = _temporary(path)
    leftovers = [new]
    try:
        yield new
        if new.is_dir() and path.is_dir():
            path.rename(_temporary(path))  # the system replaces a file in one step, but not a folder
        new.replace(path)
        leftover = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
        leftovers = [other for other in path.parent.iterdir() if leftover.fullmatch(other.name)]
    finally:
        for other in leftovers:
            if other.is_dir() and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    other.unlink()


def check_writable(path: str | Path) -> None:
    """Make the folder of the file `path`; `UserError` where `path` cannot be written. Nothing else is left behind."""
    path = Path(path)
    with writing(path):
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is a folder or a device; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()


def open_to_group(folder: Path) -> None:
    """Give all files below a folder the permissions that the umask asks for, where a library has withheld some."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | ((0o777 if path.is_dir() else 0o666) & ~umask))


def open_locked(path: Path) -> BinaryIO:
    """Open a file, in a new folder if need be, for appending and reading, locked until it is closed.

    Logs a warning on a file system without locks. Raises `UserError` where another process holds it or it cannot be
    written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise UserError(f"{path} is not a regular file; move it, or name another output")
            file = path.open("a+b", buffering=0)  # after an error, nothing waits to be written again
            try:
                # A record lock belongs to this process alone. flock would pass to forked preprocessing
                # workers, and those outlive a killed parent by seconds: the rerun would be refused.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another run is writing here ({path} is locked); wait for it to end") from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                logger.warning("%s lies on a file system without locks: start no second run there", path.parent)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # the run that held the lock has meanwhile ended and removed the file: take a new one


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is removed afterwards. Raises `UserError` as `open_locked` does."""
    with open_locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name that is not taken: a user's own file or link is neither replaced nor followed."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
