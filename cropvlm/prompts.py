"""Every word that a model reads or is trained to write, as chat messages for `processor.apply_chat_template`.

`str.capitalize()` lower-cases the rest of a question. The release trains its models so; it stays.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

Messages = list[dict[str, Any]]
# Chat messages with {"type": "image"} placeholders, and the images for them in order.
Prompt = tuple[Messages, list[Image.Image]]

TEACHER = (
    "Outline the region in the image that would help answer the following question: {question}\n"
    "Output the coordinates in JSON format with a 'bbox_2d' field containing [x1, y1, x2, y2]."
)
OUTLINE = "Outline the region in the image that would help answer this question."
BRIEF_ANSWER = "Give a very brief answer."
MAX_BOX_TOKENS = 32  # of what the cropper writes (the release's GRPO)


class PromptSource(Protocol):
    """The prompts of every row, made when they are needed, possibly in a worker process."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> list[Prompt]:
        """The prompts of row `i`; images shared by several are the same objects. May raise UnreadableImage."""

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        """(width, height) of the row's distinct images, for grouping only; [] where unknown. Must be cheap."""


def teacher_messages(question: str) -> Messages:
    """Return the teacher's prompt: one image, then the request for a JSON box in pixels."""
    # Not str.format, which would read braces; the question is inserted unchanged.
    return _user_turn(1, TEACHER.replace("{question}", question))


def cropper_messages(question: str) -> Messages:
    """Return the cropper's prompt: one image, then the question and the request for a box."""
    return _user_turn(1, f"{question.capitalize()}\n{OUTLINE}")


def answerer_messages(question: str, num_images: int, instruction: str = BRIEF_ANSWER) -> Messages:
    """Return the prompt of answerer and reward VLM.

    Args:
        question: as in the data set.
        num_images: 1 for the full image alone, 2 for full image and crop, in this order.
        instruction: what the benchmark asks for; the release's brief answer by default.
    """
    return _user_turn(num_images, f"{question.capitalize()}\n{instruction}")


def answerer_prompt(question: str, images: Sequence[Image.Image], instruction: str = BRIEF_ANSWER) -> Prompt:
    """Return the prompt of answerer and reward VLM with its images: the full image, and its crop if there is one."""
    return answerer_messages(question, len(images), instruction), list(images)


def _user_turn(num_images: int, text: str) -> Messages:
    content = [{"type": "image"} for _ in range(num_images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def text_of(messages: Messages) -> str:
    """The texts of `messages`, joined."""
    return "".join(part.get("text", "") for message in messages for part in message["content"])


def without_placeholders(messages: Messages, *tokens: str) -> Messages:
    """`messages` without these tokens in their texts, where each would stand for an image that is not there."""

    def cleaned(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"text": functools.reduce(drop_token, tokens, part["text"])} if part["type"] == "text" else part

    return [message | {"content": [cleaned(part) for part in message["content"]]} for message in messages]


def drop_token(text: str, token: str) -> str:
    """`text` without `token`, also where leaving one out would join the halves of another."""
    while token in text:
        text = text.replace(token, "")
    return text


def answer_completion(answer: str) -> str:
    """Return the assistant turn that the reward VLM scores: `{answer.capitalize()}.`"""
    return f"{answer.capitalize()}."


def clean_answer(text: str) -> str:
    """A generated answer without reasoning, surrounding white space and one trailing dot; nothing else is changed.

    >>> clean_answer(" Coca cola.\\n")
    'Coca cola'
    """
    return without_reasoning(text).strip().removesuffix(".").strip()


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
