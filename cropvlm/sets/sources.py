"""One source of training data as the user names it: a data set, and how much of it."""

import contextlib
import os
from dataclasses import dataclass

from cropvlm.data.catalog import dataset_name
from cropvlm.errors import UserError, shorten


@dataclass(frozen=True)
class Source:
    """A data set. limit: its first so many rows (int), this share of its rows (float), or all (None)."""

    path: str
    name: str
    limit: int | float | None = None


def parse_source(text: str) -> Source:
    """Read `docvqa`, `docvqa=10000` (a cap), `docvqa=0.5` (a share) or the same with a Hub id or folder.

    Raises `UserError` for a limit that gives no row, or an empty name.

    >>> parse_source("lmms-lab/DocVQA:DocVQA=10000")
    Source(path='lmms-lab/DocVQA:DocVQA', name='docvqa', limit=10000)
    """
    path, equals, number = text.rpartition("=")
    limit = None
    if not equals or os.path.exists(text):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        path = text
    else:
        with contextlib.suppress(ValueError):
            limit = int(number) if number.isdecimal() else float(number)
        if limit is None or not (0 < limit <= 1 or (isinstance(limit, int) and limit > 0)):
            raise UserError(
                f"{shorten(text)!r}: expected a number of rows or a share up to 1.0 after =, such as docvqa=0.5"
            )
    if not path.strip():
        raise UserError(f"{text!r}: expected a benchmark, a Hub id or a folder, got an empty name")
    return Source(path, dataset_name(path), limit)
