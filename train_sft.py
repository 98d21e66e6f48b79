"""Stage 1, supervised fine-tuning: the cropper learns to write the teacher's box.

    python3 train_sft.py --dataset_path datasets/cropvlm_dataset_sft --output_dir models/sft_512

TRL's `SFTTrainer` with a LoRA adapter, on prompt-completion rows with images; the loss is on the completion
` [x1, y1, x2, y2].<end_of_utterance>` alone. `--eval_dataset_path` names rows on which the accuracy that `--vqa_model`
reaches with the current crops is measured. The flags of TRL's `SFTConfig` go beside those below, but for `--packing`
and `--max_length`, which rows with images do not bear. The adapter's weights are float32 (the released experiment:
bfloat16); the computation is bfloat16 on a GPU.
"""

import logging
from dataclasses import dataclass, field

from trl import SFTConfig, SFTTrainer

from cropvlm.cli import UserError, run
from cropvlm.modeling import load_policy, stop_token_ids
from cropvlm.training.arguments import HeldOutArguments, PolicyArguments, frozen_dtype, load_policy_processor, parse
from cropvlm.training.evaluation import CropAccuracyMixin, load_answerer, load_held_out_rows, measure_on
from cropvlm.training.rows import load_training_rows, prompt_completion_rows
from cropvlm.training.run import train
from cropvlm.training.saving import CardMixin

logger = logging.getLogger(__name__)


@dataclass
class SFTArguments(HeldOutArguments, SFTConfig):
    """TRL's `SFTConfig` with the paper's values (METHOD: SFT)."""

    output_dir: str = "models/sft_512"
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 8
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = field(default=0.03, metadata={"help": "steps, or below 1 the share of all steps"})
    num_train_epochs: float = 1.0
    save_steps: float = 100
    logging_steps: float = 1
    seed: int = 42
    report_to: str = "tensorboard"
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade time for memory"})
    max_length: int | None = field(default=None, metadata={"help": "None: cutting a row would cut its image tokens"})
    remove_unused_columns: bool = False  # the rows are made from the other columns when they are read

    def __post_init__(self):
        if self.packing:
            raise UserError("--packing True: rows with images cannot be packed; leave the flag out")
        if self.max_length is not None:
            raise UserError(f"--max_length {self.max_length}: no row may be cut, its image tokens are; leave it out")
        super().__post_init__()


class BoxSFTTrainer(CardMixin, CropAccuracyMixin, SFTTrainer):
    """TRL's `SFTTrainer` with this project's model card and measure."""


def make_trainer(args: SFTArguments, policy: PolicyArguments) -> BoxSFTTrainer:
    """Load data, processor and model, in this order, and join them."""
    rows = load_training_rows(policy.dataset_path, policy.split, policy.max_samples, "bbox")
    held_out = load_held_out_rows(args)
    processor = load_policy_processor(policy)
    dataset = prompt_completion_rows(rows, processor)
    model = load_policy(policy.base_model, policy.lora_config(), frozen_dtype(args))
    model.generation_config.eos_token_id = stop_token_ids(model, processor)
    trainer = BoxSFTTrainer(
        model=model, args=args, train_dataset=dataset, eval_dataset=held_out, processing_class=processor
    )
    if held_out is not None:
        measure_on(trainer, held_out, processor, *load_answerer(policy, args))
    trainer.policy_arguments = policy
    return trainer


def main() -> None:
    policy, args = parse((PolicyArguments, SFTArguments))
    train(args, policy, make_trainer)


if __name__ == "__main__":
    run(main)
