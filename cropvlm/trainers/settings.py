"""Flags that the two trainers share, beside TRL's own, and how all of them are read and checked.

Nothing heavier than TRL's configurations is imported before the flags are read.
"""

import argparse
import json
import logging
import math
import operator
import os
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import get_available_reporting_integrations
from trl import TrlParser

from cropvlm import training
from cropvlm.errors import UserError, failure, shorten
from cropvlm.runs.cli import batch_size, flag_error
from cropvlm.trainers.hardware import settle_hardware, show_one_gpu
from cropvlm.training import WARMUP, Schedule

logger = logging.getLogger(__name__)

# Where neither TRL's nor transformers' settings refuse a value as they are read.
LIMITS = (
    ("at least", operator.ge, -1, "max_steps"),
    ("at least", operator.ge, 0, "seed data_seed lora_dropout beta epsilon log_crops_every"),
    ("at least", operator.ge, 1, "lora_r lora_alpha reward_batch_size max_samples eval_max_samples save_total_limit"),
    ("at least", operator.ge, 1, "per_device_train_batch_size gradient_accumulation_steps max_completion_length"),
    ("at least", operator.ge, 1, "steps_per_generation generation_batch_size num_iterations"),
    ("at least", operator.ge, 2, "longest_edge vqa_longest_edge num_generations"),
    ("more than", operator.gt, 0, "num_train_epochs save_steps logging_steps eval_steps temperature"),
    ("less than", operator.lt, 1, "lora_dropout warmup_ratio"),
    ("at most", operator.le, 2**32 - 1, "seed data_seed"),
)


