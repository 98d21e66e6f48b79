"""How the scripts end: a user's mistake is one line on stderr and exit code 2, never a traceback."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

logger = logging.getLogger(__name__)

USER_ERROR = 2
COMPLETE_WITH_FAILURES = 3


class UserError(ValueError):
    """A mistake of the user's. The message says in one line what was seen, what is expected and the remedy."""


def shorten(text: str, limit: int = 100) -> str:
    """One line of `text` with at most `limit` characters: a value in a message may be megabytes of base64."""
    text = " ".join(text[: 2 * limit].split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def one_line(error: BaseException) -> str:
    """What another library's error says, in one line in which no word is longer than 100 characters."""
    words = [shorten(word) for word in str(error)[:1000].split()]
    return shorten(" ".join(words), 300) or type(error).__name__


@contextlib.contextmanager
def remedy(words: str, of: type[UserError] = UserError) -> Iterator[None]:
    """Add to an error of the library what the user can do: `with remedy("leave --longest_edge out", ImageSizeError):`.

    The library says what it saw and expected; only scripts and argument modules know the flags.
    """
    try:
        yield
    except of as error:
        raise UserError(f"{error}; {words}") from error


class ArgumentParser(argparse.ArgumentParser):
    """argparse's own, but for the usage block that it prints above a mistake, and with the module's docstring as is."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 complete, 3 complete with failures listed, 2 for a user's mistake.

    `accelerate launch` makes 1 of 2 and 3, and adds a traceback of its own (ChildFailedError) below the script's lines.
    Only `UserError` is taken for a mistake of the user's; any other exception keeps its traceback.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = USER_ERROR
    sys.exit(code or 0)


def batch_size(text: str) -> int | str:
    """The type of `--batch_size`: a positive number or `auto`."""
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor auto")


def positive(text: str) -> int:
    """The type of flags that count something."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")


def whole_number(text: str) -> int:
    """The type of flags that may be 0."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or more")


def start_logging(args: argparse.Namespace) -> None:
    """Log to stderr, the resolved settings first."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("cropvlm").setLevel(logging.DEBUG if args.verbose else logging.INFO)
    for name in ("httpx", "httpx2"):  # a line per request
        logging.getLogger(name).setLevel(logging.WARNING)
    logger.info("%s", " ".join(f"{key}={value}" for key, value in vars(args).items()))
