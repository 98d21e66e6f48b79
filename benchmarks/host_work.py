"""The host's work in training, old way beside new, without a GPU: what is left when the model costs nothing.

    OMP_NUM_THREADS=1 python3 benchmarks/host_work.py

A GRPO step of 16 prompts x 6 completions at SmolVLM's real geometry (images, tiles, tokens, layers), with weights a few
numbers wide. Printed are the training process's own CPU seconds outside of the model (its passes, sampling,
log-probabilities and the optimiser's step), and the operations that are launched, as PyTorch dispatches them, views
left out:

trl     TRL's own `GRPOTrainer` with the paper's micro-steps of one prompt, every reward alone
shared  train_grpo.py's trainer in the same micro-steps, with the tiles that the image processor makes
levels  the same as on a GPU: 8-bit levels are handed over; cutting tiles from them belongs to the model there
filled  the same with all prompts in one micro-step, which train_grpo.py chooses where memory holds them

Before that, a model that only sleeps is asked for boxes, with images prepared in between, and by a worker meanwhile.
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

import generation_speed
import grpo_step
import smolvlm
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationMixin, Idefics3ForConditionalGeneration, Idefics3Model
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cropvlm.encoding
import cropvlm.likelihood
import cropvlm.trainers.shared_images
from cropvlm.generation import generate_rows
from cropvlm.models.tiling import tiling_of
from cropvlm.runs.cli import positive

THIN_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
# An image token from each patch, 64 a tile as SmolVLM has; its 1,024 patches a tile are arithmetic alone.
THIN_VISION = {"hidden_size": 12, "intermediate_size": 12, "num_attention_heads": 1, "patch_size": 64}
# The miniature's tokenizer has 683 tokens; the arithmetic of logits is not the host's work.
VOCABULARY = {"vocab_size": 2048}
WAYS = ("trl", "shared", "levels", "filled")
TILING = (cropvlm.trainers.shared_images, cropvlm.likelihood)  # where training asks for the way of making tiles


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
        config = sizes(tokenizer)
        config.scale_factor = 1  # patches a side to a token
        return config

    sizes = smolvlm.sizes
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(smolvlm.TEXT, THIN_TEXT | VOCABULARY))
        stack.enter_context(mock.patch.dict(smolvlm.VISION, THIN_VISION))
        for module in (grpo_step, generation_speed):
            stack.enter_context(mock.patch.object(module, "sizes", thin_sizes))
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
        """Time forward, encoding, backward and the optimiser's step, as many tiles encoded at once as on a GPU.

        on_a_gpu: hand images over as to one.
        """
        parts = [
            (Idefics3ForConditionalGeneration, "forward"),
            (Idefics3Model, "get_image_features"),
            (cropvlm.encoding, "cut_tiles"),
            (GenerationMixin, "_sample"),  # with the logits' arithmetic, as the next
            (GRPOTrainer, "_get_per_token_logps_and_entropies"),
            (Accelerator, "backward"),
            (torch.optim.AdamW, "step"),
        ]
        as_many_tiles = {"cpu": cropvlm.encoding.ENCODED_AT_ONCE["cuda"]}
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(cropvlm.encoding.ENCODED_AT_ONCE, as_many_tiles))
            for owner, name in parts:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name))))
            for module in TILING if on_a_gpu else ():
                stack.enter_context(mock.patch.object(module, "tiling_of", tiling_on_a_gpu))
            yield


def tiling_on_a_gpu(processor: Any, device: torch.device) -> Any:
    """The way of making tiles that a GPU gets, wherever the model is."""
    return tiling_of(processor, torch.device("cuda"))


def step(way: str, prompts: int, longest_edge: int) -> tuple[float, int]:
    """Return the process's own seconds outside of the model in a GRPO step, and the operations that it launches.

    The seconds are half of what three steps take longer than one: a run's beginning and end are not in them.
    """
    settings = {"geometry": "real", "model_path": None, "longest_edge": longest_edge, "prompts": prompts}
    settings |= {"new_tokens": 16, "micro_prompts": prompts if way == "filled" else 1, "warmup_steps": 0}
    in_model = ModelTime()
    with thin_models(), in_model.timing(on_a_gpu=way in ("levels", "filled")):
        models = grpo_step.Models(argparse.Namespace(**settings))
        answerer = models.model(torch.float32).eval().requires_grad_(False)

        def own_seconds(steps: int) -> float:
            in_model.seconds, args = 0.0, argparse.Namespace(**settings, steps=steps)
            _, watch, _ = grpo_step.measure("trl" if way == "trl" else "ours", models, answerer, args)
            return watch.processor_seconds - in_model.seconds

        own_seconds(1)  # fills caches
        with Operations() as operations:
            own_seconds(1)
        return (own_seconds(3) - own_seconds(1)) / 2, operations.count


def overlap(rows: int, longest_edge: int) -> dict[str, float]:
    """Ask a model that only sleeps for the boxes of `rows` rows; return seconds by way.

    It sleeps about as long as the preparation of its images takes.
    """
    with thin_models():
        model, processor = generation_speed.build(None, longest_edge, torch.device("cpu"), torch.float32)
    source = generation_speed.boxes_source(generation_speed.make_rows(rows, 1))
    batch, stop = 4, processor.tokenizer.eos_token_id  # a worker is at most 4 rows ahead

    def ask(nap: float, workers: int) -> float:
        def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            time.sleep(nap)
            return torch.cat([input_ids, torch.full((len(input_ids), 1), stop)], 1)

        nothing = mock.patch(
            "cropvlm.generation.model_inputs", return_value={"input_ids": torch.zeros(batch, 1).long()}
        )
        with nothing, mock.patch.object(model, "generate", generate):
            start = time.perf_counter()
            options = {"max_new_tokens": 1, "batch_size": batch, "num_workers": workers}
            list(generate_rows(model, processor, source, **options))
            return time.perf_counter() - start

    alone = ask(0, 0)
    nap = alone / -(-rows // batch)
    return {
        "prepared without a model": alone,
        "the model alone": nap * -(-rows // batch),
        "prepared in between": ask(nap, 0),
        "prepared meanwhile, by a worker": ask(nap, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest_edge", type=int, choices=(512, 1024, 2048), default=512)
    parser.add_argument("--prompts", type=positive, default=16, help="of a step, 6 completions each")
    parser.add_argument("--rows", type=positive, default=256, help="asked of the model that sleeps")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more would count the model's arithmetic as the host's
    print(f"{args.longest_edge} px, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"\n| {args.rows} images, and a model that sleeps | s |\n|---|---|")
    for way, seconds in overlap(args.rows, args.longest_edge).items():
        print(f"| {way} | {seconds:.2f} |", flush=True)
    print(
        f"\n| GRPO step, {args.prompts} prompts x {grpo_step.G} | own CPU, s | operations |\n|---|---|---|", flush=True
    )
    for way in args.ways:
        own, operations = step(way, args.prompts, args.longest_edge)
        print(f"| {way} | {own:.2f} | {operations:,} |", flush=True)


if __name__ == "__main__":
    main()
