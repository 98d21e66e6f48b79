"""Cost of a question with and without the crop: seconds, images, and image tokens where the processor is at hand."""

import logging
from collections.abc import Sequence
from typing import Any

from cropvlm.boxes import pct_to_px
from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, image_size
from cropvlm.models.processors import load_processor
from reporting.results import Result

logger = logging.getLogger(__name__)

SAMPLE = 100  # questions whose image tokens are counted


def costs(result: Result) -> dict[str, Any]:
    """Return rows, seconds and images a question, and the mean number of image tokens (None where unknown).

    The seconds are those of the run that wrote the file; answers without and with the crop may share one.
    """
    counts = result.meta["counts"]
    return {
        "rows": counts["rows"],
        "seconds_per_question": round(counts["seconds"] / max(counts["rows"], 1), 4),
        "images_per_question": 2 if result.with_crop else 1,
        "image_tokens_per_question": image_tokens(result),
    }


def image_tokens(result: Result) -> float | None:
    """Return the mean number of image tokens a question, over the first `SAMPLE`; None without the processor here."""
    if "server" in result.meta["models"]:
        return None
    settings = result.settings
    try:
        sizes = (settings.get(name) for name in ("longest_edge", "min_pixels", "max_pixels"))
        processor = load_processor(result.answerer, *sizes)
    except UserError as error:
        logger.info("image tokens of %s are not counted: %s", result.path, error)
        return None
    sizes = [size for i in range(min(SAMPLE, len(result.scored.indices))) for size in _sizes(result, i)]
    tokens = _count(processor, sizes) if sizes else None
    return None if tokens is None else round(sum(tokens) / min(SAMPLE, len(result.scored.indices)), 1)


def _sizes(result: Result, i: int) -> list[tuple[int, int]]:
    """Return (height, width) of the images that scored row `i` is answered from."""
    try:
        width, height = image_size(result.rows[result.scored.indices[i]]["image"])
    except UnreadableImage:
        return []
    sizes = [(height, width)]
    if result.with_crop:
        left, top, right, bottom = pct_to_px(result.bboxes[i] or (0, 0, 100, 100), width, height)
        sizes.append((bottom - top, right - left))
    return sizes


def _count(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return the image tokens of each size.

    Read in transformers 5.23: every processor that vLLM runs has `_get_num_multimodal_tokens`; without it, unknown.
    """
    try:
        return list(processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens)
    except (AttributeError, NotImplementedError, TypeError, ValueError, KeyError) as error:
        logger.info("image tokens are not counted: %s", error)
        return None
