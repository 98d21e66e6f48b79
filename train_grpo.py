"""Stage 2, GRPO: the cropper learns which box helps the answerer.

    python3 train_grpo.py --base_model models/sft_512 --dataset_path datasets/cropvlm_dataset_grpo

TRL's `GRPOTrainer` in its Dr. GRPO form; rollouts, advantages and loss are its own. What is overridden: the completions
of a prompt share their image, and a micro-batch holds whole groups (`cropvlm/training/shared_images.py`); figures and
pictures of the boxes are logged (`cropvlm/training/box_logging.py`); `evaluate` measures the accuracy with the current
crops (`cropvlm/training/evaluation.py`); the model card is this project's. The policy goes on from the SFT adapter, a
frozen copy of it is the reference. The reward is validity plus what a frozen reward VLM makes of `[full image, crop]`.
TRL's flags of `GRPOConfig` go beside those below; rollouts by vLLM are not tried. Dropout is off, so that policy,
reference and rollouts are one model (the released experiment left it on).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from cropvlm.cli import UserError, remedy, run
from cropvlm.generation import BatchTooLarge
from cropvlm.modeling import load_policy, stop_token_ids
from cropvlm.prompts import MAX_BOX_TOKENS
from cropvlm.rewards import AnswerAccuracyReward, AnswerLikelihoodReward, validity_reward
from cropvlm.training.arguments import (
    HeldOutArguments,
    PolicyArguments,
    check_least,
    frozen_dtype,
    load_policy_processor,
    parse,
)
from cropvlm.training.box_logging import WatchedGRPOTrainer
from cropvlm.training.evaluation import load_answerer, load_held_out_rows, measure_on
from cropvlm.training.rows import load_training_rows, prompt_rows
from cropvlm.training.saving import disk_errors, finish
from cropvlm.training.setup import check_base, checkpoint_to_resume, note_base, start

SMALLER = "make --reward_batch_size, --vqa_longest_edge or --per_device_train_batch_size smaller"
CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass
class GRPOPolicyArguments(PolicyArguments):
    """The policy, its data and its reward."""

    base_model: str = field(
        default="models/sft_512",
        metadata={"help": "policy to start from: SFT adapter folder or checkpoint, or a merged model (new adapter)"},
    )
    dataset_path: str = "datasets/cropvlm_dataset_grpo"
    reward: Literal["likelihood", "accuracy"] = field(
        default="likelihood", metadata={"help": "log-likelihood of the answer, or accuracy of the generated one"}
    )
    reward_batch_size: int | None = field(
        default=None, metadata={"help": "completions scored in one forward pass; default: all of a step"}
    )
    log_crops_every: int = field(
        default=50, metadata={"help": "steps between two pictures of boxes in {output_dir}/crops; 0 draws none"}
    )

    def __post_init__(self):
        check_least(self, reward_batch_size=1, log_crops_every=0)
        super().__post_init__()


@dataclass
class GRPOArguments(HeldOutArguments, GRPOConfig):
    """TRL's `GRPOConfig` with the paper's values (METHOD: GRPO)."""

    output_dir: str = "models/grpo_512"
    # 16 prompts x 6 completions per optimiser step; raise the one and lower the other where memory allows.
    num_generations: int = field(default=6, metadata={"help": "completions per prompt, G"})
    per_device_train_batch_size: int = field(default=6, metadata={"help": "completions per micro-step"})
    gradient_accumulation_steps: int = 16
    temperature: float = 0.8
    top_k: int = field(default=50, metadata={"help": "what transformers sampled with by default at the time"})
    max_completion_length: int = MAX_BOX_TOKENS
    loss_type: str = "dr_grpo"
    scale_rewards: str = "none"
    beta: float = field(default=0.01, metadata={"help": "weight of the KL divergence (k3) from the SFT model"})
    learning_rate: float = 5e-6
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = field(default=0.03, metadata={"help": "steps, or below 1 the share of all steps"})
    max_grad_norm: float = 0.1
    num_train_epochs: float = 1.0
    save_steps: float = 150
    logging_steps: float = 1
    seed: int = 42
    report_to: str = "tensorboard"
    disable_dropout: bool = True
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade time for memory"})
    num_generations_eval: int = field(default=1, metadata={"help": "of use to TRL alone: boxes are measured greedy"})

    def __post_init__(self):
        check_least(self, num_generations=2, max_completion_length=1, steps_per_generation=1, generation_batch_size=1)
        if not self.temperature > 0:
            raise UserError(f"--temperature {self.temperature}: expected more than 0; a group has to differ")
        for name, choices in CHOICES.items():  # TRL compares them when the first step is under way
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: expected {', '.join(map(str, choices))}")
        super().__post_init__()


def make_rewards(policy: GRPOPolicyArguments, answerer: Any, processor: Any) -> list:
    """The two rewards."""
    reward = {"likelihood": AnswerLikelihoodReward, "accuracy": AnswerAccuracyReward}[policy.reward]
    return [validity_reward, reward(answerer, processor, policy.reward_batch_size)]


def make_trainer(args: GRPOArguments, policy: GRPOPolicyArguments) -> WatchedGRPOTrainer:
    """Load data, processor, policy and rewards, in this order, and join them."""
    if args.reward_weights is not None and len(args.reward_weights) != 2:
        raise UserError(f"--reward_weights {args.reward_weights}: expected two, for validity and for the reward VLM")
    rows = load_training_rows(policy.dataset_path, policy.split, policy.max_samples, "answers")
    needed = args.generation_batch_size // args.num_generations
    if len(rows) < needed:
        raise UserError(f"{policy.dataset_path}: {len(rows)} rows, but one step takes {needed} prompts; give more rows")
    held_out = load_held_out_rows(args)
    processor = load_policy_processor(policy)
    model = load_policy(policy.base_model, policy.lora_config(), frozen_dtype(args))
    model.generation_config.eos_token_id = stop_token_ids(model, processor)
    if not args.use_vllm:  # a sampled image token has no image to stand for; TRL sees to that from 1.16 on only
        args.generation_kwargs = {"suppress_tokens": [model.config.image_token_id]} | (args.generation_kwargs or {})
    answerer = load_answerer(policy, args)
    trainer = WatchedGRPOTrainer(
        model=model,
        reward_funcs=make_rewards(policy, *answerer),
        args=args,
        train_dataset=prompt_rows(rows, processor.image_token),
        eval_dataset=held_out,
        processing_class=processor,
        log_crops_every=policy.log_crops_every,
    )
    if held_out is not None:
        measure_on(trainer, held_out, processor, *answerer)
    trainer.policy_arguments = policy
    return trainer


def main() -> None:
    policy, args = parse((GRPOPolicyArguments, GRPOArguments))
    start(args, policy)
    checkpoint = checkpoint_to_resume(args)
    check_base(policy.base_model, checkpoint)
    trainer = make_trainer(args, policy)
    with disk_errors(args.output_dir), remedy(SMALLER, BatchTooLarge):
        note_base(args, policy.base_model)
        trainer.train(resume_from_checkpoint=checkpoint)
        if "ref" in getattr(trainer.model, "peft_config", {}):
            trainer.model.delete_adapter("ref")  # TRL's frozen copy of the SFT adapter: only checkpoints need it
        finish(trainer, policy)


if __name__ == "__main__":
    run(main)
