"""The teacher of `create_dataset.py`: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. So an image
is resized here, once; the size that the teacher saw is kept beside its response, and `read_response` maps back.
"""

import contextlib
import math
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from cropvlm.boxes import Bbox, parse_teacher_bbox, rescale_bbox, unreadable_kind
from cropvlm.crops import UnreadableImage, open_image
from cropvlm.prompts import teacher_messages

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"
MAX_ASPECT_RATIO = 200  # smart_resize refuses more
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, (5, 6, 7, 8)
BROKEN_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)  # the pixels are good all the same

Size = tuple[int, int]  # width, height


def image_size(source: dict | Image.Image) -> Size:
    """Width and height of an upright image from its file's header alone: to plan batches by.

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

    Sides longer than 200:1, which Qwen's resizing refuses, are first brought to 200:1; boxes are mapped back
    along each side on its own, so they stay exact.

    >>> teacher_size((1023, 681), processor)
    (1036, 672)
    """
    settings = processor.image_processor
    width = max(size[0], math.ceil(size[1] / MAX_ASPECT_RATIO))
    height = max(size[1], math.ceil(size[0] / MAX_ASPECT_RATIO))
    resized_height, resized_width = smart_resize(
        height,
        width,
        factor=settings.patch_size * settings.merge_size,
        min_pixels=settings.size["shortest_edge"],
        max_pixels=settings.size["longest_edge"],
    )
    return resized_width, resized_height


def read_response(text: str, seen_size: Size, size: Size) -> tuple[Bbox | None, str]:
    """The box that a response names, in pixels of the original image, and the kind of response.

    text: the teacher's raw response. seen_size, size: (width, height) of the image as the teacher saw it and
    as it is. A box that passes the edge is clipped. The kind is `box`, or why there is none (then the box is
    None): one of `boxes.unreadable_kind`, or `outside the image`.

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


class TeacherBatches(Dataset):
    """Rows in batches of images of like size, preprocessed for the teacher in a `DataLoader`'s workers.

    rows: data set with `image` (undecoded), `question`, `question_id`. sizes: row index -> (width, height).
    Item i is `(seen, inputs, failures)`: a record per row of the batch without its response yet, the
    processor's tensors (None if no row is left), a record with `error` per row whose image can't be decoded.
    """

    def __init__(self, rows: Any, sizes: dict[int, Size], processor: ProcessorMixin, batch_size: int):
        self.rows, self.processor = rows, processor
        # Largest first: memory that does not suffice shows at once. The plan depends on the data alone, so
        # that a run that goes on after an interruption fills its batches as an undisturbed one would.
        seen = {i: teacher_size(size, processor) for i, size in sizes.items()}
        order = sorted(seen, key=lambda i: (-seen[i][0] * seen[i][1], seen[i], i))
        self.batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[list[dict], Any, list[dict]]:
        return self.prepare(self.batches[i])

    def prepare(self, indices: list[int]) -> tuple[list[dict], Any, list[dict]]:
        seen, images, texts, failures = [], [], [], []
        for row in (self.rows[i] for i in indices):
            try:
                image = open_image(row["image"])
            except UnreadableImage as error:
                failures.append({"question_id": row["question_id"], "error": str(error)})
                continue
            seen_size = teacher_size(image.size, self.processor)
            seen.append({"question_id": row["question_id"], "size": list(image.size), "seen_size": list(seen_size)})
            images.append(image.resize(seen_size, Image.Resampling.BICUBIC))
            texts.append(
                self.processor.apply_chat_template(
                    teacher_messages(row["question"]), add_generation_prompt=True, tokenize=False
                )
            )
        if not images:
            return seen, None, failures
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt", do_resize=False)
        return seen, dict(inputs), failures


def outline(model: Any, batches: TeacherBatches, *, max_new_tokens: int, num_workers: int = 0) -> Iterator[list[dict]]:
    """The teacher's records per batch: `question_id`, `size`, `seen_size`, `teacher_response`, or `error`.

    Greedy, at most `max_new_tokens` (METHOD: 128). num_workers: processes that decode and resize ahead.
    """
    for seen, inputs, failures in DataLoader(batches, batch_size=None, num_workers=num_workers):
        texts = generate_batch(model, batches.processor, inputs, max_new_tokens) if seen else []
        yield [record | {"teacher_response": text} for record, text in zip(seen, texts, strict=True)] + failures


@torch.inference_mode()
def generate_batch(model: Any, processor: ProcessorMixin, inputs: dict, max_new_tokens: int) -> list[str]:
    inputs = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in inputs.items()
    }
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
