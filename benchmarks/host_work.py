"""The host's work in a GRPO step, without a GPU: what is left when the model costs nothing.

    OMP_NUM_THREADS=1 python3 benchmarks/host_work.py

16 prompts x 6 completions at SmolVLM's real geometry (images, tiles, tokens, layers), with weights a few numbers wide.
Printed are the training process's own CPU seconds outside of the model (its passes, sampling, log-probabilities and the
optimiser's step), and the operations that are launched, as PyTorch dispatches them, views left out: of TRL's own
`GRPOTrainer` in micro-steps of one prompt, and of train_grpo.py's with all prompts in one and images handed over as to
a GPU, whose tiles are made in the model.
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpo_step
import smolvlm
import torch
from accelerate import Accelerator
from timing import machine
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationMixin, Idefics3ForConditionalGeneration, Idefics3Model
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.models import batches, readers, tiling

THIN_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
# An image token from each patch, 64 a tile as SmolVLM has; its 1,024 patches a tile are arithmetic alone.
THIN_VISION = {"hidden_size": 12, "intermediate_size": 12, "num_attention_heads": 1, "patch_size": 64}
# The miniature's tokenizer has 683 tokens; the arithmetic of logits is not the host's work.
VOCABULARY = {"vocab_size": 2048}
IN_MODEL = [
    (Idefics3ForConditionalGeneration, "forward"),
    (Idefics3Model, "get_image_features"),
    (tiling, "cut_tiles"),
    (GenerationMixin, "_sample"),  # with the logits' arithmetic, as the next
    (GRPOTrainer, "_get_per_token_logps_and_entropies"),
    (Accelerator, "backward"),
    (torch.optim.AdamW, "step"),
]


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches within `with`, views left out: they launch nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **kwargs or {})


@contextlib.contextmanager
def thin_models() -> Iterator[None]:
    """Let models have SmolVLM's layers, tiles and tokens, and next to no weights."""

    def thin_sizes(tokenizer: Any) -> Any:
        config = smolvlm.sizes(tokenizer)
        config.scale_factor = 1  # patches a side to a token
        return config

    text, vision = (mock.patch.dict(smolvlm.TEXT, THIN_TEXT | VOCABULARY), mock.patch.dict(smolvlm.VISION, THIN_VISION))
    with text, vision, mock.patch.object(grpo_step, "sizes", thin_sizes):
        yield


class ModelTime:
    """Adds up the CPU seconds of this thread within the model, while its `timing` is entered."""

    def __init__(self):
        self.seconds, self._inside = 0.0, False

    def timed(self, function: Callable) -> Callable:
        """Return the same function, whose seconds are added up, calls from within another one once."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.thread_time()  # images are read in other threads meanwhile
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.thread_time() - start

        return call

    @contextlib.contextmanager
    def timing(self, on_a_gpu: bool) -> Iterator[None]:
        """Time the parts of the model, as many tiles encoded at once as on a GPU.

        on_a_gpu: hand images over as to one.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(batches.ENCODED_AT_ONCE, cpu=batches.ENCODED_AT_ONCE["cuda"]))
            for owner, name in IN_MODEL:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name))))
            for module in (batches, readers) if on_a_gpu else ():
                stack.enter_context(mock.patch.object(module, "tiling_of", tiling_on_a_gpu))
            yield


def tiling_on_a_gpu(processor: Any, device: torch.device) -> Any:
    """The way of making tiles that a GPU gets, wherever the model is."""
    return tiling.tiling_of(processor, torch.device("cuda"))


def step(way: str, prompts: int) -> tuple[float, int]:
    """Return the process's own seconds outside of the model in a GRPO step, and the operations that it launches.

    The seconds are half of what three steps take longer than one: a run's beginning and end are not in them.
    """
    settings = {"geometry": "real", "longest_edge": 512, "new_tokens": 16, "warmup_steps": 0}
    settings |= {"prompts": prompts, "micro_prompts": prompts}
    in_model = ModelTime()
    with thin_models(), in_model.timing(on_a_gpu=way == "ours"):
        models = grpo_step.Models(argparse.Namespace(**settings))
        answerer = models.model(torch.float32).eval().requires_grad_(False)

        def own_seconds(steps: int) -> float:
            in_model.seconds = 0.0
            _, watch, _ = grpo_step.measure(way, models, answerer, argparse.Namespace(**settings, steps=steps))
            return watch.processor_seconds - in_model.seconds

        own_seconds(1)  # fills caches
        with Operations() as operations:
            own_seconds(1)
        return (own_seconds(3) - own_seconds(1)) / 2, operations.count


def main() -> None:
    torch.set_num_threads(1)  # more would count the model's arithmetic as the host's
    print(f"{machine()}, 512 px, 16 prompts x {grpo_step.G}")
    for way in ("ours", "trl"):
        own, operations = step(way, 16)
        print(f"{way}: {own:.2f} s of the process's own CPU time, {operations:,} operations", flush=True)


if __name__ == "__main__":
    main()
