"""A whole GRPO step in one run: train_grpo.py's and unmodified TRL's.

    python3 benchmarks/grpo_step.py --geometry miniature
    python3 benchmarks/grpo_step.py --geometry real --prompts 1                         (minutes on two cores)
    python3 benchmarks/grpo_step.py --geometry real --longest_edge 2048                 (on a GPU)

ours      groups share one encoding of their image, and the rewards of all completions are scored together
trl       TRL's own `GRPOTrainer`, one prompt in a micro-step; a completion's reward is scored alone

Random weights, the release's settings, JPEGs of about 1024x768, from encoded bytes to the optimiser's step. Both ways
really generate `--new_tokens` tokens, which the same boxes then replace, so that rewards and gradients can be compared
and the crops are as many and as large as in training. Dropout is off in both.
"""

import argparse
import functools
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from peft import get_peft_model
from smolvlm import TILE, TILE_TOKENS, sizes
from synthetic import SIZES, jpeg
from timing import clock, machine
from transformers import Idefics3ForConditionalGeneration, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.boxes import format_bbox
from cropvlm.crops import crop_or_corner
from cropvlm.data.images import open_image
from cropvlm.modeling import answer_log_likelihood
from cropvlm.models.tokens import stop_token_ids
from cropvlm.rewards import AnswerLikelihoodReward, completion_text, validity_reward
from cropvlm.runs.cli import positive
from cropvlm.trainers.micro_batches import set_micro_batches
from cropvlm.trainers.training_data import prompt_rows
from cropvlm.trainers.trl_overrides import BoxGRPOTrainer
from miniature.tiny_models import TILE as SMALL_TILE
from miniature.tiny_models import build_smolvlm
from train_grpo import GRPOArguments, GRPOPolicyArguments

