"""Stage 1, supervised fine-tuning: the cropper learns to write the teacher's box.

    python3 train_sft.py --dataset_path datasets/cropvlm_dataset_sft --output_dir models/sft_512

TRL's `SFTTrainer` with a LoRA adapter, on prompt-completion rows with images; the loss is on the completion
` [x1, y1, x2, y2].<end_of_utterance>` alone. `--eval_dataset_path` names rows on which the accuracy that `--vqa_model`
reaches with the current crops is measured. TRL's `SFTConfig` flags work beside those below, except `--packing` and
`--max_length`, which rows with images rule out. The adapter's weights are float32, the computation is bfloat16 on a
GPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.hf_argparser import HfArg
from trl import SFTConfig

from cropvlm.errors import UserError
from cropvlm.runs.cli import run
from cropvlm.runs.processes import worker_count
from cropvlm.trainers.settings import PolicyArguments, TrainerArguments, frozen_dtype, parse


@dataclass
class SFTArguments(TrainerArguments, SFTConfig):
    """TRL's `SFTConfig` with the release's values."""

    output_dir: str = HfArg(default="models/sft_512", help="folder for adapter, checkpoints and card")
    # 16 rows per optimiser step; `micro_batch_size` divides it into micro-steps.
    per_device_train_batch_size: int = HfArg(default=16, help="rows of a step, with the next one")
    gradient_accumulation_steps: int = HfArg(default=1, help="factor of the one before")
    learning_rate: float = 5e-5
    save_steps: float = HfArg(default=100, help="steps between two checkpoints")
    logging_steps: float = 1
    report_to: str = "tensorboard"
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    max_length: int | None = HfArg(default=None, help="None: cutting a row would cut its image tokens")
    remove_unused_columns: bool = HfArg(default=False, help="False: prompts are made of other columns")
    dataloader_num_workers: int | None = HfArg(
        default=None, help="processes that prepare images (default: 0; on a GPU the cores)"
    )

    def __post_init__(self):
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        self.dataloader_num_workers = worker_count(self.dataloader_num_workers, "cuda" if on_gpu else "cpu")
        if self.max_length is not None:
            raise UserError(f"--max_length {self.max_length}: cutting a row would cut its image tokens; leave it out")
        super().__post_init__()


def make_trainer(args: SFTArguments, policy: PolicyArguments) -> Any:
    """Load data, processor and model, in this order, and join them."""
    from cropvlm.trainers.evaluation import CropAccuracy, load_held_out_rows
    from cropvlm.trainers.micro_batches import set_micro_batches
    from cropvlm.trainers.training_data import load_training_rows, prompt_completion_rows
    from cropvlm.trainers.trl_overrides import BoxSFTTrainer

    rows = load_training_rows(policy.dataset_path, policy.split, policy.max_samples, "bbox")
    held_out = load_held_out_rows(args)
    processor = policy.load_processor()
    dataset = prompt_completion_rows(rows, processor)
    model = policy.load_policy(frozen_dtype(args), processor)
    set_micro_batches(args, model, processor)
    trainer = BoxSFTTrainer(
        policy,
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=held_out,
        processing_class=processor,
    )
    if held_out is not None:
        answerer = policy.load_answerer(frozen_dtype(args), args.device)
        trainer.crop_accuracy = CropAccuracy(args, held_out, *answerer)
    return trainer


def main() -> None:
    policy, args = parse((PolicyArguments, SFTArguments), __doc__)
    from cropvlm.trainers.train import train

    train(args, policy, make_trainer)


if __name__ == "__main__":
    run(main)
