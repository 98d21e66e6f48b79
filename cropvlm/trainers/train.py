"""A training run from its settings to its result, the same for both stages."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments, set_seed

from cropvlm.errors import UserError
from cropvlm.models.adapters import adapter_base
from cropvlm.runs.files import lock, write_text
from cropvlm.trainers.checkpoints import (
    MODELS,
    RECORD,
    CheckpointRecorder,
    add_rows,
    check_finished,
    check_same_run,
    describe_run,
    named_checkpoint,
    newest_checkpoint,
    read_record,
)
from cropvlm.trainers.failures import FirstStep, told_in_one_line
from cropvlm.trainers.hardware import start_logging
from cropvlm.trainers.results import add_merged, create_repo, push, save_result
from cropvlm.trainers.settings import PolicyArguments, frozen_dtype

logger = logging.getLogger(__name__)

BASE_NOTE = "base_model.txt"  # in the output folder; scripts/train_grpo.sh reads it too
LOCK = "_lock"


def train(args: TrainingArguments, policy: PolicyArguments, make_trainer: Callable[[Any, Any], Trainer]) -> None:
    """Train anew, or resume where `args` says so, and put the result into the output folder.

    A resumed run ends with the weights of one that was never stopped; one that had finished is left as it is.

    make_trainer: (args, policy) -> the trainer, with data and models loaded.
    Raises `UserError` if the output folder cannot be used, the run to resume had other settings, training fails for
    want of memory or disk or at its first step, or the result cannot be pushed.
    """
    if args.hub_token:  # only the Hub's client looks for it there: transformers pickles its arguments into checkpoints
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    start_logging(args, policy)
    folder = Path(args.output_dir)
    check_apart(folder, args, policy)
    first = args.process_index == 0
    with told_in_one_line(args), lock(folder / LOCK) if first else contextlib.nullcontext():
        if first and args.push_to_hub:
            repo_id = create_repo(args)  # whatever forbids it is known before hours of training
        run = describe_run(args, policy)
        if not is_finished(args, policy, run):
            train_unfinished(args, policy, make_trainer, run)
        if first and policy.merge:
            add_merged(folder, frozen_dtype(args))
        if first and args.push_to_hub:
            push(args, repo_id)


def check_apart(folder: Path, args: TrainingArguments, policy: PolicyArguments) -> None:
    """Raise `UserError` where the result would replace a model or data set that the run, or its result, needs."""
    needed = {name: getattr(policy, name) for name in (*MODELS, "dataset_path")}
    needed |= {"eval_dataset_path": args.eval_dataset_path}
    if Path(policy.base_model).is_dir():
        needed |= {"the base of base_model": adapter_base(policy.base_model)}
    for name, path in needed.items():
        if path and Path(path).is_dir() and Path(path).resolve() == folder.resolve():
            raise UserError(f"the output folder {folder} is also {name}, which would be replaced; name another folder")


def is_finished(args: TrainingArguments, policy: PolicyArguments, run: dict[str, dict]) -> bool:
    """Whether the run is to be resumed and has left its result; `UserError` where another run's result is there."""
    folder = Path(args.output_dir)
    record = read_record(folder) if resumes(args) is True else None
    if record:
        check_finished(folder, record, run, policy.dataset_path)
        logger.warning("%s: finished before", folder)
    return record is not None


def resumes(args: TrainingArguments) -> bool | Path:
    """Parsed `resume_from_checkpoint`: True for the newest checkpoint, False for none, or the path of one."""
    wanted = str(args.resume_from_checkpoint)
    if wanted in ("None", "False", "false"):
        return False
    return True if wanted in ("True", "true") else Path(wanted)


def train_unfinished(
    args: TrainingArguments, policy: PolicyArguments, make_trainer: Callable[[Any, Any], Trainer], run: dict[str, dict]
) -> None:
    """Train from the beginning or from a checkpoint to the end, and save the result."""
    wanted = resumes(args)
    if isinstance(wanted, Path):
        found = named_checkpoint(wanted, run)
    else:
        found = newest_checkpoint(args.output_dir, run) if wanted else None
    set_seed(args.seed)  # a fresh adapter's weights are drawn before the trainer seeds
    first_step = FirstStep()
    with told_in_one_line(args, first_step):
        trainer = make_trainer(args, policy)
        run = add_rows(run, policy.dataset_path, trainer.train_dataset)
        if found:
            check_same_run(*found, run)
        recorder = CheckpointRecorder(run, trainer.args, found[1] if found else None)
        trainer.add_callback(recorder)
        trainer.add_callback(first_step)
        trainer.accelerator.wait_for_everyone()  # until all have looked at what the folder holds
        if args.process_index == 0:
            (Path(args.output_dir) / RECORD).unlink(missing_ok=True)  # from now on, no result of this run is there
            write_text(Path(args.output_dir) / BASE_NOTE, f"{policy.base_model}\n")  # for those who resume
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    save_result(trainer, recorder.described(trainer.state))
