"""scripts/train_sft.sh and scripts/train_grpo.sh: what they hand to the trainers, and where GRPO starts from."""

import os
import shutil
from pathlib import Path

import pytest
from checkouts import call


def make_model(checkout: Path, name: str, weights: str, seconds: int, others: tuple = ("run.json",)) -> None:
    """A model folder in which only file names and the time of the weights matter."""
    folder = checkout / "models" / name
    folder.mkdir(parents=True)
    for file in (weights, *others):
        (folder / file).touch()
    os.utime(folder / weights, (seconds, seconds))


def train(checkout: Path, script: str, flags: str) -> tuple[str, str]:
    """The python call of a training script, "" for none, and what it says."""
    result, calls = call(checkout, script, *flags.split())
    assert result.returncode == (0 if calls else 2)
    return " ".join(sum(calls, [])), result.stderr


@pytest.mark.parametrize("script", ["train_sft.sh", "train_grpo.sh"])
def test_the_gpu_has_to_be_named_and_flags_are_passed_on(script, checkout):
    asked, said = train(checkout, script, "--lora_r 8")
    assert (asked, said.count("\n")) == ("", 1)
    flags = "--gpu 3 --base_model m --lora_r 8"
    assert train(checkout, script, flags.removeprefix("--gpu "))[0] == f"{script.replace('.sh', '.py')} {flags}"


def test_grpo_starts_from_the_newest_sft_model_and_says_which(checkout):
    """The time of the weights counts, not the name; a checkpoint of a run still in progress is taken too."""
    asked, said = train(checkout, "train_grpo.sh", "0")
    assert asked == ""
    assert "run scripts/train_sft.sh first" in said
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    make_model(checkout, "sft_1024/checkpoint-900", "adapter_model.safetensors", 10)
    make_model(checkout, "grpo_512", "adapter_model.safetensors", 99)
    asked, said = train(checkout, "train_grpo.sh", "0 --max_samples 5")
    assert asked == "train_grpo.py --gpu 0 --base_model models/sft_512 --max_samples 5"
    assert said == "starting from the newest SFT model: models/sft_512\n"
    make_model(checkout, "sft_1024/checkpoint-1000", "model.safetensors", 30)
    assert "--base_model models/sft_1024/checkpoint-1000" in train(checkout, "train_grpo.sh", "0")[0]
    for flags in ("--base-model=other", "--config other"):
        assert train(checkout, "train_grpo.sh", f"0 {flags}") == (f"train_grpo.py --gpu 0 {flags}", "")


@pytest.mark.parametrize("output", ["", "--output-dir=out "])
def test_grpo_goes_on_with_the_model_that_it_started_from(output, checkout):
    """Even if there is a newer one by now."""
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    make_model(checkout, "sft_1024", "adapter_model.safetensors", 30)
    folder = checkout / ("out" if output else "models/grpo_512")
    folder.mkdir(parents=True)
    (folder / "base_model.txt").write_text("models/sft_512\n")
    for resume in ("--resume_from_checkpoint True", "--resume-from-checkpoint=True"):
        asked, said = train(checkout, "train_grpo.sh", f"0 {output}{resume}")
        assert asked == f"train_grpo.py --gpu 0 --base_model models/sft_512 {output}{resume}"
        assert said == "continuing with the SFT model that this run started from: models/sft_512\n"
    for resume in ("", "--resume_from_checkpoint False"):
        assert "--base_model models/sft_1024" in train(checkout, "train_grpo.sh", f"0 {output}{resume}")[0]


def test_grpo_does_not_start_from_half_a_model(checkout):
    """A trainer's folder, killed before its last file, and a checkpoint, likewise."""
    make_model(checkout, "sft_512", "adapter_model.safetensors", 20)
    for name, more in {"sft_1024": "base_model.txt", "sft_1024/checkpoint-900": "trainer_state.json"}.items():
        make_model(checkout, name, "adapter_model.safetensors", 30, ("adapter_config.json", more))
        assert "--base_model models/sft_512 " in train(checkout, "train_grpo.sh", "0 --lora_r 8")[0]
    make_model(checkout, "grpo_512", "base_model.txt", 1, ())  # empty
    assert "--base_model models/sft_512 " in train(checkout, "train_grpo.sh", "0 --resume_from_checkpoint True")[0]
    shutil.rmtree(checkout / "models" / "sft_512")
    asked, said = train(checkout, "train_grpo.sh", "0 --resume_from_checkpoint True")
    assert (asked, said.count("\n")) == ("", 1)
    assert "models/grpo_512/base_model.txt is empty" in said
