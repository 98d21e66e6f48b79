"""The teacher's responses: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is worked
out here and kept beside each response, in a journal that stays; `cropvlm.teacher` maps the box back to the original
image.
"""

import argparse
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from cropvlm.boxes import teacher_corners
from cropvlm.data.images import image_size, open_image
from cropvlm.errors import UnreadableImage, UserError, failure
from cropvlm.models.qwen import PixelBudget, budget_of, qwen_image, qwen_size
from cropvlm.prompts import Prompt, teacher_messages
from cropvlm.runs.journal import Journal
from cropvlm.runs.prompt_sources import BoxPrompts
from cropvlm.runs.run import Job, Output, Run, Text
from cropvlm.runs.text_models import TextModel, local_model, server_of

ASK = "leave --from_journal out to ask the teacher"
RELATIVE = (1000, 1000)  # width and height of every image to a teacher whose boxes are relative


def teacher(args: argparse.Namespace) -> TextModel:
    """The model that the flags name, or the journal in its place.

    Its settings determine a response; a journal with different ones is rejected.
    """
    if args.from_journal:
        return TextModel(settings_in_journal(args.output_path), {}, _only_unreadable_images, seen_size=None)
    if server := server_of(args):  # it gets images at a size that it keeps
        budget = PixelBudget().within(args.min_pixels, args.max_pixels)
        settings = {"model_path": server.model, "server": True, "image_format": server.image_format}

        def generate(prompts, done):
            return server.answer_rows(prompts, lambda image: qwen_image(image, *budget), done)
    else:
        from cropvlm.modeling import load_processor

        path = args.model_path
        processor = load_processor(path, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
        budget = pixel_budget(processor, path)
        model = local_model(args, "teacher", path, processor)
        settings, generate = model.settings | {"model_path": path, "server": False}, model.generate
    settings |= {key: getattr(args, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
    settings["prompt"] = teacher_messages("{question}")
    return TextModel(settings, {}, generate, seen_size=lambda size: qwen_size(size, *budget))


def pixel_budget(processor: Any, path: str) -> PixelBudget:
    """Return the budget of a processor. Raises `UserError` unless it is Qwen2.5-VL's: boxes could not be mapped.

    Qwen2-VL and Qwen3-VL resize images alike, but write boxes from 0 to 1000.
    """
    from transformers import Qwen2_5_VLProcessor

    if not isinstance(processor, Qwen2_5_VLProcessor):
        kind = type(processor).__name__
        raise UserError(f"{path}: {kind} belongs to a model whose boxes are not in pixels it sees; give a Qwen2.5-VL")
    return budget_of(processor.image_processor)


class TeacherPrompts(BoxPrompts):
    """The teacher's prompt of every row."""

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        image, size = open_image(row["image"]), image_size(row["image"])
        if image.size != size:  # boxes are mapped by the size in the header
            raise UnreadableImage(f"unreadable image: its header says {size}, its pixels {image.size}")
        return [(teacher_messages(row["question"]), [image])]


@dataclass
class Responses(Output):
    """The responses to `data`, for the sets at `path`.

    A record has `size` and `seen_size` (width and height of the image as it is and as the teacher saw it) and
    `teacher_response`, or `error`; with `rejected` too where another run may get a response: a server refused the
    request, or the row was too large for memory. seen_size: of an image of a size; None where nothing is asked again.
    """

    data: Dataset = None
    seen_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None

    def is_done(self, question_id: str | int, key: int | None) -> bool:
        record = self.rows.get(question_id, {})
        given_up = "error" in record and (self.seen_size is None or not record.get("rejected"))
        return record.get("key") == key and (given_up or "teacher_response" in record)

    def make_record(self, i: int, text: Text) -> dict:
        if isinstance(text, ValueError):
            rejected = {} if isinstance(text, UnreadableImage) else {"rejected": True}
            return {"seconds": None, "error": str(text)} | rejected
        size = image_size(self.data[i]["image"])
        return {"seconds": None, "size": list(size), "seen_size": list(self.seen_size(size)), "teacher_response": text}


def response_run(teacher: TextModel, target: str, rows: Dataset, keys: list[int]) -> Run:
    """The run that asks a teacher about `rows`.

    keys: of `cropvlm.runs.provenance.row_keys`. The journal also holds which images of the GRPO part can be read.
    """
    output = Responses(Path(target), teacher.settings, {}, {}, None, data=rows, seen_size=teacher.seen_size)
    return Run([Job(list(rows["question_id"]), TeacherPrompts(rows), [output], keys)], teacher.generate)


def _only_unreadable_images(prompts: TeacherPrompts, done: Collection[int]) -> Iterator[tuple[int, UnreadableImage]]:
    """Yield the rows whose image cannot be read; `UserError` where others have no response either."""
    missing = 0
    for i in sorted(set(range(len(prompts))).difference(done)):
        try:
            prompts[i]
            missing += 1
        except UnreadableImage as error:
            yield i, error
    if missing:
        raise UserError(f"the journal has no response to {missing} of {len(prompts)} rows; {ASK}")


def settings_in_journal(target: str) -> dict[str, Any]:
    """The settings that the journal of `target` was begun with. Raises `UserError` if a teacher began none."""
    path = Journal(target, {}).path
    with failure(f"{path} is not a readable journal of a teacher; {ASK}"), path.open() as file:
        settings = json.loads(file.readline())["settings"]
        if missing := {"model_path", "min_pixels", "max_pixels", "max_new_tokens", "prompt"} - settings.keys():
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
        return settings


def in_units(records: Sequence[dict], box_format: str = "pixels") -> list[dict]:
    """Return the records with the size that their boxes are given in as `seen_size`.

    box_format: `pixels` of the image as the teacher saw it (Qwen2.5-VL), or `relative`, 0 to 1000 (Qwen2-VL, Qwen3-VL).
    Raises `UserError` where the boxes cannot all be in that unit (fractions of 1, percent, or one taken for the other),
    or are x, y, width, height.
    """
    read = [(teacher_corners(r["teacher_response"]), tuple(r["seen_size"])) for r in records if "seen_size" in r]
    read = [(box, size) for box, size in read if box]
    reversed_ = sum(box[0] > box[2] or box[1] > box[3] for box, _ in read)
    if reversed_ >= 3 and 3 * reversed_ > len(read):
        seen = f"{reversed_} boxes of {len(read)} end before they begin"
        raise UserError(f"the teacher's boxes are not x1, y1, x2, y2 ({seen}); ask for the two corners")
    remedy = "ask for pixels of the image, as a Qwen2.5-VL writes them"
    seen = None
    if read and all(max(box) <= 1 for box, _ in read) and any(value % 1 for box, _ in read for value in box):
        seen = f"all {len(read)} lie within 0 to 1"
    elif box_format == "relative":
        beyond = sum(max(box) > 1050 for box, _ in read)
        if beyond >= 3 and 3 * beyond > len(read):
            seen, remedy = f"{beyond} boxes of {len(read)} go beyond 1000", "leave --teacher_box_format out"
    elif number := _none_beyond(100, list(dict.fromkeys(read)), chance=1e-4):
        seen = f"no box of {number} leaves 0 to 100 in larger images"
    else:
        small = [(box, size) for box, size in read if min(size) < 800]
        outside = sum(max(box[0::2]) > 1.05 * size[0] or max(box[1::2]) > 1.05 * size[1] for box, size in small)
        if number := _none_beyond(1000, read, chance=0.01):
            seen = f"no box of {number} leaves 0 to 1000 in larger images"
        elif outside >= 3 and 3 * outside > len(small):
            seen = f"{outside} boxes of {len(small)} lie outside of the image as it was sent"
        remedy = "grow them anew with --from_journal --teacher_box_format relative, or ask a Qwen2.5-VL"
    if seen:
        unit = "pixels of the image" if box_format == "pixels" else "thousandths of its sides"
        raise UserError(f"the teacher's boxes are not in {unit} ({seen}); {remedy}")
    if box_format == "relative":
        return [record | {"seen_size": list(RELATIVE)} if "seen_size" in record else record for record in records]
    return list(records)


def _none_beyond(unit: int, read: list[tuple], chance: float) -> int:
    """Return how many boxes lie in images larger than `unit` and all end within it; 0 if that may be a coincidence.

    It may be if boxes anywhere in these images would do so with a probability of at least `chance`.
    """
    larger = [(box, size) for box, size in read if max(size) > unit]
    probability = math.prod(min(1, unit / size[0]) * min(1, unit / size[1]) for _, size in larger)
    return len(larger) if probability < chance and all(max(box) <= unit for box, _ in larger) else 0
