"""Rows to train on: loaded, those without a box or references left out, every image checked."""

import logging
from typing import Any

from datasets import Dataset
from PIL import Image

from cropvlm.data.images import image_size, open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UnreadableImage, UserError, listed, shorten

logger = logging.getLogger(__name__)


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
    _check_images(rows, dataset_path)
    return rows


def _check_images(rows: Dataset, dataset_path: str) -> None:
    """Read every image's header: a missing or unreadable file must not end a run after hours."""
    errors = {}
    for row in rows.select_columns(["question_id", "image"]):
        try:
            image_size(row["image"])
        except UnreadableImage as error:
            errors[row["question_id"]] = error
    if errors:
        seen = f"{len(errors)} rows cannot be trained on, question_id {listed(list(map(repr, errors)))}"
        first = next(iter(errors.values()))
        raise UserError(f"{dataset_path}: {seen}; the first has an {first}; leave these rows out")


def open_training_image(source: Any, question_id: str | int) -> Image.Image:
    """Return the image of a row, decoded; `UserError` where its header was good, but the rest is not."""
    try:
        return open_image(source)
    except UnreadableImage as error:
        row = f"question_id {shorten(repr(question_id))}"
        raise UserError(f"{row} has an {error}; leave the row out of the data set") from error
