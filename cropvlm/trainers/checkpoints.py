"""Checkpoints that are whole and belong to the run that resumes from them.

Every checkpoint and every finished model holds a record, `run.json`, written last: the settings that determine the
weights, what the models and rows behind them contain, and a checksum of each file.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from cropvlm.data.catalog import dataset_name
from cropvlm.errors import UserError, listed
from cropvlm.runs import provenance
from cropvlm.runs.files import open_to_group, write_json
from cropvlm.runs.provenance import (
    INPUTS,
    RECORD,
    file_checksum,
    library_versions,
    model_checksum,
    row_hashes,
    row_keys,
    rows_checksum,
    saved_rows,
    sources_of,
    training_record,
)
from cropvlm.trainers.micro_batches import differs_by_micro_batch

logger = logging.getLogger(__name__)

# Settings that leave the weights as they are: where and how often something is written, shown, measured or pushed, and
# on what, and in how large parts, the computation runs (SFT's dropout draws other masks for other parts; the step that
# the parts make is recorded). Every other setting has to be the same when a run is resumed.
INDIFFERENT = re.compile(
    "(hub_|log_|logging_|trackio_|vllm_server_|ddp_|activation_|gradient_checkpointing|report_to|run_name|project"
    "|dataloader_(?!drop_last)|do_|output_dir|resume_from_checkpoint|push_to_hub|disable_tqdm|gpu|merge|local_rank"
    "|use_cpu|debug|skip_memory_metrics|include_|num_completions_to_print|reward_batch_size"
    "|micro_batch_size|steps_per_generation|per_device_eval_batch_size|num_generations_eval|dataset_num_proc"
    "|torch_empty_cache_steps|enable_jit_checkpoint|dataset_path$)"
)
MEASURING = re.compile("(eval_|save_|metric_for_best_model|greater_is_better)")  # these choose the best checkpoint
PARTS = re.compile("(per_device_train_batch_size|gradient_accumulation_steps)")  # of a step
# What a launcher, or a shell, decides the computation by, unless it says no to it.
ENVIRONMENT = re.compile(
    "(ACCELERATE_(MIXED_PRECISION|DYNAMO_|USE_FSDP|USE_DEEPSPEED)|FSDP_|TORCH_ALLOW_TF32|NVIDIA_TF32)"
)
NAME = re.compile(r"checkpoint-\d+")  # of a checkpoint's folder
NO = ("", "0", "no", "false", "default")
MODELS = ("base_model", "processor", "vqa_model")
# The settings that meta files and reports repeat for a model.
RECORDED = ("num_train_epochs", "max_steps", "learning_rate", "lora_r", "lora_alpha", "num_generations", "beta")
UNLESS_GIVEN = ("crop_cost",)  # settings that are left out where nothing was given


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of `UNLESS_GIVEN` for which nothing was given."""
    return {name: value for name, value in settings.items() if value is not None or name not in UNLESS_GIVEN}


