"""Errors of a training that come from outside or from its settings, in one line that names the remedy."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from cropvlm.errors import UserError, one_line
from cropvlm.models.batches import BatchTooLarge, is_out_of_memory

RESUME = "continue with --resume_from_checkpoint True"
FULL = f"{{output}}: the disk is full; make room and {RESUME}"
# Words of the libraries, and what to do. The first that is found counts: shared memory ends with the disk's words.
KNOWN = {
    ("shared memory", "file </torch_"): "the processes that prepare images have no shared memory left (/dev/shm): "
    f"start the container with --shm-size=8g, or {RESUME} --dataloader_num_workers 0",
    ("out of memory",): f"out of memory: {RESUME} and half the "
    "--micro_batch_size, here {size}; --gradient_checkpointing True and a lower --reward_batch_size help too",
    ("C compiler", "Python.h", "'gcc'"): "TRL's loss runs Triton on a GPU, which needs a C compiler and Python's "
    "headers: install gcc and python3-dev",
    ("No space left", "quota exceeded", "File too large"): FULL,
    ("PytorchStreamWriter", "unexpected pos"): FULL,  # torch's writer gives no reason
}


class FirstStep(TrainerCallback):
    """Notes that a step has been taken."""

    taken = False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.taken = True


@contextlib.contextmanager
def told_in_one_line(args: TrainingArguments, first_step: FirstStep | None = None) -> Iterator[None]:
    """Raise `UserError` for a full disk or memory, whichever library reports it.

    first_step: until it has been taken, any other error is taken for a setting that the libraries reject.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, BatchTooLarge):
            raise
        text = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        for words, message in KNOWN.items():
            if any(word in text for word in words):
                values = {"size": args.per_device_train_batch_size, "output": args.output_dir}
                raise UserError(f"{message.format(**values)} ({one_line(error)})") from error
        if first_step is None or first_step.taken:
            raise
        seen = f"these settings cannot be trained with ({one_line(error)})"
        raise UserError(f"{seen}; --log_level debug shows where") from error
