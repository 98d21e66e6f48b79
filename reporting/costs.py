"""Cost of a question with and without the crop: seconds, images, and image tokens where the processor is at hand."""

import logging
from typing import Any

from PIL import Image

from cropvlm.crops import full_and_crop
from cropvlm.data.images import open_image
from cropvlm.encoding import prepare
from cropvlm.errors import UnreadableImage
from cropvlm.modeling import load_processor
from cropvlm.models.any_family import SHARED, prepare_alone
from cropvlm.prompts import answerer_prompt
from reporting.results import Result

logger = logging.getLogger(__name__)

SAMPLE = 20  # questions whose image tokens are counted


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
    """Return the mean number of image tokens in a prompt, over the first `SAMPLE`; None without the processor here.

    The prompts are prepared as for the answers and their tokens counted: families estimate them wrongly (LLaVA-1.5 in
    transformers 5.23, for an image size that is not the published one).
    """
    if "server" in result.meta["models"]:
        return None
    try:
        sizes = (result.settings.get(name) for name in ("longest_edge", "min_pixels", "max_pixels"))
        processor = load_processor(result.answerer, *sizes)
        shown = [_images(result, i) for i in range(min(SAMPLE, len(result.scored.indices)))]
        counts = [_count(processor, images) for images in shown if images]
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # UserError is one; families differ
        logger.info("image tokens of %s are not counted: %s", result.path, error)
        return None
    return round(sum(counts) / len(counts), 1) if counts else None


def _images(result: Result, i: int) -> list[Image.Image]:
    """Return the images that scored row `i` is answered from; none where its image is unreadable."""
    index = result.scored.indices[i]
    try:
        image = open_image(result.rows[index]["image"])
    except UnreadableImage:
        return []
    if not result.with_crop:
        return [image]
    return full_and_crop(image, result.boxes.texts[index] if result.boxes else "")


def _count(processor: Any, images: list[Image.Image]) -> int:
    """Return the number of image tokens in a prompt that shows `images`."""
    prompt = answerer_prompt("?", images)
    if type(processor).__name__ in {name for _, name in SHARED}:
        ids = prepare(processor, [prompt]).input_ids[0]
    else:
        ids = prepare_alone(processor, [prompt]).inputs[0]["input_ids"][0].tolist()
    return ids.count(processor.image_token_id)
