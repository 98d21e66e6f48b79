"""The key for a server is kept out of everything that is printed or written."""

import os

KEY = "OPENAI_API_KEY"


def redact(text: str) -> str:
    """`text` with `***` for the key. A placeholder such as `EMPTY` or `1234` may be a word of an answer: it stays."""
    key = os.environ.get(KEY, "").strip()
    is_placeholder = len(key) < 4 or (len(key) < 16 and (key.isalpha() or key.isdigit()))
    return text if is_placeholder else text.replace(key, "***")
