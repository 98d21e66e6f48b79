"""Start of a training run: GPU, seed, logging, the checkpoint to resume from."""

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from cropvlm.cli import UserError
from cropvlm.runtime.files import check_writable

logger = logging.getLogger(__name__)

BASE_NOTE = "base_model.txt"  # in the output folder; scripts/train_grpo.sh reads it too


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