def describe_run(args: TrainingArguments, policy: Any) -> dict[str, dict]:
    """Return what determines the weights: `settings` by name, and `contents`, checksums of models in local folders."""
    settings = given(vars(policy)) | args.to_dict() | {"processes": args.world_size * max(1, args.n_gpu)}
    settings["rows_a_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps
    environment = {name: value for name, value in sorted(os.environ.items()) if ENVIRONMENT.match(name)}
    settings["environment"] = {name: value for name, value in environment.items() if value.lower() not in NO}
    left_out = [INDIFFERENT] if args.load_best_model_at_end else [INDIFFERENT, MEASURING]
    left_out += [] if differs_by_micro_batch(args) else [PARTS]
    kept = {name: value for name, value in settings.items() if not any(names.match(name) for names in left_out)}
    settings = json.loads(json.dumps(kept, default=str))
    reward = getattr(policy, "reward", None)
    training = {
        "stage": "GRPO" if reward else "SFT",
        "reward": reward,
        "longest_edge": policy.longest_edge,
        "seed": args.seed,
        "base": policy.base_model,
        "settings": {name: settings[name] for name in RECORDED if name in settings},
    }
    if need := need_learnt(policy):
        training["need"] = need
    contents = {name: model_checksum(getattr(policy, name)) for name in MODELS}
    base = training_record(policy.base_model)
    if Path(policy.base_model).is_dir() and "stage" in base.get("training", {}):
        training["base_training"] = {"checksum": contents["base_model"]} | base["training"]
    if args.load_best_model_at_end and (chosen_on := settings.get("eval_dataset_path")):
        training["chosen_on"] = {"name": dataset_name(chosen_on), "split": settings["eval_split"]}
    return {"settings": settings, "contents": contents, "training": training, "seen_rows": base.get("seen_rows", "")}


def need_learnt(policy: Any) -> dict[str, Any] | None:
    """For which answerer and image size a run learns whether to crop, and how; None where it learns only boxes."""
    if getattr(policy, "crop_cost", None) is not None:
        return {"answerer": policy.vqa_model, "longest_edge": policy.vqa_longest_edge, "crop_cost": policy.crop_cost}
    labels = None
    if not hasattr(policy, "reward"):  # SFT
        with contextlib.suppress(OSError, ValueError, KeyError):  # rows that create_dataset.py has not made here
            labels = json.loads((Path(policy.dataset_path) / INPUTS).read_text())["inputs"]["need"]
    names = {"answerer": "reward_model", "longest_edge": "longest_edge", "need_threshold": "threshold"}
    return labels and {name: labels[key] for name, key in names.items()}


def add_rows(run: dict[str, dict], path: str, rows: Dataset) -> dict[str, dict]:
    """Return the description of a run with the rows it trains on."""
    settings = run["settings"] | {"dataset_path": path}
    keys = row_keys(rows)
    checksum = rows_checksum(rows, keys)
    seen = " ".join(sorted({*run["seen_rows"].split(), *row_hashes(rows, keys)}))
    training = {"sources": sources_of(path, rows), "rows": len(rows), "rows_checksum": checksum}
    training = run["training"] | training | {"saved_rows": saved_rows(path)}
    contents = run["contents"] | {"dataset_path": checksum}
    return {"settings": settings, "contents": contents, "training": training, "seen_rows": seen}


def differences(theirs: dict[str, dict], ours: dict[str, dict]) -> list[str]:
    """Return what two runs differ in, in words. A setting that only one of them knows is of another version."""
    names = (theirs["settings"].keys() & ours["settings"].keys()) | set(UNLESS_GIVEN)
    known = [{name: run["settings"].get(name) for name in names} for run in (theirs, ours)]
    return provenance.differences(*known, [run["contents"] for run in (theirs, ours)])


def check_same_run(folder: Path, theirs: dict[str, dict], ours: dict[str, dict]) -> None:
    """Raise `UserError` where two runs differ. folder: what the other run has left."""
    if found := differences(theirs, ours):
        shown = listed(found, limit=5, length=300, separator="; ")
        remedy = "repeat that run's settings, name another output folder, or start anew without resuming"
        raise UserError(f"{folder} comes from a run with other settings ({shown}); {remedy}")


def check_finished(folder: Path, record: dict[str, dict], run: dict[str, dict], path: str) -> None:
    """Raise `UserError` where a finished run is not `run` with the rows at `path`, which are not loaded."""
    theirs = record["contents"] | {"dataset_path": record.get("training", {}).get("saved_rows")}
    ours = run["contents"] | {"dataset_path": saved_rows(path)}
    here = {"settings": run["settings"] | {"dataset_path": path}, "contents": ours}
    check_same_run(folder, record | {"contents": theirs}, here)


def write_record(folder: Path, run: dict[str, dict], files: Iterable[Path]) -> None:
    """Write the record that makes `folder` whole. files: those that belong to it, with paths from `folder` on."""
    write_json(folder / RECORD, run | {"files": {str(file): file_checksum(folder / file) for file in sorted(files)}})


def read_record(folder: Path) -> dict[str, dict] | None:
    """Return the record of a checkpoint or finished model; None unless all of its files are as they were written."""
    try:
        record = json.loads((folder / RECORD).read_text())
        whole = all(file_checksum(folder / file) == checksum for file, checksum in record["files"].items())
        return record if whole and record["settings"] and record["contents"] else None
    except Exception:  # whatever a damaged file holds, such as lists nested a thousand deep
        return None


def can_resume(args: TrainingArguments, step: int, max_steps: int) -> bool:
    """Whether a run that resumes from the checkpoint of `step` ends with the weights of one that was never stopped.

    Not without the optimizer, nor while GRPO has completions left to train on, which no checkpoint holds.
    """
    micro_steps = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)  # of one generation
    nothing_left = step >= max_steps or step * args.gradient_accumulation_steps % micro_steps == 0
    return not args.save_only_model and nothing_left


