"""Meaning of a server's reply to a prompt: a text, a failed prompt, or a server that answers none."""

import json
import re
from typing import Any

from cropvlm.errors import UserError
from cropvlm.prompts import without_reasoning
from cropvlm.runs.secret import redact


class Rejected(ValueError):
    """No answer to this prompt in spite of retries. Where other rows get theirs, the fault is this row's."""


class TimedOut(Rejected):
    """No complete reply to this prompt within the time limit."""


class CutOff(ValueError):
    """The model wrote as many tokens as it may, and none of them belongs to an answer."""


class NoAnswers(UserError):
    """The server, or the model there, answers no prompt at all."""


def read_completion(body: str) -> str | None:
    """The text of a chat completion, empty for a refusal; None if `body` is not a chat completion.

    The text parts of a content in parts are joined; half a surrogate pair, which no file in UTF-8 can hold, becomes
    U+FFFD. Raises `CutOff` where the limit of tokens left no answer.

    >>> read_completion('{"choices": [{"message": {"content": " Coke."}}]}')
    ' Coke.'
    """
    choice = first_choice(body)
    if choice is None:
        return None
    content = choice["message"].get("content") or ""
    text = content if isinstance(content, str) else "".join(map(_text_of, content))
    text = redact(re.sub("[\ud800-\udfff]", "\ufffd", text))
    if choice.get("finish_reason") == "length" and not without_reasoning(text).strip():
        raise CutOff("the reply was cut off by the limit of new tokens before it held an answer")
    return text


def first_choice(body: str) -> dict[str, Any] | None:
    """The first choice of a chat completion, whose content is a text, parts or absent; None if `body` is not one."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match completion:
        case {"choices": [{"message": dict(message)} as choice, *_]} if isinstance(
            message.get("content"), str | list | None
        ):
            return choice
    return None


def _text_of(part: Any) -> str:
    """A part's text; empty for a thought, a refusal or whatever else a part may be."""
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
    return ""


def quote(text: str) -> str:
    """The first 200 characters of what a server said, on one line and without the key."""
    return repr(redact(text)[:200])
