"""Stage 2, GRPO: the cropper learns which box helps the answerer.

    python3 train_grpo.py --base_model models/sft_512 --dataset_path datasets/cropvlm_dataset_grpo

TRL's `GRPOTrainer` in its Dr. GRPO form; rollouts, advantages and loss are its own. What is changed stands in
`cropvlm/trainers/trl_overrides.py`: the completions of a prompt share their image, a micro-batch holds whole groups,
and boxes are logged. The policy starts from the SFT adapter; a frozen copy of it is the reference. The reward is
validity plus what a frozen reward VLM makes of `[full image, crop]`. TRL's `GRPOConfig` flags work beside those below;
rollouts by vLLM are not tested. Dropout is off, so that policy, reference and rollouts are one model; the KL divergence
is plain k3. `scripts/configs/grpo_released.yaml` restores what settings can of the released experiment.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers.hf_argparser import HfArg
from trl import GRPOConfig

from cropvlm.errors import UserError
from cropvlm.prompts import MAX_BOX_TOKENS
from cropvlm.runs.cli import run
from cropvlm.trainers.settings import PolicyArguments, TrainerArguments, frozen_dtype, parse


@dataclass
class GRPOPolicyArguments(PolicyArguments):
    """The policy, its data and its reward."""

    base_model: str = HfArg(
        default="models/sft_512",
        help="policy to start from: SFT adapter folder or checkpoint, or a merged model (new adapter)",
    )
    dataset_path: str = HfArg(default="datasets/cropvlm_dataset_grpo", help="Hub id, or folder written by save_to_disk")
    reward: Literal["likelihood", "accuracy"] = HfArg(
        default="likelihood", help="log-likelihood of the answer, or accuracy of the generated one"
    )
    crop_cost: float | None = HfArg(
        default=None, help="price of a crop that takes as many tokens as the full image; `Not needed.` is free"
    )
    reward_batch_size: int | None = HfArg(default=None, help="completions scored at once; default: all of a step")
    # Not the default: rounding the merged weights to bfloat16 costs a KL of 1e-4 nats a token at the first step.
    merged_rollouts: bool = HfArg(
        default=False, help="write completions with the adapter merged: faster on a GPU, not with FSDP or DeepSpeed"
    )
    log_crops_every: int = HfArg(default=50, help="steps between pictures of boxes in {output_dir}/crops; 0 draws none")

    def __post_init__(self):
        if self.crop_cost is not None and not self.crop_cost >= 0:
            raise UserError(f"--crop_cost {self.crop_cost}: expected a price of at least 0")
        if self.merged_rollouts and not self.use_lora:
            raise UserError(
                "--merged_rollouts with --use_lora False: without an adapter nothing can be merged; leave one out"
            )
        super().__post_init__()


@dataclass
class GRPOArguments(TrainerArguments, GRPOConfig):
    """TRL's `GRPOConfig` with the release's values."""

    output_dir: str = HfArg(default="models/grpo_512", help="folder for adapter, checkpoints and card")
    # 16 prompts x 6 completions per optimiser step; `micro_batch_size` divides it into micro-steps.
    num_generations: int = HfArg(default=6, help="completions per prompt, G")
    per_device_train_batch_size: int = HfArg(default=96, help="completions of a step, with the next one")
    gradient_accumulation_steps: int = HfArg(default=1, help="factor of the one before")
    # A static cache lets transformers compile the decoding of rollouts on a GPU, which takes 38 s for each shape of
    # batch and prompt and pays over thousands of rollouts. Not the default: no whole run has been measured with it.
    cache_implementation: str | None = HfArg(
        default=None, help="static: compile the rollouts' decoding on a GPU; with pad_to_multiple_of 64"
    )
    temperature: float = HfArg(default=0.8, help="of sampling, and of the log-probabilities")
    top_k: int = HfArg(default=50, help="what transformers sampled with by default at the time")
    max_completion_length: int = HfArg(default=MAX_BOX_TOKENS, help="tokens of a completion")
    loss_type: str = "dr_grpo"
    scale_rewards: str = HfArg(default="none", help="divide advantages by the group's deviation or not")
    beta: float = HfArg(default=0.01, help="weight of the KL divergence (k3) from the SFT model")
    use_bias_correction_kl: bool = HfArg(default=False, help="weight k3 by the importance ratio")
    learning_rate: float = 5e-6
    max_grad_norm: float = 0.1
    save_steps: float = HfArg(default=150, help="steps between two checkpoints")
    logging_steps: float = 1
    report_to: str = "tensorboard"
    disable_dropout: bool = HfArg(default=True, help="False: the adapter's dropout, as in SFT")
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    num_generations_eval: int = HfArg(default=1, help="used only by TRL: evaluation decodes boxes greedily")


def make_trainer(args: GRPOArguments, policy: GRPOPolicyArguments) -> Any:
    """Load data, processor, policy and rewards, in this order, and join them."""
    from cropvlm.trainers.evaluation import CropAccuracy, load_held_out_rows
    from cropvlm.trainers.micro_batches import set_micro_batches
    from cropvlm.trainers.training_data import load_training_rows, prompt_rows
    from cropvlm.trainers.trl_overrides import BoxGRPOTrainer

    rows = load_training_rows(policy.dataset_path, policy.split, policy.max_samples, "answers")
    needed = args.generation_batch_size // args.num_generations
    if len(rows) < needed:
        raise UserError(f"{policy.dataset_path}: {len(rows)} rows, but one step takes {needed} prompts; give more rows")
    held_out = load_held_out_rows(args)
    processor = policy.load_processor()
    model = policy.load_policy(frozen_dtype(args), processor)
    answerer = policy.load_answerer(frozen_dtype(args), args.device)
    set_micro_batches(args, model, processor)
    trainer = BoxGRPOTrainer(
        policy,
        model=model,
        reward_funcs=make_rewards(policy, *answerer),
        args=args,
        train_dataset=prompt_rows(rows, processor.image_token),
        eval_dataset=held_out,
        processing_class=processor,
    )
    if held_out is not None:
        trainer.crop_accuracy = CropAccuracy(args, held_out, *answerer)
    return trainer


def make_rewards(policy: GRPOPolicyArguments, answerer: Any, processor: Any) -> list:
    """The two rewards, whose sum is the release's; with a price for crops three."""
    from cropvlm.rewards import AnswerAccuracyReward, AnswerLikelihoodReward, validity_reward

    reward = AnswerLikelihoodReward if policy.reward == "likelihood" else AnswerAccuracyReward
    may_decide = policy.crop_cost is not None
    answer_reward = reward(answerer, processor, policy.reward_batch_size, may_decide)
    if not may_decide:
        return [validity_reward, answer_reward]
    from cropvlm.trainers.crop_cost import CropCostReward, decision_reward

    return [decision_reward, answer_reward, CropCostReward(policy.crop_cost, processor)]


def main() -> None:
    policy, args = parse((GRPOPolicyArguments, GRPOArguments), __doc__)
    from cropvlm.trainers.train import train

    train(args, policy, make_trainer)


if __name__ == "__main__":
    run(main)
