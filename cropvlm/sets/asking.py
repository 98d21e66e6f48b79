"""The teacher: a Qwen2.5-VL outlines the region that helps to answer a question.

It answers in pixels of the image as it saw it, resized to multiples of 28 within a pixel budget. That size is
worked out here and kept beside each response; `cropvlm.teacher` maps the box back to the original image.
"""

import argparse
import functools
from typing import TYPE_CHECKING

from cropvlm.data.images import image_size, open_image
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.models.qwen import PixelBudget, budget_of, qwen_image, qwen_size
from cropvlm.prompts import Prompt, teacher_messages
from cropvlm.runs.model_flags import server_of
from cropvlm.runs.prompt_sources import BoxPrompts
from cropvlm.runs.provenance import model_checksum
from cropvlm.runs.text_models import TextModel, computing, device_of, local_generator

if TYPE_CHECKING:  # the flags are parsed without it
    from transformers import ProcessorMixin


def teacher(args: argparse.Namespace) -> TextModel:
    """The model that the flags name. Its settings determine a response; a journal with different ones is rejected."""
    server = server_of(args)
    settings = {"model_path": server.model if server else args.model_path, "server": server is not None}
    if server:  # it gets images at a size that it keeps
        budget = PixelBudget().within(args.min_pixels, args.max_pixels)
        settings |= {"image_format": server.image_format}
        generate = functools.partial(server.answer_rows, resize=lambda image: qwen_image(image, *budget))
    else:
        from cropvlm.modeling import load_model, load_processor

        device, dtype = device_of(args)
        path, attention = args.model_path, args.attn_implementation
        processor = load_processor(path, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
        budget = pixel_budget(processor, path)
        load = functools.partial(load_model, path, device=device, dtype=dtype, attn_implementation=attention)
        settings |= computing({"checksum": model_checksum(path)}, dtype, attention)
        generate = local_generator(args, load, processor)
    settings |= {key: getattr(args, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
    settings["prompt"] = teacher_messages("{question}")
    return TextModel(settings, {}, generate, None, lambda size: qwen_size(size, *budget))


def pixel_budget(processor: "ProcessorMixin", path: str) -> PixelBudget:
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