@dataclass
class PolicyArguments:
    """The model to train and its data. Defaults are the release's."""

    base_model: str = HfArg(
        default="HuggingFaceTB/SmolVLM-256M-Instruct",
        help="model to train: Hub id, save_pretrained folder, or a PEFT adapter folder to train on",
    )
    processor: str | None = HfArg(default=None, help="Hub id or folder of the processor; default: base_model's own")
    dataset_path: str = HfArg(default="datasets/cropvlm_dataset_sft", help="Hub id, or folder written by save_to_disk")
    split: str | None = HfArg(default=None, help="split of dataset_path; default: train, or the only one")
    max_samples: int | None = HfArg(default=None, help="train on this many rows, from the first one")
    data_type: Literal["roi"] = HfArg(default="roi", help="rows are regions of interest, the only type there is")
    longest_edge: int = HfArg(default=512, help="pixels of the policy's longer image side (release: 512)")
    vqa_model: str = HfArg(
        default="HuggingFaceTB/SmolVLM-256M-Instruct",
        help="frozen VLM for GRPO's reward and for --eval_dataset_path: Hub id or folder",
    )
    vqa_longest_edge: int | None = HfArg(default=512, help="the same for vqa_model; None: its own way")
    attn_implementation: str | None = HfArg(default=None, help="such as flash_attention_2; default: the library's")
    use_lora: bool = HfArg(default=True, help="train LoRA weights; False trains every weight")
    lora_r: int = HfArg(default=training.LORA_R, help="rank of the adapter")
    lora_alpha: int = HfArg(default=training.LORA_ALPHA, help="scale of the adapter, before its division by the rank")
    lora_dropout: float = HfArg(default=training.LORA_DROPOUT, help="share of the adapter's inputs that are dropped")
    merge: bool = HfArg(default=False, help="write the adapter merged into its base to {output_dir}/merged as well")
    gpu: int = HfArg(
        default=0, help="index of the one GPU to use; -1, or without a GPU, the CPU; launchers give their own"
    )

    def __post_init__(self):
        if self.merge and not self.use_lora:
            raise UserError("--merge with --use_lora False: the output is a whole model as it is; leave --merge out")
        # The trainers' own arguments are made after these ones and count the GPUs then.
        if "LOCAL_RANK" not in os.environ:
            show_one_gpu(self.gpu)

    def lora_config(self) -> Any:
        """The fresh adapter to train (`peft.LoraConfig`), or None to train every weight."""
        if not self.use_lora:
            logger.warning("every weight of the model is trained, in float32")
            return None
        return training.lora_config(self.lora_r, self.lora_alpha, self.lora_dropout)

    def load_processor(self) -> Any:
        """The policy's processor; `UserError` for one of another family than the cropper's."""
        from cropvlm.modeling import load_processor

        return load_processor(self.processor or self.base_model, self.longest_edge)

    def load_policy(self, dtype: torch.dtype, processor: Any) -> Any:
        """The model to train, on the CPU. dtype: of the weights that are not trained."""
        from cropvlm.modeling import is_adapter, load_policy
        from cropvlm.models.tokens import stop_token_ids

        model = load_policy(self.base_model, self.lora_config(), dtype, self.attn_implementation)
        if is_adapter(self.base_model):  # the flags are of a fresh one, and the model card lists what was trained
            adapter = model.peft_config["default"]
            own = {"lora_r": adapter.r, "lora_alpha": adapter.lora_alpha, "lora_dropout": adapter.lora_dropout}
            if differing := [f"{name} {value}" for name, value in own.items() if value != getattr(self, name)]:
                logger.warning("%s is an adapter, which keeps its own %s", self.base_model, ", ".join(differing))
            vars(self).update(own)
        model.generation_config.eos_token_id = stop_token_ids(model, processor)
        return model

    def load_answerer(self, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
        """The frozen reward VLM, which also answers held-out questions, and its processor."""
        from cropvlm.modeling import load_full_model, load_processor

        processor = load_processor(self.vqa_model, self.vqa_longest_edge)
        model = load_full_model(self.vqa_model, dtype, self.attn_implementation)
        return model.to(device).eval().requires_grad_(False), processor


@dataclass
class TrainerArguments(Schedule):
    """Settings that both trainers add to TRL's configuration; a mixin that comes before it among a class's bases."""

    eval_dataset_path: str | None = HfArg(default=None, help="data set to measure the accuracy with current crops on")
    eval_split: str | None = HfArg(default=None, help="its split; default: validation, or the only one")
    eval_max_samples: int | None = HfArg(default=None, help="number of its rows, from the first one")
    warmup_ratio: float | None = HfArg(default=None, help="share of steps that warm up, in place of warmup_steps")
    micro_batch_size: str = HfArg(
        default="auto", help="rows or completions through the model at once, at most; auto: as many as memory holds"
    )

    def __post_init__(self):
        self._read_micro_batch_size()
        if self.warmup_ratio is not None:
            if self.warmup_steps != WARMUP:
                raise UserError(f"--warmup_ratio {self.warmup_ratio}: --warmup_steps says it already; leave one out")
            self.warmup_steps = self.warmup_ratio
        if self.remove_unused_columns:
            raise UserError("--remove_unused_columns True: TRL would drop columns that rows are made of; leave it out")
        settle_hardware(self)
        if self.eval_dataset_path is not None:
            if self.eval_strategy == "no":
                self.eval_strategy = "steps"
            self.eval_steps = self.eval_steps or self.save_steps
            self.metric_for_best_model = self.metric_for_best_model or "eval_accuracy"
        elif self.eval_strategy != "no":
            raise UserError(f"--eval_strategy {self.eval_strategy}: no rows to measure on; add --eval_dataset_path")
        super().__post_init__()
        for name in self.report_to:
            if name not in (installed := get_available_reporting_integrations()):
                raise UserError(f"--report_to {name}: expected none, all or what is installed: {', '.join(installed)}")

    def _read_micro_batch_size(self) -> None:
        """Make a number of it unless it is "auto"; in GRPO whole groups, which share their image."""
        try:
            size = self.micro_batch_size = batch_size(str(self.micro_batch_size))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--micro_batch_size {error}") from error
        group = getattr(self, "num_generations", 1)
        if size != "auto" and self.per_device_train_batch_size % group == 0 != size % group:
            seen = f"--micro_batch_size {size}: the completions of a prompt share its image"
            raise UserError(f"{seen}; expected a multiple of --num_generations {group}")


def frozen_dtype(args: TrainingArguments) -> torch.dtype:
    """The dtype of weights that are not trained."""
    return torch.bfloat16 if args.bf16 else torch.float32


LIBRARIES = ("trl.", "transformers.")


class Parser(TrlParser):
    """Reads flags into dataclasses. `--help` lists what this project adds or sets, `--help_all` TRL's flags as well."""

    def __init__(self, types: tuple[type, ...], description: str, everything: bool = False):
        usage = "%(prog)s [--config FILE.yaml] [flags]"
        super().__init__(types, description=description, formatter_class=_OneLineAFlag, usage=usage)
        self.add_argument("--config", metavar="FILE.yaml", help="settings by name; a flag given beside it wins")
        self.add_argument("--help_all", action="help", help="list TRL's flags too")
        bases = [base for each in types for base in each.__mro__ if not base.__module__.startswith(LIBRARIES)]
        own = {name for base in bases for name in vars(base).get("__annotations__", {})}
        for action in self._actions:
            if action.dest in {"help", "config", "help_all"}:
                continue
            shown = action.dest in own and not action.option_strings[0].startswith("--no_")
            default = "" if action.default in (None, "") else "(default: %(default)s)"
            action.help = f"{action.help or ''} {default}".strip() if shown or everything else argparse.SUPPRESS
            action.metavar = None if action.choices else "VALUE"

    def error(self, message: str) -> typing.NoReturn:
        raise flag_error(message)


class _OneLineAFlag(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=42, width=200)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """The first spelling alone; every `_` may be a `-`."""
        return f"{action.option_strings[0]} {self._format_args(action, action.metavar or 'VALUE')}".strip()


def parse(types: tuple[type, ...], description: str = "") -> tuple[Any, ...]:
    """Read the command line, and the file that `--config` names, into these classes; `UserError` for a mistake."""
    flags = sys.argv[1:]
    for before, flag in zip(["", *flags], flags, strict=False):
        name, equals, value = flag.partition("=") if flag.startswith("--") else (before, "=", flag)
        if equals and not value.strip():
            raise UserError(f"{name} '': the value is empty; is a variable not set?")
    parser = Parser(types, description, everything="--help_all" in flags)
    namespace = parser.parse_args(flags)
    if namespace.config is not None:
        try:
            configured = _config_flags(parser, namespace.config)
            parser.parse_args(configured)
        except UserError as error:
            raise UserError(f"{error}; correct {namespace.config}") from error
        namespace = parser.parse_args([*configured, *flags])
    _check_limits(vars(namespace))
    with failure("these settings do not work"):  # a package is missing, or TRL or transformers refuse a value
        return parser.parse_dict(vars(namespace), allow_extra_keys=True)


def _config_flags(parser: Parser, path: str) -> list[str]:
    """The settings of a YAML file as flags, which argparse then checks like any other."""
    with failure(f"--config {path} cannot be read"):
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("env", {}), dict):
            raise UserError(f"--config {path}: expected lines of name: value")
        os.environ |= {str(name): str(value) for name, value in settings.pop("env", {}).items()}  # as TRL's parser does
    hints = {name: hint for each in parser.dataclass_types for name, hint in typing.get_type_hints(each).items()}
    flags = []
    for name, value in settings.items():
        if name not in hints:
            raise UserError(f"--config {path}: unknown setting {shorten(str(name))}")
        if value is None and type(None) in typing.get_args(hints[name]):
            parser.set_defaults(**{name: None})
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, str) and not value.strip():
            raise UserError(f"--config {path}: {name} is empty")
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _check_limits(values: dict[str, Any]) -> None:
    """Raise `UserError` for a number that is not finite or beyond what training can use."""
    for name, value in values.items():
        if any(isinstance(x, float) and not math.isfinite(x) for x in (value if isinstance(value, list) else [value])):
            raise UserError(f"--{name} {value}: expected a finite number")
    for words, holds, limit, names in LIMITS:
        for name in names.split():
            value = values.get(name)
            if value is not None and not holds(value, limit):
                raise UserError(f"--{name} {value}: expected {words} {limit}")
    if values.get("max_steps") == 0:
        raise UserError("--max_steps 0: nothing would be trained; expected at least 1")
