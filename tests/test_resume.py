"""SIGKILL, then the same command with `--resume_from_checkpoint True`: the weights of a run that was never stopped."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from cropvlm.rewards import completion_text

ROOT = Path(__file__).resolve().parents[1]


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def length_reward(completions, **columns):
    """Random weights write no boxes, and without a spread of rewards GRPO would not move."""
    return [len(completion_text(completion)) / 10 for completion in completions]


def train(script: str, flags: list[str], kill_at: int | None = None) -> None:
    """Run a training script in this process; SIGKILL it once `kill_at` steps are done."""
    module = importlib.import_module(script)
    module.validity_reward = length_reward
    begin = Trainer.train
    if kill_at is not None:
        Trainer.train = lambda self, **options: self.add_callback(Kill(kill_at)) or begin(self, **options)
    sys.argv = [f"{script}.py", *flags]
    module.main()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_sft", "train_grpo"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(script, tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", None)
    monkeypatch.setattr(importlib.import_module("train_grpo"), "validity_reward", None)
    rows = datasets.load_from_disk(str(tiny_world))["train"]
    rows.add_column("bbox", [[i, i + 5, i + 30, 100] for i in range(len(rows))]).save_to_disk(str(tmp_path / "data"))
    flags = ["--base_model", tiny_smolvlm, "--dataset_path", tmp_path / "data", "--longest_edge", 64, "--lora_r", 4]
    flags += ["--eval_dataset_path", tiny_world, "--eval_split", "test", "--eval_max_samples", 2]
    flags += ["--vqa_model", tiny_smolvlm, "--vqa_longest_edge", 64]
    flags += ["--max_steps", 4, "--save_steps", 2, "--learning_rate", 1e-3, "--report_to", "none", "--use_cpu", True]
    if script == "train_grpo":
        flags += ["--num_generations", 3, "--per_device_train_batch_size", 3, "--max_completion_length", 8]
    flags += ["--gradient_accumulation_steps", 2, "--disable_tqdm", True, "--output_dir"]
    flags = list(map(str, flags))

    train(script, [*flags, str(tmp_path / "undisturbed")])
    killed = [sys.executable, __file__, script, "3", *flags, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(killed, env=environment, cwd=ROOT).returncode == -signal.SIGKILL
    # Killed once more while the next checkpoint was being written: its last file is missing.
    shutil.copytree(tmp_path / "killed" / "checkpoint-2", tmp_path / "killed" / "checkpoint-3")
    (tmp_path / "killed" / "checkpoint-3" / "trainer_state.json").unlink()
    train(script, [*flags, str(tmp_path / "killed"), "--resume_from_checkpoint", "True"])

    names = ["undisturbed", "killed", "killed/checkpoint-2"]
    undisturbed, resumed, halfway = (load_file(tmp_path / name / "adapter_model.safetensors") for name in names)
    assert undisturbed.keys() == resumed.keys()
    for name, weight in undisturbed.items():
        assert torch.allclose(resumed[name], weight, rtol=0, atol=1e-6), name
    states = [json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text()) for name in names[:2]]
    measured = [[entry for entry in state["log_history"] if "eval_accuracy" in entry] for state in states]
    assert [entry["step"] for entry in measured[0]] == [2, 4]
    assert measured[0] == measured[1]
    assert any((halfway[name] - weight).abs().max() > 1e-4 for name, weight in undisturbed.items())


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[3:], kill_at=int(sys.argv[2]))
