"""The teacher of `create_dataset.py`: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is
worked out here and kept beside each response; `read_response` maps the box back to the original image.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm
from transformers import ProcessorMixin, Qwen2_5_VLProcessor

from cropvlm.boxes import (
    GROWTH,
    Bbox,
    area_cut_points,
    area_fifth,
    expand_bbox,
    parse_teacher_bbox,
    rescale_bbox,
    unreadable_kind,
)
from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, encoded_image, image_size, open_image
from cropvlm.prompts import Prompt, teacher_messages
from cropvlm.qwen import qwen_size
from cropvlm.runtime.processes import rank

DEFAULT_TEACHER = "Qwen/Qwen2.5-VL-7B-Instruct"

Size = tuple[int, int]  # width, height


class PixelBudget(NamedTuple):
    """Least and most pixels of an image as the teacher sees it, and what both of its sides are multiples of."""

    min_pixels: int = 56 * 56  # Qwen2.5-VL's own
    max_pixels: int = 28 * 28 * 16384
    factor: int = 28

    def checked(self) -> "PixelBudget":
        """Itself. Raises `UserError` where no image fits."""
        if self.min_pixels > self.max_pixels:
            least, most = f"--min_pixels {self.min_pixels}", f"--max_pixels {self.max_pixels}"
            raise UserError(f"{least} is more than {most}; give both, the lesser first")
        return self


def pixel_budget(processor: ProcessorMixin, path: str) -> PixelBudget:
    """The budget of a processor.

    Raises `UserError` unless it is Qwen2.5-VL's: boxes could not be mapped. Qwen2-VL and Qwen3-VL resize images alike,
    but write boxes from 0 to 1000.
    """
    if not isinstance(processor, Qwen2_5_VLProcessor):
        kind = type(processor).__name__
        raise UserError(f"{path}: {kind} is of no teacher that writes boxes in pixels it sees; give a Qwen2.5-VL")
    settings = processor.image_processor
    factor = settings.patch_size * settings.merge_size
    return PixelBudget(settings.size["shortest_edge"], settings.size["longest_edge"], factor).checked()


def teacher_size(size: Size, budget: PixelBudget = PixelBudget()) -> Size:  # noqa: B008 (a tuple)
    """Width and height at which the teacher sees an image of `size`: multiples of 28 within its pixel budget.

    A strip of more than 100:1 is first widened to that, as `cropvlm.encoding` does it. Each side is mapped back on
    its own, so boxes stay exact.

    >>> teacher_size((1023, 681))
    (1036, 672)
    """
    return qwen_size(size, budget.min_pixels, budget.max_pixels, budget.factor)


def resize_for_teacher(image: Image.Image, budget: PixelBudget) -> Image.Image:
    """The image at the size at which a teacher sees it, which keeps it so: for servers."""
    return image.resize(teacher_size(image.size, budget), Image.Resampling.BICUBIC)


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


def measure(rows: Any) -> list[dict]:
    """What is known of each row before the teacher sees it: `question_id`, `key`, and `size`, or `error`.

    The key is a checksum of the image's file and the question: a response kept under it is one to this very row. The
    size (width, height) is read from the image's header; the error says why there is none.
    """
    measured = []
    columns = rows.select_columns(["image", "question", "question_id"])
    for row in tqdm(columns, unit="row", desc="image sizes", disable=rank() > 0):
        encoded = encoded_image(row["image"])
        known = {"question_id": row["question_id"], "key": zlib.crc32(row["question"].encode(), zlib.crc32(encoded))}
        try:
            known["size"] = list(image_size(row["image"]))
        except UnreadableImage as error:
            known["error"] = str(error)
        measured.append(known)
    return measured


class TeacherPrompts:
    """The teacher's prompt of every row. measured: as `measure` returns it."""

    def __init__(self, rows: Any, measured: list[dict]):
        self.rows, self.measured = rows, measured

    def __len__(self) -> int:
        return len(self.measured)

    def __getitem__(self, i: int) -> list[Prompt]:
        if "error" in self.measured[i]:
            raise UnreadableImage(self.measured[i]["error"])
        row, size = self.rows[i], self.measured[i]["size"]
        image = open_image(row["image"])
        if list(image.size) != size:
            raise UnreadableImage(f"unreadable image: its header says {size}, its pixels {list(image.size)}")
        return [(teacher_messages(row["question"]), [image])]

    def image_sizes(self, i: int) -> list[Size]:
        return [tuple(self.measured[i]["size"])] if "size" in self.measured[i] else []


def outline(
    outcomes: Iterable[tuple[int, list[str | ValueError] | ValueError]], measured: list[dict], budget: PixelBudget
) -> Iterator[dict]:
    """Yield the teacher's record of each row.

    outcomes: (row index, its text or why there is none), as `generate_rows` or `remote.answer_rows` yield them for
    `TeacherPrompts`. budget: of the teacher that was asked. A record is what was measured, with `teacher_response` and
    `seen_size` (width and height of the image as the teacher saw it), or with `error`; `rejected` where that is no
    unreadable image, but a server's refusal to take the request, which another time may go well.
    """
    for i, texts in outcomes:
        text = texts if isinstance(texts, ValueError) else texts[0]
        if isinstance(text, UnreadableImage):
            yield measured[i] | {"error": str(text)}
        elif isinstance(text, ValueError):
            yield measured[i] | {"error": str(text), "rejected": True}
        else:
            seen_size = list(teacher_size(measured[i]["size"], budget))
            yield measured[i] | {"seen_size": seen_size, "teacher_response": text}


@dataclass(frozen=True)
class GrownBox:
    """A teacher's box on its way to a training box.

    kind: of the response, see `read_response`; bbox_px: in pixels of the original, the whole image where the response
    names none; size: (width, height) of the image; area: of `bbox_px`, relative to the image (0..1); fifth: 0 (the
    smallest boxes) to 4, by area; bbox_pct: grown, in percent.
    """

    kind: str
    bbox_px: Bbox
    size: Size
    area: float
    fifth: int
    bbox_pct: tuple[int, int, int, int]


def grow(records: list[dict], growth: Sequence[float] = GROWTH) -> tuple[list[GrownBox], tuple[float, ...]]:
    """Read and grow the boxes of all records, and return them with the cut points of relative area.

    METHOD, steps 2 to 4: a response that names no box counts as the whole image; all boxes take part in the cut points;
    a box of the i-th fifth grows to `growth[i]` times its area.
    """
    boxes = []
    for record in records:
        size = tuple(record["size"])
        bbox_px, kind = read_response(record["teacher_response"], record["seen_size"], size)
        boxes.append((kind, bbox_px or (0, 0, *size), size))
    areas = [(x2 - x1) * (y2 - y1) / (width * height) for _, (x1, y1, x2, y2), (width, height) in boxes]
    cut_points = area_cut_points(areas)
    grown = []
    for (kind, bbox_px, size), area in zip(boxes, areas, strict=True):
        fifth = area_fifth(area, cut_points)
        grown.append(GrownBox(kind, bbox_px, size, area, fifth, expand_bbox(bbox_px, *size, growth[fifth])))
    return grown, cut_points