class CheckpointRecorder(TrainerCallback):
    """Writes the record of each checkpoint once all processes have written their files, and then deletes older ones.

    transformers deletes them before the new one is recorded: a run killed in between would have none to resume from.

    args: the trainer's; `save_total_limit` is taken from it, unless it keeps no optimizer and nobody can resume.
    resumed: the record of the checkpoint that the run resumes from, None where it begins.
    """

    def __init__(self, run: dict[str, dict], args: TrainingArguments, resumed: dict[str, dict] | None = None):
        self.run, self.limit = run, None
        self.begun = time.monotonic() - (resumed or {}).get("training", {}).get("seconds", 0)
        if not args.save_only_model:
            self.limit, args.save_total_limit = args.save_total_limit, None

    def described(self, state: TrainerState) -> dict[str, dict]:
        """The description of the run with the steps done and planned, and the seconds that those done took."""
        steps = {"steps": state.global_step, "planned_steps": state.max_steps}
        steps |= {"seconds": round(time.monotonic() - self.begun, 1), "gpu": library_versions().get("gpu")}
        return self.run | {"training": self.run["training"] | steps}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Raise `UserError` for weights that no further step can make finite again: the loss is logged as 0."""
        weights = [weight.detach() for weight in kwargs["model"].parameters() if weight.requires_grad]
        if not torch.nn.utils.get_total_norm(weights).isfinite():  # of all at once: a GPU is waited for only once
            seen = f"step {state.global_step} has left weights that are not finite"
            raise UserError(f"{seen}: training has diverged; start anew with a lower --learning_rate")

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if args.should_save and can_resume(args, state.global_step, state.max_steps):
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            open_to_group(folder)
            files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
            write_record(folder, self.described(state), (file for file in files if file.name != RECORD))
            if self.limit:
                self._delete_others(args, state)

    def _delete_others(self, args: TrainingArguments, state: Any) -> None:
        """Keep the best checkpoint and the newest ones that a run can resume from."""
        # transformers would also list, and delete, a user's copy such as checkpoint-7-old.
        paths = [path for path in sort_checkpoints(args.output_dir, use_mtime=True) if NAME.fullmatch(Path(path).name)]
        whole = [path for path in paths if (Path(path) / RECORD).is_file()]
        kept = {*whole[-self.limit :], str(Path(state.best_model_checkpoint or ""))}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(output_dir: str, run: dict[str, dict]) -> tuple[Path, dict] | None:
    """Return the newest whole checkpoint of `run` in a folder and its record; None, with a warning, without one.

    Raises `UserError` where all whole checkpoints there are of runs with other settings.
    """
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if NAME.fullmatch(path.name)]
    other = None
    for path in sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        record = read_record(path)
        if record is None:
            logger.warning("%s is damaged, incomplete or no place to resume from: looking for the one before", path)
        elif found := differences(record, run):
            logger.warning("%s comes from a run with other settings (%s)", path, found[0])
            other = other or (path, record)
        else:
            logger.warning("resuming from %s", path)
            return path, record
    if other:
        check_same_run(*other, run)
    logger.warning("no whole checkpoint in %s: starting anew", output_dir)
    return None


def named_checkpoint(path: Path, run: dict[str, dict]) -> tuple[Path, dict]:
    """Return `path` and its record; `UserError` unless it is a whole checkpoint of `run`."""
    record = read_record(path)
    if record is None:
        raise UserError(f"{path}: no whole checkpoint; name another one, or True for the newest that is whole")
    check_same_run(path, record, run)
    return path, record
