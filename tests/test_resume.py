"""A run that was killed, damaged or finished, resumed: it ends with the weights of a run that was never stopped."""

import fcntl
import hashlib
import importlib
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import HfApi
from kills import run_forked
from trainers import run_main
from transformers import Trainer

from cropvlm import rewards
from cropvlm.errors import UserError
from cropvlm.rewards import completion_text
from cropvlm.trainers.checkpoints import RECORD, read_record

ROOT = Path(__file__).resolve().parents[1]
RESUME = ["--resume_from_checkpoint", "True"]


def length_reward(completions, **columns):
    """Random weights write no boxes, and without a spread of rewards GRPO would not move."""
    return [len(completion_text(completion)) / 10 for completion in completions]


def train(script: str, flags: list) -> None:
    """Run a training script in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "validity_reward", length_reward)
        run_main(patch, importlib.import_module(script), *flags)


@pytest.fixture(scope="module")
def flags(tiny_smolvlm, boxed_world) -> list:
    """Four steps of SFT at a constant rate, so that a fifth would show, with a checkpoint at every second one."""
    return [
        *("--base_model", tiny_smolvlm, "--dataset_path", boxed_world, "--longest_edge", 64, "--lora_r", 4),
        *("--max_steps", 4, "--save_steps", 2, "--learning_rate", 1e-3, "--lr_scheduler_type", "constant"),
        *("--report_to", "none", "--use_cpu", True, "--disable_tqdm", True),
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2),
    ]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sft"
    train("train_sft", [*flags, "--output_dir", folder])
    return folder


def copy(finished: Path, folder: Path, *without: str) -> Path:
    """A copy of a finished run without some of its files and folders."""
    shutil.copytree(finished, folder)
    for name in without:
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


GRPO = ["--num_generations", 3, "--per_device_train_batch_size", 3, "--max_completion_length", 8]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "stride"), [("train_sft", 9), ("train_grpo", 31)])
def test_training_is_completed_wherever_it_is_killed(script, stride, flags, tiny_smolvlm, tmp_path):
    """At file-system events from the first to the last: the same command ends with the same weights."""
    if script == "train_grpo":
        flags = [*flags, *GRPO, "--vqa_model", tiny_smolvlm, "--vqa_longest_edge", 64]

    def run(folder: Path, kill_at: int | None = None) -> tuple[int, int]:
        return run_forked(lambda: train(script, [*flags, "--output_dir", folder, *RESUME]), kill_at)

    train(script, [*flags, "--output_dir", tmp_path / "undisturbed"])
    expected = weights(tmp_path / "undisturbed")
    code, points = run(tmp_path / "whole")
    assert code == 0
    assert weights(tmp_path / "whole") == expected
    for point in range(0, points, stride):
        folder = tmp_path / f"killed-{point}"
        assert run(folder, point)[0] == -signal.SIGKILL
        if read_record(folder) is not None:
            assert weights(folder) == expected, point
        assert run(folder)[0] == 0, point
        assert weights(folder) == expected, point
        assert read_record(folder) is not None
        assert not [*folder.glob("_*"), *folder.glob(".*")], point
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("without", [(), (RECORD,)])
def test_a_run_whose_steps_are_all_done_takes_no_more(without, flags, finished, tmp_path, monkeypatch):
    """With a whole result, a partial one, or none."""
    folder = copy(finished, tmp_path / "run", *without)
    if not without:
        monkeypatch.setattr(importlib.import_module("train_sft"), "make_trainer", None)  # nothing is loaded
    monkeypatch.setattr(Trainer, "training_step", None)
    train("train_sft", [*flags, "--output_dir", folder, *RESUME])
    assert weights(folder) == weights(finished)
    assert read_record(folder) is not None
    assert (folder / "README.md").read_text().count("Figures after 4 steps") == 1


@pytest.mark.parametrize(
    ("state", "changed", "words"),
    [
        ("finished", ["--seed", 7], "seed 42 there, 7 here"),
        ("half-way", ["--dataset_path", "other"], "dataset_path '.*' there, 'other' here"),
        ("finished", ["--base_model", "moved"], "base_model '.*' there, 'moved' here"),
    ],
    ids=["seed", "rows", "base"],
)
def test_a_run_with_other_settings_is_refused(
    changed, words, state, flags, boxed_world, tiny_smolvlm, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = copy(finished, tmp_path / "run", *([] if state == "finished" else ["adapter_*", "checkpoint-4"]))
    datasets.load_from_disk(str(boxed_world)).map(lambda row: {"bbox": [0, 0, 9, 9]}).save_to_disk("other")
    shutil.copytree(tiny_smolvlm, "moved")
    Path("moved/generation_config.json").write_text('{"max_length": 7}')
    with pytest.raises(UserError, match=f"comes from a run with other settings \\({words}\\)"):
        train("train_sft", [*flags, "--output_dir", folder, *RESUME, *changed])
    assert (state == "half-way") or weights(folder) == weights(finished)


def test_a_run_that_has_moved_goes_on(flags, finished, boxed_world, tiny_smolvlm, tmp_path, caplog):
    """Its folder, its data and its base are elsewhere, and hold what they held."""
    folder = copy(finished, tmp_path / "run", "adapter_*", "checkpoint-4")
    moved = [shutil.copytree(path, tmp_path / path.name) for path in (boxed_world, tiny_smolvlm)]
    paths = ["--dataset_path", moved[0], "--base_model", moved[1], "--output_dir", folder]
    train("train_sft", [*flags, *paths, *RESUME])
    assert f"resuming from {folder / 'checkpoint-2'}" in caplog.text
    assert weights(folder) == weights(finished)
    assert (folder / "base_model.txt").read_text() == f"{moved[1]}\n"


def test_a_new_run_forgets_the_result_of_the_old_one_when_it_begins(flags, finished, tmp_path, monkeypatch):
    """Not before: a mistake in its settings leaves the old result as it is."""
    folder = copy(finished, tmp_path / "run")
    with pytest.raises(UserError, match="no data set"):
        train("train_sft", [*flags, "--output_dir", folder, "--dataset_path", "missing/folder/of/data"])
    assert read_record(folder) is not None

    def stop(self, **options):
        raise RuntimeError("stopped")

    monkeypatch.setattr(Trainer, "train", stop)
    with pytest.raises(UserError, match="cannot be trained with .stopped."):
        train("train_sft", [*flags, "--output_dir", folder, "--seed", 7])
    assert read_record(folder) is None


def test_a_folder_takes_one_trainer_at_a_time(flags, finished, tmp_path, monkeypatch):
    """The lock of a process that has ended is gone, though its file remains."""
    folder = copy(finished, tmp_path / "run")
    with (folder / "_lock").open("a+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        code, _ = run_forked(lambda: train("train_sft", [*flags, "--output_dir", folder, *RESUME]))
        assert code == 2
    train("train_sft", [*flags, "--output_dir", folder, *RESUME, "--merge"])  # which can be asked for later
    assert not (folder / "_lock").exists()
    assert (folder / "merged" / "model.safetensors").is_file()
    assert weights(folder) == weights(finished)


@pytest.mark.slow
def test_the_hub_gets_the_result_and_no_file_or_log_the_token(flags, tmp_path, monkeypatch, capfd, caplog):
    """`--hub_token` would be pickled into training_args.bin, in the folder that is uploaded."""
    pushed, tokens = [], []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: SimpleNamespace(repo_id=name))

    def upload_folder(self, **options):
        tokens.append(os.environ.get("HF_TOKEN"))
        pushed.append((options["repo_id"], options["folder_path"]))

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setenv("HF_TOKEN", "")
    folder = tmp_path / "run"
    hub = ["--push_to_hub", True, "--hub_model_id", "me/cropper", "--hub_token", "hf_SECRET", "--hub_strategy", "end"]
    train("train_sft", [*flags, *hub, "--output_dir", folder])
    assert "--model_path me/cropper" in (folder / "README.md").read_text()
    train("train_sft", [*flags, *hub, "--output_dir", folder, *RESUME])  # finished, and pushed once more
    assert (pushed, tokens) == ([("me/cropper", str(folder))] * 2, ["hf_SECRET"] * 2)
    holding = [path for path in folder.rglob("*") if path.is_file() and b"hf_SECRET" in path.read_bytes()]
    assert holding == []
    assert "hf_SECRET" not in caplog.text + "".join(capfd.readouterr())
