"""Arguments that the two trainers share, beside TRL's own, and how they are read."""

import json
import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import ProcessorMixin, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations
from trl import TrlParser
from yaml import YAMLError

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, image_size, open_image
from cropvlm.data import load_rows
from cropvlm.modeling import LORA_TARGETS, load_processor
from cropvlm.predictions import check_writable

logger = logging.getLogger(__name__)

BASE_NOTE = "base_model.txt"  # in the output folder; scripts/train_grpo.sh reads it too


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


def show_one_gpu(index: int) -> None:
    """Let this process see no other GPU than number `index` of those it may see now; none for a negative number.

    Has to come before CUDA starts. More visible GPUs would make transformers wrap the model in `DataParallel`. Where
    there is no GPU at all, nothing changes.

    Raises:
        UserError: there are GPUs, but not this one.
    """
    count = torch.cuda.device_count()  # unlike is_available(), this does not start CUDA
    if index >= count > 0:
        raise UserError(f"--gpu {index}: GPUs 0 to {count - 1} are to be seen here; name one of them")
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = list(map(str, range(count))) if visible is None else visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index >= 0 else ""


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


def settle_hardware(args: TrainingArguments) -> None:
    """Compute in bfloat16 on a GPU and in float32 on the CPU, there too with all processes, unless told otherwise.

    For `__post_init__`, before TRL's own, which would take bfloat16 everywhere.

    Raises:
        UserError: several processes were asked for, but this one is alone.
    """
    if not torch.accelerator.is_available():
        # Without GPUs, processes find one another only where the CPU was asked for: else each would train alone.
        args.use_cpu = args.use_cpu or "LOCAL_RANK" in os.environ
        # What `accelerate launch --num_processes 2` leaves where it starts one process after all.
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and not _process_count():
            raise UserError(
                "accelerate launch starts one process where there is no GPU; for several of them on the CPU: "
                "accelerate launch --multi_gpu --num_processes 2 ..."
            )
    if args.bf16 is None:
        args.bf16 = torch.cuda.is_available() and not args.use_cpu and not args.fp16


def _process_count() -> str | None:
    """What torch's launcher, or MPI's, says of how many processes there are; None if neither started this one."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return next((os.environ[name] for name in names if name in os.environ), None)


def frozen_dtype(args: TrainingArguments) -> torch.dtype:
    """The dtype of weights that are not trained."""
    return torch.bfloat16 if args.bf16 else torch.float32


def start(args: TrainingArguments, *argument_groups: Any) -> None:
    """Check that the output folder can be written, seed, start logging, and log the resolved settings.

    Raises:
        UserError: the output folder cannot be written.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_writable(Path(args.output_dir) / "adapter_config.json")
    set_seed(args.seed)  # a fresh adapter's weights are drawn before the trainer seeds
    for group in argument_groups:
        logger.info("%s: %s", type(group).__name__, vars(group))
    logger.info("%s: %s", type(args).__name__, args.to_dict())


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means: the newest whole one for True, else the one it names.

    None where training starts anew. A run that was killed while it saved leaves a checkpoint without its last file.

    Raises:
        UserError: the checkpoint that is named is none.
    """
    wanted = str(args.resume_from_checkpoint)
    if wanted in ("None", "False", "false"):
        return None
    if wanted not in ("True", "true"):
        if not _is_whole(Path(wanted)):
            raise UserError(f"--resume_from_checkpoint {wanted}: no whole checkpoint; name one, or True for the newest")
        return wanted
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(args.output_dir).glob("*")]
    numbered = [(int(match[1]), path) for match, path in matches if match]
    for _, path in sorted(numbered, reverse=True):
        if _is_whole(path):
            logger.warning("going on from %s", path)
            return str(path)
    logger.warning("no whole checkpoint in %s: starting anew", args.output_dir)
    return None


def check_base(base_model: str, checkpoint: str | None) -> None:
    """Compare the base with the one that the run of `checkpoint` started from, where that is known.

    Raises:
        UserError: they differ; the checkpoint's weights belong to another model, or GRPO's reference would be another.
    """
    noted = Path(checkpoint).parent / BASE_NOTE if checkpoint else None
    if noted and noted.is_file() and Path(start := noted.read_text().strip()).resolve() != Path(base_model).resolve():
        raise UserError(
            f"--base_model {base_model}: {checkpoint} comes from a run that started from {start}; name that one, "
            f"or correct {noted} if the model has moved"
        )


def note_base(args: TrainingArguments, base_model: str) -> None:
    """Write into the output folder what the run starts from, for those who go on with it."""
    if args.process_index == 0:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(args.output_dir) / BASE_NOTE).write_text(f"{base_model}\n")


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # the last file that is written
    except (OSError, ValueError):
        return False
    return True


def load_policy_processor(policy: PolicyArguments) -> ProcessorMixin:
    """`--processor`, or the one of `--base_model`, at `--longest_edge`.

    Raises:
        UserError: none there, or one of another family than the cropper's.
    """
    remedy = "the cropper has to be an Idefics3 or SmolVLM"
    return load_processor(policy.processor or policy.base_model, policy.longest_edge, remedy=remedy)


def load_training_rows(
    dataset_path: str, split: str | None, max_samples: int | None, column: str, default_split: str = "train"
) -> Dataset:
    """Return the rows to train on, images encoded; those without a value in `column` are left out and named.

    Raises:
        UserError: no such data set, split or column, no row with a value in it, or an image that cannot be opened.
    """
    need = ("image", "question", "question_id", column)
    rows = load_rows(dataset_path, split, max_samples, default_split=default_split, need=need)
    values, ids = rows[column][:], rows["question_id"][:]
    lacking = [question_id for value, question_id in zip(values, ids, strict=True) if not value]
    if len(lacking) == len(rows):
        raise UserError(f"{dataset_path}: no row has a value in the column {column!r}; there is nothing to train on")
    if lacking:
        logger.warning("%d rows have no %s and are left out: question_id %s", len(lacking), column, lacking[:20])
        rows = rows.select([i for i, value in enumerate(values) if value])
    _check_images(rows, dataset_path)
    return rows


def _check_images(rows: Dataset, dataset_path: str) -> None:
    """Read every image's header: a file that is missing or no image must not end a run after hours."""
    reasons = {}
    for row in rows.select_columns(["question_id", "image"]):
        try:
            image_size(row["image"])
        except UnreadableImage as error:
            reasons[row["question_id"]] = error
    if reasons:
        raise UserError(
            f"{dataset_path}: {len(reasons)} rows cannot be trained on, question_id {list(reasons)[:20]}; "
            f"the first has an {next(iter(reasons.values()))}; leave these rows out"
        )


def open_training_image(source: Any, question_id: str | int) -> Image.Image:
    """Return the image of a row, decoded.

    Raises:
        UserError: its header was good, but the rest is not.
    """
    try:
        return open_image(source)
    except UnreadableImage as error:
        raise UserError(f"question_id {question_id!r} has an {error}; leave the row out of the data set") from error
