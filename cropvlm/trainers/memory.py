"""How many rows go through a trainer's model at once: what memory should hold, and less where it does not."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from cropvlm.errors import UserError
from cropvlm.models.batches import unless_out_of_memory

logger = logging.getLogger(__name__)

GPU_SHARE = 0.75  # of the memory that is free before the first step
CPU_BYTES = 4 << 30
# Values kept for the backward pass, in multiples of the hidden size, of a token or patch and layer. Peak memory of
# SmolVLM-256M with the paper's LoRA on an H200, at 512 and 2048 px, gives 28 and 11.
TEXT_VALUES, VISION_VALUES = 30, 12
PROMPT_VALUES = 20  # likewise of a token, in the one layer that reads the prompt just then


class RolloutTooLarge(UserError):
    """Too many completions were written at once."""

    step = "rollouts"


class MicroStepTooLarge(UserError):
    """Too many rows went through the model at once."""

    step = "micro-steps"


class MicroBatches:
    """The parts of a batch that go through the model at once.

    Args:
        size: rows in a part, or "auto": what three quarters of a GPU's free memory, or 4 GiB of a CPU's, should hold.
            "auto" is halved on running out of memory, except among several processes, which have to keep in step.
        unit: rows that stay together, such as the completions of a prompt.
        num_processes: in which the same happens; all take the smallest size.
        error: raised where memory runs out with a part that may not be made smaller.
    """

    def __init__(self, size: int | str, unit: int = 1, num_processes: int = 1, error: type[Any] = MicroStepTooLarge):
        self.wanted = None if size == "auto" else max(1, size // unit)
        self.unit, self.num_processes, self.error = unit, num_processes, error
        self.bytes: int | None = None  # that a part may take; known once the model is where it stays

    def run(self, compute: Callable[[int], Any], units: int, unit_bytes: int, device: torch.device) -> Any:
        """Return what `compute` makes of the number of units in a part; it is asked again where memory runs out.

        units: of the whole batch. unit_bytes: an estimate of what one takes.
        """
        while True:
            size = self._size(units, unit_bytes, device)
            result = unless_out_of_memory(compute, size)
            if result is not None:
                return result
            rows = size * self.unit
            if size == 1 or self.wanted is not None or self.num_processes > 1:
                raise self.error(f"out of memory with {rows} rows at once")
            self.bytes = size * unit_bytes // 2
            logger.warning("out of memory with %d rows at once: continuing with half as many", rows)

    def _size(self, units: int, unit_bytes: int, device: torch.device) -> int:
        """Units in a part: as many as fit, in parts of like size."""
        if self.wanted is not None:
            return min(units, self.wanted)
        first = self.bytes is None
        if first:
            self.bytes = _free_bytes(device)
        parts = math.ceil(units / max(1, self.bytes // unit_bytes))
        size = min(gather_object([math.ceil(units / parts)]))
        if first:
            each, free = unit_bytes / self.unit / 2**30, self.bytes / 2**30
            shown = (self.error.step, size * self.unit, units * self.unit, each, free)
            logger.info("%s: %d of %d rows at once, an estimated %.3f GiB each, %.1f GiB to fill", *shown)
        return size


def parts_of(units: int, size: int) -> list[slice]:
    """Cut so many units into parts of `size`; the last may be smaller."""
    return [slice(start, start + size) for start in range(0, units, size)]


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(GPU_SHARE * free)


def activation_bytes(config: Any, tokens: int, tiles: float, itemsize: int) -> int:
    """Return about how many bytes the forward pass of an Idefics3 keeps for the backward pass.

    tokens: of the text model, padding included. tiles: images of the vision encoder. itemsize: bytes of a value.
    """
    text, vision = config.get_text_config(), config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    values = TEXT_VALUES * tokens * text.num_hidden_layers * text.hidden_size
    values += VISION_VALUES * tiles * patches * vision.num_hidden_layers * vision.hidden_size
    return int(values * itemsize)


def generation_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """Return about how many bytes a row takes in generation: keys, values, and the layer that reads the prompt."""
    text = config.get_text_config()
    width = 2 * text.num_hidden_layers * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    return tokens * (width + PROMPT_VALUES * text.hidden_size) * itemsize
