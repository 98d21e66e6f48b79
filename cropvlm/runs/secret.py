"""The key for a server is kept out of everything that is printed or written."""

import base64
import functools
import os
import re
from collections.abc import Iterator

KEY = "OPENAI_API_KEY"


def redact(text: str) -> str:
    """`text` with `***` for every copy of the key.

    A copy may be in another case, hexadecimal or base64, escaped for JSON, a URL or HTML, and broken by white space.
    A placeholder such as `EMPTY` or `1234`, as servers of one's own take it, may well be a word of an answer: it stays.
    """
    key = os.environ.get(KEY, "").strip()
    is_placeholder = len(key) < 4 or (len(key) < 16 and (key.isalpha() or key.isdigit()))
    return text if is_placeholder else _copies_of(key).sub("***", text)


@functools.cache
def _copies_of(key: str) -> re.Pattern:
    texts = dict.fromkeys(_in_base64(key))
    first = "".join(
        {re.escape(c) for text in texts for c in text[0]} | {re.escape(key[0].swapcase()), re.escape(key[0])}
    )
    ways = "|".join([f"(?i:{_spelled(key)})", *map(_spelled, texts)])
    # Any copy begins with one of these; looking first makes the search ten times faster.
    return re.compile(rf"(?=[{first}%\\&0-9])(?:{ways})")


def _spelled(text: str) -> str:
    """A pattern for `text` with any character escaped. Repeats are bounded: a hostile text takes linear time."""
    characters = [
        rf"(?:{re.escape(c)}|(?i:(?:%(?:25){{0,4}}|\\(?:u00|x)|&\#x0{{0,6}})?{ord(c):02x};?)|&\#0{{0,6}}{ord(c)};)"
        for c in text
    ]
    return r"(?:\s|\\[nrt]?){0,8}".join(characters)


def _in_base64(key: str) -> Iterator[str]:
    """The characters of the key in the base64 of a longer text, for each place in a group of 3 bytes to begin at."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + key.encode()).decode()
        core = encoded[-(-before * 8 // 6) : (before + len(key.encode())) * 8 // 6]
        if len(core) >= 6:
            yield core
            yield core.replace("+", "-").replace("/", "_")  # the alphabet of URLs