GRPO_ROWS = 62_043  # half of the four sources
G = 6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Models:
    """Policies, reward VLM and processors of one geometry, with random weights."""

    def __init__(self, args: argparse.Namespace):
        self.real = args.geometry == "real"
        self.scale = 1 if self.real else TILE // SMALL_TILE

    def processor(self, longest_edge: int) -> Any:
        """The processor for images of `longest_edge` px; the miniature's tiles are an eighth of that, and so is all."""
        _, processor = build_smolvlm()
        processor.image_processor.size = {"longest_edge": longest_edge // self.scale}
        if self.real:
            processor.image_processor.max_image_size = {"longest_edge": TILE}
            processor.image_seq_len = TILE_TOKENS
        return processor

    def model(self, dtype: torch.dtype) -> Any:
        """An Idefics3 whose weights are the same every time."""
        small, processor = build_smolvlm()
        torch.manual_seed(0)
        if not self.real:
            return small.to(dtype)
        model = Idefics3ForConditionalGeneration._from_config(sizes(processor.tokenizer), dtype=dtype)
        model.generation_config = small.generation_config
        return model

    def policy(self, dtype: torch.dtype, processor: Any) -> Any:
        """The model with the release's LoRA, whose B is not zero, as after SFT."""
        policy = get_peft_model(self.model(dtype), GRPOPolicyArguments().lora_config())
        generator = torch.Generator().manual_seed(1)
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 1e-3
        policy.generation_config.eos_token_id = stop_token_ids(policy, processor)
        return policy


class Clock:
    """Seconds by part of a step."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = clock(DEVICE)
        yield
        self.seconds[part] += clock(DEVICE) - start


class Measured:
    """Mixin for a trainer: times its parts, replaces its completions by fixed boxes, keeps rewards and gradients.

    Args:
        turns: token ids of the completions of one step, (prompts x G) lists.
    """

    def __init__(self, turns: list[list[int]], **kwargs: Any):
        self.turns, self.clock, self.rolled_out = turns, Clock(), 0
        self.rewards: list[torch.Tensor] = []
        self.gradients: dict[str, torch.Tensor] = {}
        super().__init__(**kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.clock("training step"):
            return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        with self.clock("preparation"):
            return super()._prepare_inputs(inputs)

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> tuple:
        with self.clock("rollout"):
            super()._generate_single_turn(prompt_ids, *args, **kwargs)
        first = self.rolled_out % len(self.turns)
        self.rolled_out += len(prompt_ids)
        return self.turns[first : first + len(prompt_ids)], None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("policy's forward" if torch.is_grad_enabled() else "reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        with self.clock("reward"):
            rewards = super()._calculate_rewards(*args)
        self.rewards.append(rewards.cpu())
        return rewards

    def _clip_grad_norm(self, model: Any) -> Any:
        if not self.gradients:
            weights = self.model.named_parameters()
            gradients = {name: weight.grad for name, weight in weights if weight.grad is not None}
            self.gradients = {name: grad.to("cpu", torch.float32, copy=True) for name, grad in gradients.items()}
        return super()._clip_grad_norm(model)


class MeasuredOurs(Measured, BoxGRPOTrainer):
    """train_grpo.py's trainer, without pictures of the boxes."""


class MeasuredTRL(Measured, GRPOTrainer):
    """TRL's."""


class RewardApart:
    """The log-likelihood reward of completions that share nothing, one in a forward pass."""

    __name__ = "answer_likelihood_reward"

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    def __call__(self, completions: list, image: list, question: list, answers: list, **columns: Any) -> list[float]:
        texts = map(completion_text, completions)
        pairs = [(full.copy(), crop_or_corner(full, text)) for full, text in zip(image, texts, strict=True)]
        references = [references[0] for references in answers]
        rows = (self.model, self.processor, pairs, question, references)
        return answer_log_likelihood(*rows, batch_size=1).tolist()


class Stopwatch(TrainerCallback):
    """Starts the stopwatch after the warm-up steps."""

    def __init__(self, trainer: Measured, warmup: int):
        self.trainer, self.warmup = trainer, warmup
        self.start = self.processor_start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.warmup == 0:
            self.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds, self.processor_seconds = clock(DEVICE) - self.start, time.process_time() - self.processor_start
        if state.global_step == self.warmup:
            self.begin()

    def begin(self) -> None:
        reset_peak_memory()
        self.trainer.clock.seconds.clear()
        self.start, self.processor_start = clock(DEVICE), time.process_time()


def reset_peak_memory() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Peak memory in GiB, of the GPU if there is one, else resident."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20


def make_rows(number: int) -> Dataset:
    """Rows with JPEGs, across and upright in turn."""
    noise = np.random.default_rng(42)
    questions = ("What is written on the red sign?", "What is the number on that big blue plate?")
    rows = [
        {
            "image": {"bytes": jpeg(noise, SIZES[i % 2]), "path": None},
            "question": questions[i % 2],
            "question_id": i,
            "answers": ["stop"] * 10,
        }
        for i in range(number)
    ]
    return Dataset.from_list(rows).cast_column("image", Image(decode=False))


def with_decoded_images(rows: Dataset) -> Dataset:
    """`rows` of `prompt_rows` as TRL expects them: every access opens the image."""
    to_prompts = rows.format["format_kwargs"]["transform"]

    def decoded(batch: dict[str, list]) -> dict[str, list]:
        batch = to_prompts(batch)
        return batch | {"image": list(map(open_image, batch["image"]))}

    return rows.with_transform(decoded)


def make_turns(number: int, processor: Any) -> list[list[int]]:
    """Different boxes, 20 to 60% of each side, as token ids with the end of the turn."""
    draw = np.random.default_rng(7)
    boxes = []
    while len(boxes) < number:
        (x1, y1), (width, height) = draw.integers(0, 40, 2).tolist(), draw.integers(20, 61, 2).tolist()
        if (box := (x1, y1, x1 + width, y1 + height)) not in boxes:
            boxes.append(box)
    texts = [format_bbox(box) for box in boxes]
    tokenizer = processor.tokenizer
    ids = tokenizer([f" {text}<end_of_utterance>" for text in texts], add_special_tokens=False)
    return ids["input_ids"]


def measure(way: str, models: Models, answerer: Any, args: argparse.Namespace) -> tuple[Measured, Stopwatch, float]:
    """Take the steps one way; return the trainer, its stopwatch and peak memory in GiB."""
    groups = 1 if way == "trl" else args.prompts  # in a micro-step
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOArguments(
            output_dir=folder,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
            num_generations=G,
            per_device_train_batch_size=G * groups,
            gradient_accumulation_steps=args.prompts // groups,
            max_steps=args.warmup_steps + args.steps,
            generation_kwargs={"min_new_tokens": args.new_tokens},
            max_completion_length=args.new_tokens,
        )
        dtype = torch.bfloat16 if config.bf16 else torch.float32
        processor, reward_processor = models.processor(args.longest_edge), models.processor(TILE)
        rows = make_rows(args.prompts * (args.warmup_steps + args.steps))  # a step repeats no image of the last
        rows = prompt_rows(rows, processor.image_token)
        policy = models.policy(dtype, processor)
        if way == "ours":
            set_micro_batches(config, policy, processor)
            trainer_class = functools.partial(MeasuredOurs, policy=GRPOPolicyArguments(log_crops_every=0))
            reward = AnswerLikelihoodReward(answerer, reward_processor)
        else:
            rows, trainer_class = with_decoded_images(rows), MeasuredTRL
            reward = RewardApart(answerer, reward_processor)
        trainer = trainer_class(
            turns=make_turns(G * args.prompts, processor),
            model=policy,
            processing_class=processor,
            reward_funcs=[validity_reward, reward],
            args=config,
            train_dataset=rows,
        )
        trainer.remove_callback(PrinterCallback)
        stopwatch = Stopwatch(trainer, args.warmup_steps)
        trainer.add_callback(stopwatch)
        trainer.train()
    return trainer, stopwatch, peak_memory()


def report(
    way: str, trainer: Measured, stopwatch: Stopwatch, memory: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Print one way's figures; return what the others are compared by."""
    seconds = stopwatch.seconds / args.steps
    parts = {part: each / args.steps for part, each in trainer.clock.seconds.items()}
    parts["forward and backward"] = parts.pop("training step") - parts.pop("preparation")
    del parts["policy's forward"]
    shown = {part: parts[part] for part in ("rollout", "reference", "reward", "forward and backward")}
    shown["rest"] = seconds - sum(shown.values())
    spent = ", ".join(f"{part} {each:.2f}" for part, each in shown.items())
    rate = args.prompts / seconds
    print(f"{way:8}  {seconds:8.2f} s a step, {rate:.3f} prompts/s, peak memory {memory:.2f} GiB, {spent}")
    print(f"          {GRPO_ROWS} prompts: {GRPO_ROWS / rate / 3600:.1f} h", end="; ")
    print(f"{stopwatch.processor_seconds / args.steps:.1f} s of the processor's time a step", flush=True)
    rewards = torch.cat(trainer.rewards)[: G * args.prompts]  # of the first step
    return {"seconds": seconds, "reward": shown["reward"], "rewards": rewards, "gradients": trainer.gradients}


def compare(ours: dict[str, Any], other: dict[str, Any]) -> None:
    """Print how many times as fast as TRL we are, and how far rewards and gradients of the first step are apart."""
    ratio = other["seconds"] / ours["seconds"]
    print(f"{ratio:.2f} times as fast as unmodified TRL; the reward alone {other['reward'] / ours['reward']:.2f} times")
    rewards = (ours["rewards"] - other["rewards"]).abs().max()
    low, high = ours["rewards"].sum(1).aminmax()
    assert ours["gradients"].keys() == other["gradients"].keys()
    apart = max((ours["gradients"][key] - grad).abs().max() for key, grad in other["gradients"].items())
    largest = max(grad.abs().max() for grad in other["gradients"].values())
    print(
        f"    largest difference: rewards {rewards:.1e} (from {low:.2f} to {high:.2f}), gradients {apart:.1e}", end=" "
    )
    print(f"(the largest: {largest:.1e})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("miniature", "real"), default="miniature")
    parser.add_argument("--longest_edge", type=int, choices=(512, 1024, 2048), default=512)
    parser.add_argument("--prompts", type=positive, default=16, help="of an optimiser step, 6 completions each")
    parser.add_argument("--new_tokens", type=positive, default=16, help="of each completion; about a box's length")
    parser.add_argument("--steps", type=positive, default=1, help="that are timed")
    parser.add_argument("--warmup_steps", type=int, default=1 if DEVICE.type == "cuda" else 0)
    args = parser.parse_args()
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    print(f"{machine()}, {args.geometry}, {dtype}, {args.longest_edge} px, ", end="")
    print(f"{args.prompts} prompts x {G} completions, {args.new_tokens} tokens", flush=True)
    models = Models(args)
    answerer = models.model(dtype).to(DEVICE).eval().requires_grad_(False)
    results = {}
    for way in ("ours", "trl"):
        results[way] = report(way, *measure(way, models, answerer, args), args)
        gc.collect()
    compare(results["ours"], results["trl"])


if __name__ == "__main__":
    main()
