"""Errors that end a script with one line, and the short texts in their messages."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake by the user. The message says in one line what was seen, what is expected and the remedy."""


class UnreadableImage(ValueError):
    """The source of an image is missing or cannot be decoded."""


def shorten(text: str, limit: int = 100) -> str:
    """One line of `text` with at most `limit` characters: a value in a message may be megabytes of base64."""
    text = " ".join(text[: 2 * limit].split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def one_line(error: BaseException) -> str:
    """The message of another library's error, in one line, words cut to 100 characters."""
    words = [shorten(word) for word in str(error)[:1000].split()]
    return shorten(" ".join(words), 300) or type(error).__name__


def listed(texts: Sequence[str], limit: int = 20, length: int = 100, separator: str = ", ") -> str:
    """The first `limit` of `texts`, none longer than `length` characters, and dots where there are more."""
    more = f"{separator}..." if len(texts) > limit else ""
    return separator.join(shorten(text, length) for text in texts[:limit]) + more


@contextlib.contextmanager
def failure(words: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn whatever a library raises into a `UserError` of one line that opens with `words`; the cause is logged.

    Loaders and clients raise what they like: besides OSError and ValueError also TypeError, UnpicklingError and so on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logger.debug("%s", words, exc_info=True)
        raise kind(f"{words} ({one_line(error)})") from error
