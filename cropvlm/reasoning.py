"""The thoughts that a model writes before its answer, in `<think>` tags or the like."""

import re

# The opening tag is missing where a chat template puts it into the prompt, the closing one where the text was cut off.
_REASONING = re.compile(
    r"\A(?:.*</(?:think|thinking|reasoning)>)?(?:\s*<(?:think|thinking|reasoning)>.*)?", re.DOTALL | re.IGNORECASE
)


def without_reasoning(text: str) -> str:
    """Return what follows the reasoning: the text after the last `</think>`, none where one stays open.

    >>> without_reasoning("<think>A is red.</think> B")
    ' B'
    """
    return _REASONING.sub("", text, count=1)
