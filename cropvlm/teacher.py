"""The teacher of `create_dataset.py`: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is
worked out here and kept beside each response; `read_response` maps the box back to the original image.
"""

import contextlib
import math
import struct
from collections.abc import Collection, Iterator
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from cropvlm.boxes import Bbox, parse_teacher_bbox, rescale_bbox, unreadable_kind
from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, open_image
from cropvlm.encoding import MAX_ASPECT_RATIO, Prompt
from cropvlm.generation import generate_rows
from cropvlm.prompts import teacher_messages

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, (5, 6, 7, 8)
BROKEN_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)  # the pixels are good all the same

Size = tuple[int, int]  # width, height


def image_size(source: dict | Image.Image) -> Size:
    """Width and height of the upright image that `crops.open_image` returns, from its file's header alone.

    source: what a column of `datasets.Image(decode=False)` holds, or a PIL image.
    Raises `UnreadableImage` where there is no image or no readable header.
    """
    if isinstance(source, Image.Image):
        return source.size
    if not source or not (source.get("bytes") or source.get("path")):
        raise UnreadableImage("unreadable image: there is none")
    try:
        with Image.open(BytesIO(source["bytes"]) if source.get("bytes") else source["path"]) as image:
            sideways = False
            with contextlib.suppress(*BROKEN_EXIF):
                sideways = image.getexif().get(EXIF_ORIENTATION) in EXIF_SIDEWAYS
            return image.size[::-1] if sideways else image.size
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"unreadable image: {error}") from error


def teacher_size(size: Size, processor: ProcessorMixin) -> Size:
    """Width and height at which the teacher sees an image of `size`: multiples of 28 within its pixel budget.

    A strip of more than 100:1 is first widened to that, as `cropvlm.encoding` does it. Each side is mapped back on
    its own, so boxes stay exact.

    >>> teacher_size((1023, 681), processor)
    (1036, 672)
    """
    settings = processor.image_processor
    shortest = math.ceil(max(size) / MAX_ASPECT_RATIO)
    resized_height, resized_width = smart_resize(
        max(size[1], shortest),
        max(size[0], shortest),
        factor=settings.patch_size * settings.merge_size,
        min_pixels=settings.size["shortest_edge"],
        max_pixels=settings.size["longest_edge"],
    )
    return resized_width, resized_height


def check_teacher(processor: ProcessorMixin, path: str) -> None:
    """Raise `UserError` unless images are resized as Qwen2.5-VL's are: boxes of others cannot be mapped back."""
    if not hasattr(processor.image_processor, "merge_size"):
        kind = type(processor).__name__
        raise UserError(f"{path}: {kind} is no teacher that writes boxes in pixels; give a Qwen2.5-VL")


def read_response(text: str, seen_size: Size, size: Size) -> tuple[Bbox | None, str]:
    """The box that a response names, in pixels of the original image, and the kind of response.

    text: the teacher's raw response. seen_size, size: (width, height) of the image as the teacher saw it and as
    it is. A box that passes the edge is clipped. The kind is `box`, or why there is none (then the box is None):
    one of `boxes.unreadable_kind`, or `outside the image`.

    >>> read_response('{"bbox_2d": [28, 56, 56, 112]}', seen_size=(280, 560), size=(1000, 1000))
    ((100.0, 100.0, 200.0, 200.0), 'box')
    """
    bbox_px = parse_teacher_bbox(text)
    if bbox_px is None:
        return None, unreadable_kind(text)
    x1, y1, x2, y2 = bbox_px
    if x1 >= seen_size[0] or y1 >= seen_size[1] or x2 <= 0 or y2 <= 0:
        return None, "outside the image"
    return rescale_bbox(bbox_px, seen_size, size), "box"


class TeacherPrompts:
    """The teacher's prompt of every row. sizes: (width, height) of the rows' images, from their headers."""

    def __init__(self, rows: Any, sizes: list[Size]):
        self.rows, self.sizes = rows, sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        image = open_image(row["image"])
        if image.size != self.sizes[i]:
            raise UnreadableImage(f"unreadable image: its header says {self.sizes[i]}, its pixels {image.size}")
        return [(teacher_messages(row["question"]), [image])]

    def image_sizes(self, i: int) -> list[Size]:
        return [self.sizes[i]]


def measure(rows: Any) -> tuple[dict[int, Size], dict[int, str]]:
    """(width, height) by row index, read from the headers of the images, and the errors of those without one."""
    sizes, errors = {}, {}
    for i, image in enumerate(rows["image"]):
        try:
            sizes[i] = image_size(image)
        except UnreadableImage as error:
            errors[i] = str(error)
    return sizes, errors


def outline(
    model: Any,
    processor: ProcessorMixin,
    rows: Any,
    *,
    max_new_tokens: int,
    batch_size: int | str = "auto",
    num_workers: int = 0,
    done: Collection[str | int] = (),
) -> Iterator[dict]:
    """Yield the teacher's record of each row, as batches complete.

    Args:
        model, processor: a Qwen2.5-VL as `cropvlm.modeling` loads it.
        rows: data set with `image` (undecoded), `question` and `question_id`.
        max_new_tokens: of a response (METHOD: 128, greedy).
        batch_size, num_workers: see `generation.generate_rows`.
        done: question_ids to leave out.

    A record has `question_id`, and `teacher_response`, `size` and `seen_size` (width, height of the image as it is
    and as the teacher saw it), or `error` where the image cannot be read.
    """
    ids = list(rows["question_id"])
    sizes, errors = measure(rows)
    yield from ({"question_id": ids[i], "error": error} for i, error in errors.items() if ids[i] not in done)
    kept = list(sizes)
    prompts = TeacherPrompts(rows.select(kept) if errors else rows, list(sizes.values()))
    finished = [position for position, i in enumerate(kept) if ids[i] in done]
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "num_workers": num_workers}
    for position, texts in generate_rows(model, processor, prompts, done=finished, **options):
        record = {"question_id": ids[kept[position]]}
        if isinstance(texts, UnreadableImage):
            yield record | {"error": str(texts)}
        else:
            size = prompts.sizes[position]
            sizes_seen = {"size": list(size), "seen_size": list(teacher_size(size, processor))}
            yield record | {"teacher_response": texts[0]} | sizes_seen
