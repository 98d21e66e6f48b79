"""Arguments that the two trainers share, beside TRL's own, and how they are read."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig
from transformers import ProcessorMixin, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from trl import TrlParser
from yaml import YAMLError

from cropvlm.cli import UserError, remedy
from cropvlm.modeling import LORA_TARGETS, ImageSizeError, load_processor
from cropvlm.training.setup import (
    settle_hardware,
    show_one_gpu,
)

logger = logging.getLogger(__name__)


@dataclass
class PolicyArguments:
    """The model to train and its data. Defaults are the paper's (METHOD: SFT, GRPO)."""

    base_model: str = field(
        default="HuggingFaceTB/SmolVLM-256M-Instruct",
        metadata={"help": "model to train: hub id, save_pretrained folder, or a PEFT adapter folder to train on"},
    )
    processor: str | None = field(
        default=None, metadata={"help": "hub id or folder of the processor; default: base_model's own"}
    )
    dataset_path: str = field(
        default="datasets/cropvlm_dataset_sft", metadata={"help": "hub id, or folder written by save_to_disk"}
    )
    split: str | None = field(default=None, metadata={"help": "split of dataset_path; default: train, or the only one"})
    max_samples: int | None = field(default=None, metadata={"help": "train on the first so many rows only"})
    data_type: Literal["roi"] = field(
        default="roi", metadata={"help": "rows are regions of interest; there is no other type"}
    )
    longest_edge: int = field(
        default=512, metadata={"help": "pixels of the longer image side that the policy sees (paper: 512, 1024, 2048)"}
    )
    vqa_model: str = field(
        default="HuggingFaceTB/SmolVLM-256M-Instruct",
        metadata={"help": "frozen VLM for GRPO's reward and for --eval_dataset_path: hub id or folder"},
    )
    vqa_longest_edge: int | None = field(
        default=512, metadata={"help": "pixels of the longer image side that vqa_model sees; None: its own way"}
    )
    use_lora: bool = field(default=True, metadata={"help": "train LoRA weights; False trains every weight"})
    lora_r: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    merge: bool = field(
        default=False, metadata={"help": "write the adapter merged into its base to {output_dir}/merged as well"}
    )
    gpu: int | None = field(
        default=None, metadata={"help": "index of the one GPU to use, -1 for the CPU; without a GPU the CPU is used"}
    )

    def __post_init__(self):
        check_least(self, longest_edge=1, vqa_longest_edge=1, lora_r=1, lora_alpha=1)
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: expected at least 0 and less than 1")
        if self.merge and not self.use_lora:
            raise UserError("--merge with --use_lora False: the output is a whole model as it is; leave --merge out")
        # The trainers' own arguments are made after these ones and count the GPUs then.
        if self.gpu is not None and "LOCAL_RANK" not in os.environ:
            show_one_gpu(self.gpu)

    def lora_config(self) -> LoraConfig | None:
        """The fresh adapter to train, or None to train every weight."""
        if not self.use_lora:
            logger.warning("--use_lora False: every weight of the model is trained, in float32")
            return None
        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=LORA_TARGETS,
            task_type="CAUSAL_LM",
        )


@dataclass
class HeldOutArguments:
    """What both trainers add to TRL's configuration, to stand before it among a class's bases."""

    eval_dataset_path: str | None = field(
        default=None, metadata={"help": "data set on which the accuracy with the current crops is measured"}
    )
    eval_split: str | None = field(default=None, metadata={"help": "its split; default: validation, or the only one"})
    eval_max_samples: int | None = field(default=None, metadata={"help": "its first so many rows only"})

    def __post_init__(self):
        check_least(self, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        settle_hardware(self)
        if self.eval_dataset_path is not None:
            if self.eval_strategy == "no":
                self.eval_strategy = "steps"
            self.eval_steps = self.eval_steps or self.save_steps
            self.metric_for_best_model = self.metric_for_best_model or "eval_accuracy"
        elif self.eval_strategy != "no":
            raise UserError(
                f"--eval_strategy {self.eval_strategy}: there is nothing to measure on; --eval_dataset_path?"
            )
        super().__post_init__()
        for name in self.report_to:
            if name not in (installed := get_available_reporting_integrations()):
                raise UserError(f"--report_to {name}: expected none, all or what is installed: {', '.join(installed)}")


def check_least(arguments: Any, **least: int) -> None:
    """Compare each named argument that is not None with the least value it may have.

    Raises:
        UserError: it is less.
    """
    for name, bound in least.items():
        value = getattr(arguments, name)
        if value is not None and value < bound:
            raise UserError(f"--{name} {value}: expected at least {bound}")


def parse(argument_types: tuple[type, ...]) -> tuple[Any, ...]:
    """Read the command line, and `--config FILE.yaml` where given, into the argument classes.

    Raises:
        UserError: values that do not go together, or a configuration file that cannot be read.
    """
    parser = TrlParser(argument_types)
    parser.error = _refuse  # argparse would print the two hundred flags first
    try:
        return parser.parse_args_and_config()
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, OSError, YAMLError) as error:
        raise UserError(f"arguments: {error}") from error


def _refuse(message: str) -> None:
    raise UserError(message)


def frozen_dtype(args: TrainingArguments) -> torch.dtype:
    """The dtype of weights that are not trained."""
    return torch.bfloat16 if args.bf16 else torch.float32


def load_policy_processor(policy: PolicyArguments) -> ProcessorMixin:
    """`--processor`, or the one of `--base_model`, at `--longest_edge`.

    Raises:
        UserError: none there, or one of another family than the cropper's.
    """
    with remedy("the cropper has to be an Idefics3 or SmolVLM", ImageSizeError):
        return load_processor(policy.processor or policy.base_model, policy.longest_edge)
