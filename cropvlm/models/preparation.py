"""Rows prepared ahead of the model, in worker processes; a row that cannot be prepared fails alone."""

import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader

from cropvlm.errors import UnreadableImage, one_line, shorten


class FailedRow(ValueError):
    """Reason why a row cannot be prepared; the cause's traceback is a note, which survives pickling by a worker."""


class _Rows(torch.utils.data.Dataset):
    """Result of `prepare` for row `i`, or its error."""

    def __init__(self, prepare: Callable[[int], Any]):
        self.prepare = prepare

    def __getitem__(self, i: int) -> Any:
        try:
            return self.prepare(i)
        except (UnreadableImage, FailedRow) as error:
            return error
        except Exception as error:
            failure = FailedRow(f"cannot be prepared: {type(error).__name__}: {shorten(one_line(error))}")
            failure.add_note(traceback.format_exc())
            return failure


def prepared_batches(
    prepare: Callable[[int], Any], plan: Sequence[list[int]], num_workers: int, device: torch.device
) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield the indices of each batch with the prepared rows, or the `ValueError` of a row that failed.

    prepare: called with a row's index, in one of `num_workers` processes; 0 calls it here, on a GPU in a thread.
    """
    # Workers hand over single rows: whole batches of 2048-px images, two per worker, would fill the memory.
    loader = DataLoader(
        _Rows(prepare),
        batch_size=None,
        sampler=list(itertools.chain.from_iterable(plan)),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        pin_memory=device.type == "cuda",
    )
    rows = iter(loader)
    batches = ((batch, list(itertools.islice(rows, len(batch)))) for batch in plan)
    return one_ahead(batches) if device.type == "cuda" else batches


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items; the next one is computed in a thread while the caller works with this one."""
    done = object()
    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next, items, done)
        while (item := upcoming.result()) is not done:
            upcoming = thread.submit(next, items, done)
            yield item


def check_length(tokenizer: Any, texts: Iterable[str], context: int | None) -> None:
    """Raise `FailedRow` for a text that is longer than the model's context, before it fills the memory.

    context: in tokens; None if the model has no limit.
    """
    for text in texts:
        if context and len(text.encode(errors="replace")) > context:  # a text has at most as many tokens as bytes
            tokens = len(tokenizer(text)["input_ids"])
            if tokens > context:
                raise FailedRow(f"a question of {tokens} tokens; the model's context holds {context}")
