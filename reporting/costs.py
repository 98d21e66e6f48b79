"""Cost of a question with and without the crop: seconds and image tokens, the cropper's own among them."""

import functools
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from PIL import Image

from cropvlm.boxes import decide
from cropvlm.data.images import open_image
from cropvlm.errors import UnreadableImage
from cropvlm.generation import image_tokens
from cropvlm.modeling import load_processor
from cropvlm.models.revisions import split_revision
from cropvlm.runs.controls import control_boxes, shown_images
from cropvlm.runs.predictions import join_on_question_id
from reporting.results import Result

logger = logging.getLogger(__name__)

SAMPLE = 20  # questions whose image tokens are counted


@functools.cache
def costs(result: Result) -> dict[str, Any]:
    """Return what a question costs: seconds and image tokens of the answerer and, with a crop, of the cropper.

    None where a value is unknown. Answers without and with the crop that were made in one run share their seconds.
    """
    counts, settings = result.meta["counts"], result.settings
    crop = settings["mode"] != "base"
    sizes = [settings.get(name) for name in ("longest_edge", "min_pixels", "max_pixels")]
    local = "server" not in result.meta["models"]
    cost = {
        "rows": counts["rows"],
        "seconds_per_question": _per_row(counts),
        "images_per_question": 1 if settings["mode"] in ("base", "crop_alone") else 2,
        "image_tokens_per_question": _mean_tokens(result, result.answerer, sizes, crop) if local else None,
        "gpu": (result.meta.get("versions") or {}).get("gpu"),
        "peak_memory_gib": counts.get("peak_memory_gib"),
    }
    if result.boxes:
        edge = result.boxes.meta["settings"].get("longest_edge")
        cost["cropper_seconds_per_question"] = _per_row(result.boxes.meta["counts"])
        cost["cropper_image_tokens_per_question"] = _mean_tokens(result, result.boxes.cropper, [edge], crop=False)
    return cost


def _per_row(counts: dict[str, Any]) -> float | None:
    return round(counts["seconds"] / max(counts["rows"], 1), 4) if "seconds" in counts else None


def _mean_tokens(result: Result, model: str, sizes: list[int | None], crop: bool) -> float | None:
    """Return the mean number of image tokens over the first `SAMPLE` scored rows; None where no processor is here.

    The prompts are prepared as for the answers and their tokens counted: families estimate them wrongly (LLaVA-1.5 in
    transformers 5.23, for an image size that is not the published one). The Hub is not asked for a processor.
    """
    try:
        name, revision = split_revision(model)
        is_local = Path(model).is_dir()
        folder = model if is_local else snapshot_download(name, revision=revision, local_files_only=True)
        processor = load_processor(folder, *sizes)
        shown = [_images(result, i, crop) for i in range(min(SAMPLE, len(result.scored.indices)))]
        counts = [image_tokens(processor, images) for images in shown if images]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:  # UserError is one; families differ
        logger.info("image tokens of %s are not counted: %s", result.path, error)
        return None
    return round(sum(counts) / len(counts), 1) if counts else None


def _images(result: Result, i: int, crop: bool) -> list[Image.Image]:
    """Return the images that scored row `i` is answered from; none where its image is unreadable."""
    index = result.scored.indices[i]  # of its row: rows without references are not scored
    try:
        image = open_image(result.rows[index]["image"])
    except UnreadableImage:
        return []
    mode = result.settings["mode"]
    # Enlarged to the size of the crop, the crop without detail takes as many tokens.
    return shown_images("" if mode == "no_detail" else mode, image, shown_texts(result)[i], None) if crop else [image]


@functools.cache
def shown_texts(result: Result) -> list[str]:
    """Return the text by which the images of each scored row were cut, a control's own; empty where it is unknown."""
    if not result.boxes:
        return [""] * len(result.scored.ids)
    rows, threshold = result.all_rows, result.settings.get("need_threshold")
    ids = list(rows["question_id"])
    texts = join_on_question_id(result.boxes.records[: len(ids)], rows, str(result.boxes.path))
    if threshold is not None:
        texts = decide(texts, result.boxes.needs(ids), threshold)
    if result.control:
        texts = control_boxes(result.control, texts, rows)
    known = dict(zip(ids, texts, strict=True))
    return [known[question_id] for question_id in result.scored.ids]
