"""`name@revision`: a model of the Hub at a commit, tag or branch."""

import os
import re


def split_revision(path: str) -> tuple[str, str | None]:
    """Name without its revision, and the revision; None without one, as for a local path.

    >>> split_revision("HuggingFaceTB/SmolVLM-256M-Instruct@v1.0")
    ('HuggingFaceTB/SmolVLM-256M-Instruct', 'v1.0')
    """
    match = re.fullmatch(r"(\w[\w.-]*(?:/[\w.-]+)?)@([\w./-]+)", path)
    if match is None or os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        return path, None
    return match[1], match[2]
