"""How the scripts end: a user's mistake is one line on stderr and exit code 2, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR = 2
COMPLETE_WITH_FAILURES = 3


class UserError(ValueError):
    """A mistake of the user's. The message says in one line what was seen, what is expected and the remedy."""


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
