"""Hardware and logging of a training run. Light enough to be imported before the flags are read."""

import logging
import os
from typing import Any

import torch
from transformers import TrainingArguments

from cropvlm.errors import UserError
from cropvlm.runs import cli
from cropvlm.runs.processes import num_processes

logger = logging.getLogger(__name__)

LAUNCH = "accelerate launch --multi_gpu --num_processes 2 ..."


def show_one_gpu(index: int) -> None:
    """Let this process see only GPU number `index` of those visible now; none for a negative number.

    Has to come before CUDA starts. More visible GPUs would make transformers wrap the model in `DataParallel`. Without
    any GPU nothing changes. Raises `UserError` where there are GPUs, but not this one.
    """
    count = torch.cuda.device_count()  # unlike is_available(), this does not start CUDA
    if index >= count > 0:
        visible = "GPU 0 is" if count == 1 else f"GPUs 0 to {count - 1} are"
        raise UserError(f"--gpu {index}: {visible} visible; name another one")
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = list(map(str, range(count))) if visible is None else visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index >= 0 else ""


def settle_hardware(args: TrainingArguments) -> None:
    """Compute in bfloat16 on a GPU and in float32 on the CPU, with all processes, unless flags say otherwise.

    For `__post_init__`, before TRL's own, which would take bfloat16 everywhere. Raises `UserError` if the environment
    speaks of several processes, but not as a launcher does, or this one is alone.
    """
    num_processes()  # raises for half of a launcher's environment
    alone = not os.environ.keys() & {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
    if alone and (left := [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]):
        seen = f"{left[0]} is set in the environment but WORLD_SIZE is not"
        raise UserError(f"{seen}: unset it, or for two processes on the CPU: {LAUNCH}")
    if not torch.accelerator.is_available():
        # Without GPUs, processes find one another only where the CPU was asked for: else each would train alone.
        args.use_cpu = args.use_cpu or "LOCAL_RANK" in os.environ
        # What `accelerate launch` leaves where it was asked for several processes and starts one after all.
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and alone:
            raise UserError(f"accelerate launch has started one process only, for want of a GPU; on the CPU: {LAUNCH}")
    if args.bf16 is None:
        args.bf16 = torch.cuda.is_available() and not args.use_cpu and not args.fp16


def start_logging(args: TrainingArguments, policy: Any) -> None:
    """Log to stderr, the resolved settings first; with `--log_level debug` the traceback behind a line as well."""
    cli.start_logging()
    if args.log_level == "debug":
        logging.getLogger("cropvlm").setLevel(logging.DEBUG)
    logger.info("%s: %s", type(policy).__name__, vars(policy))
    logger.info("%s: %s", type(args).__name__, args.to_dict())
