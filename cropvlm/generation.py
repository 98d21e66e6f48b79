"""Batched greedy generation over many rows: images opened and preprocessed ahead, rows of like size together.

The texts of a row do not depend on the batch it was in (in fp32 on the CPU; in bf16 up to rounding), and come back
with the row's index, so that the caller can restore the order of the data set.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GenerationConfig

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, widen_strip
from cropvlm.encoding import Prepared, merge, model_inputs, prepare, stop_token_ids
from cropvlm.prompts import Prompt, PromptSource

logger = logging.getLogger(__name__)

AUTO = "auto"
FIRST_BATCH_SIZE = {"cuda": 64, "cpu": 32}  # what `auto` starts from, in rows
WINDOW = 16  # batches that are sorted by size together: enough to be alike, few enough to keep reading in order


class BatchTooLarge(UserError):
    """Out of GPU memory at a batch size that `generate_rows` may not halve."""


def generate_rows(
    model: Any,
    processor: Any,
    source: PromptSource,
    *,
    max_new_tokens: int,
    batch_size: int | str = AUTO,
    num_workers: int = 0,
    done: Collection[int] = (),
    min_new_tokens: int | None = None,
) -> Iterator[tuple[int, list[str] | UnreadableImage]]:
    """Yield (row index, texts of its prompts), or the error where an image is unreadable, as batches complete.

    Args:
        model, processor: as `cropvlm.modeling` loads them.
        source: prompts by row.
        max_new_tokens: of each text.
        batch_size: rows in a batch, or "auto": 64 on a GPU, 32 on a CPU, halved on running out of GPU memory.
        num_workers: processes that open and preprocess images ahead; 0 does it in between.
        done: rows to leave out. Batches are cut as if they were there, and a batch of which some rows are missing
            is generated whole: a resumed run computes the same numbers as an undisturbed one.
        min_new_tokens: for benchmarks, which want texts of equal length.

    Raises:
        BatchTooLarge: out of GPU memory at a batch size that may not be halved.
    """
    size = FIRST_BATCH_SIZE[model.device.type] if batch_size == AUTO else int(batch_size)
    config = greedy(model, processor, max_new_tokens, min_new_tokens)
    finished = set(done)
    costs = row_costs(processor, source)
    while len(finished) < len(source):
        batches = [batch for batch in plan_batches(costs, size) if not finished.issuperset(batch)]
        try:
            for indices, items in _prepared_batches(processor, source, batches, model.dtype, num_workers):
                for i, texts in zip(indices, _generate_batch(model, processor, items, config), strict=True):
                    if i not in finished:
                        finished.add(i)
                        yield i, texts
        except torch.OutOfMemoryError:
            if batch_size != AUTO or size == 1:
                raise BatchTooLarge(f"out of GPU memory at batch size {size}; make it or the images smaller") from None
            size = half(size)
        # After the handler: until then its traceback keeps the batch alive.
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def half(size: int) -> int:
    """Half of the batch size that the GPU's memory was too small for, and a warning that says so."""
    logger.warning("out of GPU memory: going on with batches of %d rows", size // 2)
    return size // 2


def generate_texts(
    model: Any,
    processor: Any,
    messages_list: Sequence[list[dict]],
    images_list: Sequence[list[Any]],
    *,
    max_new_tokens: int,
    batch_size: int | str = AUTO,
) -> list[str]:
    """The greedy continuation of each chat, in input order. An image shared by neighbours is encoded once.

    messages_list: chat messages (B). images_list: PIL images for their placeholders (B lists).
    """
    source = _InMemory(list(zip(messages_list, images_list, strict=True)))
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    texts = dict(generate_rows(model, processor, source, **options))
    return [texts[i][0] for i in range(len(source))]


class _InMemory:
    def __init__(self, prompts: list[Prompt]):
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i: int) -> list[Prompt]:
        return [self.prompts[i]]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        return [image.size for image in self.prompts[i][1]]


def greedy(model: Any, processor: Any, max_new_tokens: int, min_new_tokens: int | None = None) -> GenerationConfig:
    """Plain greedy search, whatever the checkpoint's own generation config adds (Qwen2.5-VL: repetition penalty)."""
    stop = stop_token_ids(model, processor)
    pad = processor.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_id=stop,
        pad_token_id=stop[0] if pad is None else pad,
        repetition_penalty=1.0,
        # Named to keep transformers from taking the checkpoint's and warning that greedy search ignores them.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
    )


def row_costs(processor: Any, source: PromptSource) -> list[int]:
    """Tiles (or patches) of each row's images: rows of one cost waste nothing on padding in a batch."""
    count = image_cost(processor)
    if count is None:
        return [0] * len(source)
    return [sum(map(count, source.image_sizes(i))) for i in range(len(source))]


def image_cost(processor: Any) -> Callable[[tuple[int, int]], int] | None:
    """How many tiles (patches) the processor cuts an image of (width, height) into; None where always as many."""
    patches = getattr(processor.image_processor, "get_number_of_image_patches", None)
    if patches is None:
        return None

    def count(size: tuple[int, int]) -> int:
        width, height = widen_strip(size)
        number = patches(height, width, {})
        return number[0] if isinstance(number, tuple) else number  # Idefics3 returns rows and columns as well

    shapes = [(100, 100), (100, 4000), (4000, 100), (4000, 3000)]
    return None if len({count(shape) for shape in shapes}) == 1 else count


def plan_batches(costs: list[int], batch_size: int) -> list[list[int]]:
    """Cut rows 0..len(costs)-1 into batches of like cost, window by window."""
    batches = []
    for start in range(0, len(costs), WINDOW * batch_size):
        window = sorted(range(len(costs))[start : start + WINDOW * batch_size], key=costs.__getitem__)
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return batches


class _Preparation(torch.utils.data.Dataset):
    """What a worker does for one row."""

    def __init__(self, processor: Any, source: PromptSource, dtype: torch.dtype):
        self.processor, self.source, self.dtype = processor, source, dtype

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Prepared | UnreadableImage:
        try:
            return prepare(self.processor, self.source[i], self.dtype)
        except UnreadableImage as error:
            return error


def _prepared_batches(
    processor: Any, source: PromptSource, batches: list[list[int]], dtype: torch.dtype, num_workers: int
) -> Iterator[tuple[list[int], list[Prepared | UnreadableImage]]]:
    # Workers hand over single rows: whole batches of 2048-px images, two per worker, would fill the memory.
    loader = DataLoader(
        _Preparation(processor, source, dtype),
        batch_size=None,
        sampler=list(itertools.chain.from_iterable(batches)),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
    items = iter(loader)
    for batch in batches:
        yield batch, list(itertools.islice(items, len(batch)))


def _as_it_is(item: Any) -> Any:
    return item


@torch.inference_mode()
def _generate_batch(
    model: Any, processor: Any, items: list[Prepared | UnreadableImage], config: GenerationConfig
) -> list[list[str] | UnreadableImage]:
    """The texts of each row of a batch; an unreadable row's error passes through."""
    readable = [item for item in items if isinstance(item, Prepared)]
    if not readable:
        return items
    inputs = model_inputs(model, merge(readable), config.pad_token_id)
    output = model.generate(**inputs, generation_config=config)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]  # (prompts, up to max_new_tokens)
    texts = iter(processor.batch_decode(new_tokens, skip_special_tokens=True))
    return [
        list(itertools.islice(texts, len(item.input_ids))) if isinstance(item, Prepared) else item for item in items
    ]


# (row index, one text per prompt or why there is none; or why there are none for the row), as they come
Outcomes = Iterable[tuple[int, list[str | ValueError] | ValueError]]
