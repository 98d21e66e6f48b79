"""Rows to train on: loaded, those without a box or references left out, every image decoded once beforehand."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UnreadableImage, UserError, listed, shorten
from cropvlm.models.cores import cpu_count
from cropvlm.runs.processes import shard
from cropvlm.training import grpo_prompt, prompt_and_completion, valid_rows

logger = logging.getLogger(__name__)

WINDOW = 64  # images that wait for a thread, encoded


def load_training_rows(
    dataset_path: str, split: str | None, max_samples: int | None, column: str, default_split: str = "train"
) -> Dataset:
    """Return the rows to train on, images encoded; those without a value in `column` are left out and named.

    Raises `UserError` for a missing data set, split or column, no row with a value in it, or an unreadable image.
    """
    need = ("image", "question", "question_id", column)
    rows = load_rows(dataset_path, split, max_samples, default_split=default_split, need=need)
    values, ids = rows[column][:], rows["question_id"][:]
    lacking = [question_id for value, question_id in zip(values, ids, strict=True) if not value]
    if len(lacking) == len(rows):
        raise UserError(f"{dataset_path}: no row has a value in the column {column!r}; there is nothing to train on")
    if lacking:
        shown = listed(list(map(repr, lacking)))
        logger.warning("%d rows have no %s and are left out: question_id %s", len(lacking), column, shown)
        rows = rows.select([i for i, value in enumerate(values) if value])
    check_images(rows, dataset_path)
    return rows


def check_images(rows: Dataset, dataset_path: str) -> None:
    """Decode every image once; `UserError` names the rows that a training would stop at, perhaps after hours."""
    share = shard(rows)  # of this process
    errors = dict(gather_object(list(_decoding_errors(share.select_columns(["question_id", "image"])))))
    if errors:
        seen = f"{len(errors)} rows cannot be trained on, question_id {listed(list(map(repr, errors)))}"
        raise UserError(f"{dataset_path}: {seen}; the first has an {next(iter(errors.values()))}; leave these rows out")


def _decoding_errors(rows: Dataset) -> Iterator[tuple[Any, str]]:
    """(question_id, error) of each row whose image cannot be decoded; rows with one image cost one decoding."""
    errors: dict[int, str | None] = {}  # by the hash of an image's file or path

    def decode(source: Any) -> str | None:
        try:
            open_image(source)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(cpu_count()) as threads, tqdm(total=len(rows), desc="decoding images", unit="row") as bar:
        for batch in rows.iter(WINDOW):
            keys = [hash(image and (image["bytes"], image["path"])) for image in batch["image"]]
            new = {key: image for key, image in zip(keys, batch["image"], strict=True) if key not in errors}
            errors |= zip(new, threads.map(decode, new.values()), strict=True)
            yield from ((i, errors[key]) for i, key in zip(batch["question_id"], keys, strict=True) if errors[key])
            bar.update(len(keys))


def open_training_image(source: Any, question_id: str | int) -> Image.Image:
    """Return the image of a row, decoded; `UserError` where its file has changed since it was checked."""
    try:
        return open_image(source)
    except UnreadableImage as error:
        row = f"question_id {shorten(repr(question_id))}"
        raise UserError(f"{row} has an {error}; leave the row out of the data set") from error


def prompt_completion_rows(rows: Dataset, processor: Any) -> Dataset:
    """Return rows that read as `prompt`, `completion` (texts) and `image` (PIL), made when they are needed.

    Rows whose box is invalid are left out and counted; `UserError` as from `valid_rows`.
    """
    usable, problems = valid_rows(rows["bbox"][:])
    if problems:
        left_out = len(rows) - len(usable)
        logger.warning("%d of %d rows are left out by their bbox: %s", left_out, len(rows), problems)

    labels = rows["needed"][:] if "needed" in rows.column_names else []
    if wrong := [value for value in labels if value not in (None, True, False)]:
        raise UserError(f"the column needed holds {shorten(repr(wrong[0]))}; expected true or false")

    def to_prompt_completion(batch: dict[str, list]) -> dict[str, list]:
        needed = [value is None or bool(value) for value in batch.get("needed", [None] * len(batch["bbox"]))]
        texts = zip(batch["question"], batch["bbox"], needed, strict=True)
        pairs = [prompt_and_completion(processor, *row) for row in texts]
        images = list(map(open_training_image, batch["image"], batch["question_id"]))
        return {name: [pair[name] for pair in pairs] for name in ("prompt", "completion")} | {"image": images}

    return rows.select(usable).with_transform(to_prompt_completion)


def prompt_rows(rows: Dataset, image_token: str) -> Dataset:
    """Return rows that read as `prompt` (messages), `question`, `answers`, `question_id` and `image`, still encoded.

    TRL reads a step's rows again for each of its micro-steps; the trainer opens their images once.
    """

    def to_prompts(batch: dict[str, list]) -> dict[str, list]:
        prompts = [grpo_prompt(question, image_token) for question in batch["question"]]
        return {"prompt": prompts} | {name: batch[name] for name in ("image", "question", "answers", "question_id")}

    return rows.with_transform(to_prompts)
