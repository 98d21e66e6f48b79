"""Images of the rows to train on: decoded and preprocessed beside the model, handed over as 8-bit levels to a GPU."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import get_worker_info

from cropvlm.models.cores import cpu_count


class ReadAhead:
    """Reads the images of the rows that a DataLoader fetches, in threads, each once, before a step asks for them.

    It is the loader's `collate_fn`, and hands the rows on as they are: accelerate fetches one batch ahead. TRL fetches
    and holds a step's rows once for each of its micro-steps: all of them get the same rows. Those that a worker process
    fetches are read when they are asked for.

    Args:
        read: (image column, question_id) -> what is wanted of it; called in several threads.
    """

    def __init__(self, read: Callable[[Any, Any], Any]):
        self.read, self.threads = read, ThreadPoolExecutor(cpu_count())
        self._rows: list[dict[str, Any]] = []  # fetched last
        self._begun: dict[Any, Future] = {}  # of these, by question_id
        self._before: dict[Any, Future] = {}  # and of the ones before, which the current step uses

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if get_worker_info() is not None:
            return rows
        if [row["question_id"] for row in rows] != [row["question_id"] for row in self._rows]:
            self._before, self._begun, self._rows = self._begun, self._reading(rows), rows
        return self._rows

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
        collate: TRL's. processor: the policy's. read: of the image reader for the policy's device.
    """

    def __init__(self, collate: Any, processor: Any, read: Callable[[Any], Any]):
        self.read = read
        self.collate = copy.copy(collate)
        self.collate.processor = copy.copy(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        images = [self.read(row["image"]) for row in rows]
        placeholders = [image.placeholder for image in images]
        self.collate.processor._process_images = lambda images, **options: ({}, placeholders)
        return {**self.collate([dict(row) for row in rows]), "images": [image.tensors for image in images]}
