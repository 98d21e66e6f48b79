"""Errors that end a training in one line: a setting until the first step, then memory and disk; any other is a bug."""

import pytest
import torch
from transformers import Trainer

import train_sft
from cropvlm.errors import UserError
from cropvlm.models.batches import BatchTooLarge
from cropvlm.runs import cli
from cropvlm.trainers.failures import told_in_one_line
from cropvlm.trainers.train import train

SHM = "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "half the --micro_batch_size, here 4"),
        (RuntimeError("CUDA error: out of memory"), "out of memory: continue with --resume_from_checkpoint True"),
        (BatchTooLarge("out of memory at batch size 6"), "a lower --reward_batch_size"),
        (OSError(28, "No space left on device"), "out: the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 512 vs 400"), "the disk is full"),
        (RuntimeError(SHM), "--shm-size=8g.*--dataloader_num_workers 0"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "install gcc"),
    ],
)
def test_memory_and_disk_are_told_with_what_to_do(raised, words, tmp_path):
    args = train_sft.SFTArguments(output_dir="out", use_cpu=True, per_device_train_batch_size=4)
    with pytest.raises(UserError, match=words) as caught, told_in_one_line(args):
        raise raised
    assert "\n" not in str(caught.value)


def run_sft(model, data, folder, **options):
    policy = train_sft.PolicyArguments(base_model=str(model), dataset_path=str(data), longest_edge=64, lora_r=4)
    args = train_sft.SFTArguments(output_dir=str(folder), report_to="none", use_cpu=True, max_steps=2, **options)
    train(args, policy, train_sft.make_trainer)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_liger_kernel": True}, "liger-kernel"),  # a package that is missing
        ({"pad_to_multiple_of": 8}, "multiple of a value"),  # the collator, at the first batch
    ],
)
def test_settings_that_cannot_be_trained_with_are_one_line(options, reason, tiny_smolvlm, boxed_world, tmp_path):
    """The libraries' own words."""
    with pytest.raises(UserError, match=reason) as caught:
        run_sft(tiny_smolvlm, boxed_world, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", ["debug", "passive"])
def test_the_traceback_behind_a_line_can_be_asked_for(level, tmp_path, monkeypatch, caplog):
    def fail(args, policy):
        raise ZeroDivisionError("a bug")

    args = train_sft.SFTArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, log_level=level)
    monkeypatch.setattr(cli, "shorten_socket_paths", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: train(args, train_sft.PolicyArguments(base_model="base", dataset_path="data"), fail))
    assert ("in fail" in caplog.text) == (level == "debug")


def test_after_the_first_step_an_error_keeps_its_traceback(tiny_smolvlm, boxed_world, tmp_path, monkeypatch):
    plain = Trainer.training_step

    def fail_later(self, *args):
        if self.state.global_step:
            raise ZeroDivisionError
        return plain(self, *args)

    monkeypatch.setattr(Trainer, "training_step", fail_later)
    with pytest.raises(ZeroDivisionError):
        run_sft(tiny_smolvlm, boxed_world, tmp_path / "out")
