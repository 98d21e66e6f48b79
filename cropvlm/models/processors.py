"""Processors: chat template, tokenizer and image preprocessing of a model, at the requested image size."""

from collections.abc import Iterable

from transformers import AutoProcessor, LlavaImageProcessor, ProcessorMixin

from cropvlm.errors import UserError, failure, one_line
from cropvlm.models.loading import NO_CODE
from cropvlm.models.qwen import budget_of, qwen_size
from cropvlm.models.revisions import split_revision

LEAVE_OUT = "leave --longest_edge, --min_pixels and --max_pixels out"


def first_processor(candidates: Iterable[str], path: str) -> ProcessorMixin:
    """Processor of the first of `candidates` that has a complete one. path: the user's, for the error."""
    reason: object = "only a tokenizer there"
    for candidate in candidates:
        name, revision = split_revision(str(candidate))
        try:
            with failure(candidate):
                # No backend named: transformers takes torchvision, which has LANCZOS as PIL does from 0.27 on, and
                # before that PIL for the processors that need LANCZOS (Idefics3, SmolVLM).
                processor = AutoProcessor.from_pretrained(name, revision=revision, **NO_CODE)
                if getattr(processor, "image_processor", None) and getattr(processor, "tokenizer", None):
                    return processor
        except UserError as error:
            reason = one_line(error.__cause__)
    raise UserError(f"{path}: no processor there ({reason}); name a Hub id or a folder that holds one")


def set_image_size(processor, path, longest_edge, min_pixels, max_pixels) -> None:
    """Set the size that images are resized to, if one is given. Raises `UserError` for an unsupported family."""
    image_processor = processor.image_processor
    size = _image_size(processor)
    if longest_edge is not None:
        if size.keys() != {"longest_edge"}:
            told = f"{path} resizes images by {size}, not to a longest edge of {longest_edge} px"
            others = f"for others {LEAVE_OUT} (in training say --vqa_longest_edge None)"
            raise UserError(f"{told}; the cropper has to be an Idefics3 or SmolVLM, {others}")
        image_processor.size = {"longest_edge": longest_edge}
    if min_pixels is not None or max_pixels is not None:
        # Qwen's names for the bounds on the area; in Idefics2 they are sides.
        if not ({"shortest_edge", "longest_edge"} <= size.keys() and hasattr(image_processor, "merge_size")):
            told = f"{path} resizes images by {size}, not to a number of pixels"
            raise UserError(f"{told}; {LEAVE_OUT}")
        budget = budget_of(image_processor).within(min_pixels, max_pixels)
        image_processor.size = {"shortest_edge": budget.min_pixels, "longest_edge": budget.max_pixels}


def set_image_fit(processor: ProcessorMixin, image_fit: str) -> None:
    """Let a processor that centre-crops see whole images: "pad" to a square with the mean colour ("crop": unchanged).

    LLaVA-1.5's published settings cut the sides off every image that is not square; its authors' own code pads.
    """
    own = processor.image_processor
    if image_fit == "pad" and image_fit_of(processor) == "crop":
        settings = own.to_dict() | {"do_pad": True, "size": dict(own.crop_size)}
        processor.image_processor = LlavaImageProcessor(**settings)


def image_fit_of(processor: ProcessorMixin) -> str | None:
    """Return how a processor that centre-crops gets images that are not square, "pad" or "crop"; None for others."""
    own = processor.image_processor
    if not getattr(own, "do_center_crop", False) or hasattr(own, "image_grid_pinpoints"):  # LLaVA-NeXT tiles first
        return None
    return "pad" if isinstance(own, LlavaImageProcessor) and own.do_pad else "crop"


def longest_edge_of(processor: ProcessorMixin) -> int | None:
    """Return the longer side in pixels that images are resized to (Idefics3, SmolVLM); None for other families."""
    size = _image_size(processor)
    tiled = hasattr(processor.image_processor, "max_image_size")
    return size["longest_edge"] if tiled and size.keys() == {"longest_edge"} else None


def seen_size(processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return (width, height) at which the model sees an image of `size`, before it is cut or padded; None if unknown.

    A larger side than the image's own adds no detail. Idefics3's tiles and Qwen's patches are cut from that size.
    """
    if hasattr(processor.image_processor, "merge_size"):  # Qwen2-VL and its successors
        return qwen_size(size, *budget_of(processor.image_processor))
    match _image_size(processor):
        case {"height": edge} if image_fit_of(processor) == "pad":
            scale = edge / max(size)
        case {"longest_edge": edge}:
            scale = edge / max(size)
        case {"shortest_edge": edge}:
            scale = edge / min(size)
        case {"height": height, "width": width}:
            return width, height
        case _:
            return None
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _image_size(processor: ProcessorMixin) -> dict[str, int]:
    size = getattr(processor.image_processor, "size", None) or {}
    return {key: value for key, value in dict(size).items() if value is not None}
