"""scripts/train_sft.sh and scripts/train_grpo.sh: what they hand to the trainers, and where GRPO starts from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The two scripts in a folder of their own; python3 is replaced by a script that records its arguments."""
    (tmp_path / "scripts").mkdir()
    for name in ("train_sft.sh", "train_grpo.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\nPATH="$PWD/bin:$PATH"\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text('#!/usr/bin/env bash\necho "$*"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    return tmp_path


def call(checkout: Path, script: str, *args: str) -> subprocess.CompletedProcess:
    command = ["bash", checkout / "scripts" / script, *args]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


def make_model(checkout: Path, name: str, weights: str, seconds: int, others: tuple = ("run.json",)) -> None:
    """A model folder in which only file names and the time of the weights matter."""
    folder = checkout / "models" / name
    folder.mkdir(parents=True)
    for file in (weights, *others):
        (folder / file).touch()
    os.utime(folder / weights, (seconds, seconds))


def test_flags_are_passed_on(checkout):
    assert call(checkout, "train_sft.sh", "3", "--lora_r", "8").stdout == "train_sft.py --gpu 3 --lora_r 8\n"


@pytest.mark.parametrize("script", ["train_sft.sh", "train_grpo.sh"])
def test_the_gpu_has_to_be_named(script, checkout):
    result = call(checkout, script, "--lora_r", "8")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_grpo_starts_from_the_newest_sft_model_and_says_which(checkout):
    """The time of the weights counts, not the name; a checkpoint of a run still in progress is taken too."""
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    make_model(checkout, "sft_1024/checkpoint-900", "adapter_model.safetensors", 10)
    make_model(checkout, "grpo_512", "adapter_model.safetensors", 99)
    result = call(checkout, "train_grpo.sh", "0", "--max_samples", "5")
    assert result.stdout == "train_grpo.py --gpu 0 --base_model models/sft_512 --max_samples 5\n"
    assert result.stderr == "starting from the newest SFT model: models/sft_512\n"
    make_model(checkout, "sft_1024/checkpoint-1000", "model.safetensors", 30)
    assert "--base_model models/sft_1024/checkpoint-1000" in call(checkout, "train_grpo.sh", "0").stdout


@pytest.mark.parametrize("flags", ["--base_model other", "--base-model other", "--base-model=other", "--config other"])
def test_grpo_starts_from_what_is_named(flags, checkout):
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    result = call(checkout, "train_grpo.sh", "0", *flags.split())
    assert (result.stdout, result.stderr) == (f"train_grpo.py --gpu 0 {flags}\n", "")


@pytest.mark.parametrize("output", ["", "--output_dir out ", "--output-dir=out "])
def test_grpo_goes_on_with_the_model_that_it_started_from(output, checkout):
    """Even if there is a newer one by now."""
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    make_model(checkout, "sft_1024", "adapter_model.safetensors", 30)
    folder = checkout / ("out" if output else "models/grpo_512")
    folder.mkdir(parents=True)
    (folder / "base_model.txt").write_text("models/sft_512\n")
    for resume in ("--resume_from_checkpoint True", "--resume-from-checkpoint=True"):
        flags = f"{output}{resume}"
        result = call(checkout, "train_grpo.sh", "0", *flags.split())
        assert result.stdout == f"train_grpo.py --gpu 0 --base_model models/sft_512 {flags}\n"
        assert result.stderr == "continuing with the SFT model that this run started from: models/sft_512\n"
    for resume in ("", "--resume_from_checkpoint False"):
        result = call(checkout, "train_grpo.sh", "0", *f"{output}{resume}".split())
        assert "--base_model models/sft_1024" in result.stdout


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("sft_1024", ()),  # weights alone
        ("sft_1024", ("adapter_config.json", "base_model.txt")),  # a trainer's folder, killed before its last file
        ("sft_1024/checkpoint-900", ("adapter_config.json", "trainer_state.json")),  # a checkpoint, likewise
    ],
)
def test_grpo_does_not_start_from_half_a_model(name, others, checkout):
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    make_model(checkout, name, "adapter_model.safetensors", 30, others)
    assert "--base_model models/sft_512 " in call(checkout, "train_grpo.sh", "0", "--lora_r", "8").stdout


def test_an_empty_note_of_the_base_is_passed_over(checkout):
    (checkout / "models" / "grpo_512").mkdir(parents=True)
    (checkout / "models" / "grpo_512" / "base_model.txt").touch()
    result = call(checkout, "train_grpo.sh", "0", "--resume_from_checkpoint", "True")
    assert result.returncode == 2
    assert "models/grpo_512/base_model.txt is empty" in result.stderr
    assert result.stderr.count("\n") == 1
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    result = call(checkout, "train_grpo.sh", "0", "--resume_from_checkpoint", "True")
    assert "--base_model models/sft_512 " in result.stdout


def test_grpo_without_an_sft_model_is_refused(checkout):
    result = call(checkout, "train_grpo.sh", "0")
    assert (result.returncode, result.stdout) == (2, "")
    assert "run scripts/train_sft.sh first" in result.stderr
