"""Batches of rows of similar size, as large as memory allows."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from cropvlm.crops import widen_strip
from cropvlm.errors import UserError
from cropvlm.models.tiling import tiling_of

logger = logging.getLogger(__name__)

CPU_BATCH_SIZE = 32  # rows; more gain nothing there
MOST_ROWS = 256  # on a GPU; twice as many gain a few percent more
HOST_BYTES = 4 << 30  # of the pixels of one batch in this process
PIXELS_PER_TOKEN = 3 * 2 * 28 * 28  # Qwen2.5-VL's: each patch twice, as a video of two frames; LLaVA has fewer
TEXT_TOKENS = 256  # of a prompt and its answer, amply
WINDOW = 16  # batches that are sorted by size together: enough to be alike, few enough to keep reading in order


# Values of pixel_values in one call of the vision encoder, in SmolVLM tiles. 64 fill a GPU. A batch of 64 rows at
# 2048 px has 2,000; encoded at once, each of its activations (2,000 x 1,024 x 3,072) would take 12 GiB in bf16. A CPU's
# caches are best used by one.
TILE = 3 * 512 * 512
ENCODED_AT_ONCE = {"cuda": 64 * TILE, "cpu": TILE}


# Messages of drivers and cuBLAS, whose memory PyTorch's allocator does not manage.
OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class BatchTooLarge(UserError):
    """Out of memory at a fixed batch size, or with a single row."""


class Batches:
    """Batches that fit into memory: the size is halved permanently when one does not.

    size: initial number of items in a batch; None for all. fixed: never halve.
    """

    def __init__(self, size: int | None, fixed: bool = False):
        self.size, self.fixed = size, fixed

    def run(self, compute: Callable[[list], list], items: list) -> Iterator[Any]:
        """Yield the result of each item, in order; a `BatchTooLarge` for one that does not fit into memory alone.

        compute: takes a list of items, returns a result for each.
        Raises `BatchTooLarge` if a batch of a fixed size above 1 does not fit into memory.
        """
        size_before, start = self.size, 0
        while start < len(items):
            part = items[start : start + (self.size or len(items))]
            results = _unless_out_of_memory(compute, part)
            if results is None and len(part) > 1:
                self._halve(len(part))
                continue
            if results is None:  # the item is to blame, not the size
                self.size = size_before
                results = [BatchTooLarge("out of memory with this row alone; make its images smaller")]
            yield from results
            start += len(part)

    def _halve(self, tried: int) -> None:
        if self.fixed:
            raise BatchTooLarge(f"out of memory at batch size {tried}; make it or the images smaller")
        size = self.size or tried
        while size >= tried:
            size //= 2
        self.size = size
        logger.warning("out of memory: continuing with batches of %d rows", size)


def _unless_out_of_memory(compute: Callable[[Any], Any], part: Any) -> Any:
    """Result of `compute`; None if it runs out of memory."""
    try:
        return compute(part)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("out of memory", exc_info=True)
    # After the handler: until then its traceback keeps the batch alive.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of an allocator, a driver or cuBLAS means out of memory."""
    kinds = (torch.OutOfMemoryError, MemoryError, BatchTooLarge)
    told = any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, kinds) or told or should_reduce_batch_size(error)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU, including those that PyTorch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def auto_batch_size(model: Any, processor: Any, costs: list[int]) -> int:
    """Return the number of rows that fill about half of the GPU's free memory, a power of two up to 256; 32 on a CPU.

    An estimate: a batch that does not fit is halved. Each token of a row's two prompts takes its keys and values in
    every layer, and some twenty activations while the prompt is read. SmolVLM-256M in bf16: (2 x 30 layers x 3 heads
    x 64 + 20 x 576) x 2 bytes = 46 kB a token, 2 x (256 + 2 x 64) tokens = 35 MB a row at 512 px.
    costs: of all rows, as `row_costs` counts them; the costliest decides.
    """
    if model.device.type != "cuda":
        return CPU_BATCH_SIZE
    text = model.config.get_text_config()
    keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    values = 2 * text.num_hidden_layers * keys * width + 20 * text.hidden_size  # of a token
    image_tokens = _image_tokens(model, processor, max(costs, default=0))
    row = 2 * (TEXT_TOKENS + image_tokens) * values * model.dtype.itemsize  # bytes
    free = free_bytes(model.device)
    rows = max(1, min(free // 2 // row, MOST_ROWS))
    if tiling_of(processor, model.device) is None:  # else the pixels are made on the GPU
        rows = max(1, min(rows, HOST_BYTES // (image_tokens * PIXELS_PER_TOKEN * model.dtype.itemsize)))
    size = 1 << (rows.bit_length() - 1)
    logger.info("batches of %d rows of up to %d image tokens; %.1f GiB free", size, image_tokens, free / 2**30)
    return size


def _image_tokens(model: Any, processor: Any, cost: int) -> int:
    """Return the number of image tokens of a row; if every image costs the same (0), of two images."""
    of_a_tile = getattr(processor, "image_seq_len", None) or getattr(model.config, "image_seq_length", None) or 1
    if cost == 0:
        return 2 * of_a_tile
    merged = getattr(processor.image_processor, "merge_size", None)
    return cost // merged**2 if merged else cost * of_a_tile


def row_costs(processor: Any, image_sizes: Callable[[int], list[tuple[int, int]]], rows: int) -> list[int]:
    """Return the number of tiles (or patches) of each row's images: batches of equal cost need no padding.

    image_sizes: (width, height) of the images of row `i`; asked only where the cost depends on it.
    """
    cost = image_cost(processor)
    return [sum(map(cost, image_sizes(i))) if cost else 0 for i in range(rows)]


def image_cost(processor: Any) -> Callable[[tuple[int, int]], int] | None:
    """Return the number of tiles (patches) of an image as a function of (width, height); None where it is constant."""
    patches = getattr(processor.image_processor, "get_number_of_image_patches", None)
    if patches is None:
        return None

    def cost(size: tuple[int, int]) -> int:
        width, height = widen_strip(size)
        number = patches(height, width, {})
        return number[0] if isinstance(number, tuple) else number  # Idefics3 returns rows and columns as well

    shapes = [(100, 100), (100, 4000), (4000, 100), (4000, 3000)]
    return None if len({cost(shape) for shape in shapes}) == 1 else cost


def plan_batches(costs: list[int], batch_size: int) -> list[list[int]]:
    """Split rows 0..len(costs)-1 into batches of similar cost, window by window."""
    batches = []
    for start in range(0, len(costs), WINDOW * batch_size):
        window = sorted(range(len(costs))[start : start + WINDOW * batch_size], key=costs.__getitem__)
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return batches


def encoded_at_once(values: list[int], device: torch.device) -> Iterator[slice]:
    """Yield slices of images for one call of the vision encoder. values: size of each image's pixel_values."""
    most = ENCODED_AT_ONCE.get(device.type, ENCODED_AT_ONCE["cuda"])
    start = 0
    while start < len(values):
        stop = start + 1
        while stop < len(values) and sum(values[start : stop + 1]) <= most:
            stop += 1
        yield slice(start, stop)
        start = stop
