"""Errors of a trainer that runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cropvlm.cli import UserError


class OutOfMemory(UserError):
    """The memory was too small for what a trainer does at once."""


class RolloutTooLarge(OutOfMemory):
    """Too many completions were written at once."""


class MicroStepTooLarge(OutOfMemory):
    """Too many rows went through the model at once."""


@contextmanager
def memory_errors(error: type[OutOfMemory], doing: str) -> Iterator[None]:
    """Raise `error`, with what was being done, where a GPU's or the machine's memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as cause:
        if not isinstance(cause, torch.OutOfMemoryError | MemoryError) and "CPUAllocator" not in str(cause):
            raise
        raise error(f"out of memory {doing}") from cause
