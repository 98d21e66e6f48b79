"""Images of the rows to train on: decoded and preprocessed beside the model, handed over as 8-bit levels to a GPU."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from cropvlm.encoding import process_image, read_levels
from cropvlm.models.tiling import DeviceTiling


def read_image(processor: Any, image: Image.Image, tiling: DeviceTiling | None) -> tuple[str, dict[str, Tensor]]:
    """Return the text that stands for `image` in a prompt, and what `on_device` makes its tiles of.

    With a `tiling` these are 8-bit levels, and several threads may read at once.
    """
    return process_image(processor, image, None) if tiling is None else read_levels(processor, image, tiling)


class ReadAhead:
    """Reads the images of the rows that a DataLoader fetches, in threads, each once, before a step asks for them.

    It is the loader's `collate_fn`, and hands the rows on as they are: accelerate fetches one batch ahead. Rows that a
    worker process fetches are read when they are asked for.

    Args:
        read: (image column, question_id) -> what is wanted of it; called in several threads.
    """

    def __init__(self, read: Callable[[Any, Any], Any]):
        self.read, self.threads = read, ThreadPoolExecutor()
        self._begun: dict[Any, Future] = {}  # by question_id, of the rows fetched last
        self._before: dict[Any, Future] = {}  # and of the ones before, which the current step uses

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ids = {row["question_id"] for row in rows}
        if get_worker_info() is None and ids != self._begun.keys():  # TRL fetches a step's rows once a micro-step
            self._before, self._begun = self._begun, self._reading(rows)
        return rows

    def _reading(self, rows: list[dict[str, Any]]) -> dict[Any, Future]:
        known = self._before | self._begun
        sources = {row["question_id"]: row["image"] for row in rows}
        return {i: known.get(i) or self.threads.submit(self.read, image, i) for i, image in sources.items()}

    def results(self, rows: list[dict[str, Any]]) -> dict[Any, Any]:
        """Return what `read` has made of each of these rows' images, by question_id."""
        return {i: future.result() for i, future in self._reading(rows).items()}


class ImageCollator:
    """TRL's collator for prompt-completion rows, with each image's tensors under `images` instead of padded tiles.

    Args:
        collate: TRL's. processor: the policy's. tiling: how its tiles are cut on the device, if they are.
    """

    def __init__(self, collate: Any, processor: Any, tiling: DeviceTiling | None):
        self.processor, self.tiling = processor, tiling
        self.collate = copy.copy(collate)
        self.collate.processor = copy.copy(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        placeholders, images = zip(
            *(read_image(self.processor, row["image"], self.tiling) for row in rows), strict=True
        )
        self.collate.processor._process_images = lambda images, **options: ({}, list(placeholders))
        return {**self.collate([dict(row) for row in rows]), "images": list(images)}
