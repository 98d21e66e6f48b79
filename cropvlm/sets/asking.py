"""The teacher: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is
worked out here and kept beside each response; `cropvlm.teacher` maps the box back to the original image.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cropvlm.data.images import encoded_image, image_size, open_image
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.models.qwen import PixelBudget, budget_of, qwen_size
from cropvlm.prompts import Prompt, teacher_messages

if TYPE_CHECKING:  # the flags are parsed without them
    from transformers import ProcessorMixin

    from cropvlm.runs.server import Server

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"


@dataclass(frozen=True)
class Teacher:
    """The model that outlines regions, and how it is asked.

    model_path: Hub id or folder; with a server, the model's name there. min_pixels, max_pixels: of an image as the
    teacher sees it; None takes its own. max_new_tokens: of a response. batch_size: rows, or "auto"; num_workers:
    processes that preprocess images, None for as many as fit the machine; gpu: its index, negative for the CPU.
    """

    model_path: str
    server: "Server | None" = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int = 128
    batch_size: int | str = "auto"
    num_workers: int | None = None
    gpu: int = 0
    attn_implementation: str | None = None


def pixel_budget(processor: "ProcessorMixin", path: str) -> PixelBudget:
    """Return the budget of a processor. Raises `UserError` unless it is Qwen2.5-VL's: boxes could not be mapped.

    Qwen2-VL and Qwen3-VL resize images alike, but write boxes from 0 to 1000.
    """
    from transformers import Qwen2_5_VLProcessor

    if not isinstance(processor, Qwen2_5_VLProcessor):
        kind = type(processor).__name__
        raise UserError(f"{path}: {kind} belongs to a model whose boxes are not in pixels it sees; give a Qwen2.5-VL")
    return budget_of(processor.image_processor)


def inspect_rows(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield what is known of each row before the teacher sees it: `question_id`, `key`, and `size`, or `error`.

    The key is a checksum of the image's file and the question: a response kept under it is one to this very row. The
    size (width, height) is read from the image's header; the error says why that failed.
    """
    for row in rows:
        encoded = encoded_image(row["image"])
        known = {"question_id": row["question_id"], "key": zlib.crc32(row["question"].encode(), zlib.crc32(encoded))}
        try:
            yield known | {"size": list(image_size(row["image"]))}
        except UnreadableImage as error:
            yield known | {"error": str(error)}


class TeacherPrompts:
    """The teacher's prompt of every row. inspected: as `inspect_rows` yields it."""

    def __init__(self, rows: Any, inspected: list[dict]):
        self.rows, self.inspected = rows, inspected

    def __len__(self) -> int:
        return len(self.inspected)

    def __getitem__(self, i: int) -> list[Prompt]:
        if "error" in self.inspected[i]:
            raise UnreadableImage(self.inspected[i]["error"])
        row, size = self.rows[i], self.inspected[i]["size"]
        image = open_image(row["image"])
        if list(image.size) != size:
            raise UnreadableImage(f"unreadable image: its header says {size}, its pixels {list(image.size)}")
        return [(teacher_messages(row["question"]), [image])]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        return [tuple(self.inspected[i]["size"])] if "size" in self.inspected[i] else []


def response_records(
    outcomes: Iterable[tuple[int, list[str | Exception] | Exception]], inspected: list[dict], budget: PixelBudget
) -> Iterator[dict]:
    """Yield the teacher's record of each row.

    outcomes: (row index, its text or an error), as `generate_rows` or `Server.answer_rows` yield them for
    `TeacherPrompts`. budget: of the teacher that was asked. A record is what was known of the row, with
    `teacher_response` and `seen_size` (width and height of the image as the teacher saw it), or with `error`; with
    `rejected` too where the image is readable, so that another run may get a response: a server refused the request,
    or the row was too large for memory.
    """
    for i, texts in outcomes:
        text = texts if isinstance(texts, Exception) else texts[0]
        if isinstance(text, UnreadableImage):
            yield inspected[i] | {"error": str(text)}
        elif isinstance(text, Exception):
            yield inspected[i] | {"error": str(text), "rejected": True}
        else:
            seen_size = list(qwen_size(inspected[i]["size"], *budget))
            yield inspected[i] | {"seen_size": seen_size, "teacher_response": text}


def is_response(record: dict) -> bool:
    """Whether a record, read from a file that anyone may have changed, holds a response as `response_records` does."""
    sizes = [record.get("size"), record.get("seen_size")]
    are_sizes = all(isinstance(s, list) and len(s) == 2 and all(type(n) is int and n > 0 for n in s) for s in sizes)
    return are_sizes and isinstance(record.get("teacher_response"), str)
