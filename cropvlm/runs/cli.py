"""Start and end of every script: flag types, logging, and one line on stderr with exit code 2 for a user's mistake."""

import argparse
import contextlib
import errno
import importlib.util
import io
import logging
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO

from cropvlm.errors import UserError, shorten
from cropvlm.runs.processes import limit_threads, shorten_socket_paths

logger = logging.getLogger(__name__)

USER_ERROR = 2
COMPLETE_WITH_FAILURES = 3
KEY = "OPENAI_API_KEY"  # the variable that holds the key for a server


def flag_error(message: str) -> UserError:
    """A mistake in the flags, in argparse's words, where a value may be very long."""
    return UserError(f"{' '.join(shorten(word, 200) for word in message.split())}; --help lists the flags")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's own, but for the usage block that it prints above a mistake, and with the module's docstring as is."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise flag_error(message)


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 complete, 3 complete with failures listed, 2 for a user's mistake.

    `accelerate launch` makes 1 of 2 and 3, and adds a traceback of its own (ChildFailedError) below the script's lines.
    Any exception but `UserError` keeps its traceback; the cause of a `UserError` is logged for `--verbose`.
    """
    if sys.platform == "linux":  # Python 3.14 would pickle what a worker process gets, and start it anew, for seconds
        multiprocessing.set_start_method("fork", force=True)
    shorten_socket_paths()
    os.environ["MPLBACKEND"] = "agg"  # no script opens a window, and a notebook's backend exists only there
    sys.stdout, sys.stderr = map(_screen, (sys.stdout, sys.stderr))
    code = 0
    try:
        limit_threads()
        _check_datasets()
        code = main()
        print(end="", flush=True)  # here, where an error can still be reported
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        print(f"error: {_line(error)}", file=sys.stderr)
        code = code or USER_ERROR  # 3 if rows or stages failed, although the log is full as well
    try:
        print(end="", flush=True)
    except OSError:  # Python would try again as it ends, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def _check_datasets() -> None:
    """Raise `UserError` where `import datasets` would find something else than the library."""
    spec = importlib.util.find_spec("datasets")
    if spec and spec.origin and not Path(spec.origin).with_name("arrow_dataset.py").exists():
        raise UserError(f"{spec.origin} hides the library `datasets`; move or rename it, or unset PYTHONPATH")


class Screen(io.FileIO):
    """stdout or stderr: a terminal that has gone, or a log whose disk is full, ends no run."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() != 2 and error.errno != errno.EIO:
                raise  # the result cannot be shown
            return len(data)


def _screen(stream: TextIO | None) -> TextIO | None:
    """`stream`; Python's own as a `Screen` that escapes characters it cannot show."""
    if stream is None or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    screen = io.BufferedWriter(Screen(stream.fileno(), "w", closefd=False))
    by_line = stream.line_buffering or stream.write_through  # the latter with PYTHONUNBUFFERED
    return io.TextIOWrapper(screen, stream.encoding, "backslashreplace", line_buffering=by_line)


def _line(error: UserError | OSError) -> str:
    """One line for the user; an OSError says that the disk is full or that the reader of the output has gone."""
    if isinstance(error, OSError):
        first = "" if error.errno == errno.EPIPE else "free space and "
        return f"cannot write: {error.strerror}; {first}run the same command again"
    if error.__cause__ is not None:
        logger.debug("the error's cause:", exc_info=error)
    line = redact(" ".join(f"{error}{_variables_behind(error)}".split()))
    # The value of an unknown flag: a key given as --api_key, for one.
    return re.sub(r"(--?\w*(?:key|token|secret|password)\w*)[= ]\S+?(?=;?(?: |$))", r"\1 ***", line)


def _variables_behind(error: BaseException) -> str:
    """The variables of proxies and of missing certificates, if no HTTP client could be made with them."""
    names = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
    values = {name: os.environ.get(name, "") for each in names for name in (each, each.lower())}
    given = ", ".join(name for name, value in values.items() if value and not Path(value).exists())
    trace = "".join(traceback.format_exception(error)) if given else ""
    return f"; check the environment's {given}" if re.search("httpx2._client.py.*, in __init__", trace) else ""


def redact(text: str) -> str:
    """`text` with `***` for the key. A placeholder such as `EMPTY` or `1234` may be a word of an answer: it stays."""
    key = os.environ.get(KEY, "").strip()
    is_placeholder = len(key) < 4 or (len(key) < 16 and (key.isalpha() or key.isdigit()))
    return text if is_placeholder else text.replace(key, "***")


class RedactingFormatter(logging.Formatter):
    """Keeps the key for a server out of the log, whoever logs it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def start_logging(args: argparse.Namespace | None = None) -> None:
    """Log to stderr: what this project says, with the resolved settings first, and the warnings of its libraries.

    `args.verbose` adds this project's details.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each retry
    level = logging.DEBUG if getattr(args, "verbose", False) else logging.INFO
    for name in ("cropvlm", "miniature", "__main__"):
        logging.getLogger(name).setLevel(level)
    if args is not None:
        logger.info("%s", " ".join(f"{key}={value}" for key, value in vars(args).items()))


# Flag types: what argparse calls with the text of a flag. Their errors say what was expected.


def nonempty(text: str) -> str:
    """The type of flags that name something. An empty text is what an unset variable of the shell leaves."""
    if text.strip():
        return text
    raise argparse.ArgumentTypeError("expected a value, got an empty text; leave the flag out for its default")


def file_name(text: str) -> str:
    """The type of flags that name a file within a folder."""
    if "/" not in nonempty(text):
        return text
    raise argparse.ArgumentTypeError(f"{shorten(text)!r}: expected a name without a slash")


def _number(text: str, kind: type, expected: str, least: float = sys.float_info.min, most: float = 1e15) -> float:
    """`text` as a number of `kind` from `least` to `most`: neither nan nor inf."""
    with contextlib.suppress(ValueError):
        if least <= kind(text) <= most:
            return kind(text)
    raise argparse.ArgumentTypeError(f"{shorten(text)!r}: expected {expected}")


positive = partial(_number, kind=int, least=1, expected="a positive integer")
workers = partial(_number, kind=int, least=0, most=256, expected="0 to 256 processes")
# From one pixel no other side can be scaled.
pixels = partial(_number, kind=int, least=2, most=16384, expected="2 to 16384 pixels")
port = partial(_number, kind=int, least=1, most=65535, expected="a port, 1 to 65535")
seconds = partial(_number, kind=float, expected="a number of seconds above 0")
finite = partial(_number, kind=float, least=-1e15, expected="a finite number")
factor = partial(_number, kind=float, expected="a number above 0")
fraction = partial(_number, kind=float, most=1, expected="a number above 0 and up to 1, such as 0.5")


def batch_size(text: str) -> int | str:
    """The type of `--batch_size`: a positive number or `auto`."""
    return text if text == "auto" else positive(text, expected="a positive integer or auto")
