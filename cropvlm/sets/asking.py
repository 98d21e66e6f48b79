"""The teacher: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is
worked out here and kept beside each response; `cropvlm.teacher` maps the box back to the original image.
"""

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cropvlm.data.images import image_size, open_image
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.models.qwen import PixelBudget, budget_of, qwen_image
from cropvlm.prompts import Prompt, teacher_messages
from cropvlm.runs.processes import device_index, worker_count
from cropvlm.runs.provenance import model_checksum

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


class TeacherPrompts:
    """The teacher's prompt of every row."""

    def __init__(self, rows: Any):
        self.rows = rows.select_columns(["image", "question", "question_id"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        row = self.rows[i]
        image, size = open_image(row["image"]), image_size(row["image"])
        if image.size != size:  # boxes are mapped by the size in the header
            raise UnreadableImage(f"unreadable image: its header says {size}, its pixels {image.size}")
        return [(teacher_messages(row["question"]), [image])]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        try:
            return [image_size(self.rows[i]["image"])]
        except UnreadableImage:
            return []


class Asked:
    """What a teacher says, as `cropvlm.runs.run.Run` asks for it, and the budget of pixels at which it sees images.

    The model, or the processor alone, is loaded when it is needed.
    """

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    @functools.cached_property
    def processor(self) -> "ProcessorMixin":
        from cropvlm.modeling import load_processor

        teacher = self.teacher
        return load_processor(teacher.model_path, min_pixels=teacher.min_pixels, max_pixels=teacher.max_pixels)

    @functools.cached_property
    def budget(self) -> PixelBudget:
        if self.teacher.server:  # it gets images at a size that it keeps
            return PixelBudget().within(self.teacher.min_pixels, self.teacher.max_pixels)
        return pixel_budget(self.processor, self.teacher.model_path)

    @functools.cached_property
    def model(self) -> Any:
        from cropvlm.modeling import load_model

        teacher, (device, dtype) = self.teacher, device_and_dtype_of(self.teacher)
        return load_model(
            teacher.model_path, device=device, dtype=dtype, attn_implementation=teacher.attn_implementation
        )

    def generate(self, prompts: Any, done: Collection[int]) -> Iterable[tuple[int, Any]]:
        """Yield (row index, its text or an error) for all rows but those `done`."""
        from cropvlm.generation import generate_rows

        budget, teacher = self.budget, self.teacher
        if teacher.server:
            return teacher.server.answer_rows(prompts, lambda image: qwen_image(image, *budget), done)
        workers = worker_count(teacher.num_workers, self.model.device.type)
        options = {"max_new_tokens": teacher.max_new_tokens, "batch_size": teacher.batch_size, "num_workers": workers}
        return generate_rows(self.model, self.processor, prompts, done=done, **options)

    def settings(self) -> dict:
        """The settings that determine a response; a journal begun with different ones is rejected."""
        teacher = self.teacher
        settings = {"model_path": teacher.model_path, "server": teacher.server is not None}
        if teacher.server:
            settings |= {"image_format": teacher.server.image_format}
        else:
            dtype = str(device_and_dtype_of(teacher)[1])
            settings |= {"model_files": model_checksum(teacher.model_path), "dtype": dtype}
        if teacher.attn_implementation:
            settings["attn_implementation"] = teacher.attn_implementation
        sizes = {key: getattr(teacher, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
        return settings | sizes | {"prompt": teacher_messages("{question}")}


def device_and_dtype_of(teacher: Teacher) -> tuple[Any, Any]:
    """The device of this process for a teacher, and the dtype of the model there."""
    from cropvlm.models.loading import device_and_dtype

    return device_and_dtype(device_index(teacher.gpu))
