"""The hardware of a training run: one GPU of several, processes on the CPU, a launcher's traces in the environment."""

import os
from types import SimpleNamespace

import pytest
import torch

from cropvlm.errors import UserError
from cropvlm.runs.processes import LAUNCHER_VARIABLES
from cropvlm.trainers.hardware import settle_hardware, show_one_gpu
from cropvlm.trainers.settings import PolicyArguments


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch):
    """The environment of the second of two processes."""
    values = {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    for name, value in (values | {"MASTER_PORT": 29500}).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("visible", "index", "left"),
    [(None, 0, "0"), (None, 1, "1"), ("4,6", 1, "6"), ("GPU-1a,GPU-2b", 0, "GPU-1a"), (None, -1, ""), ("4,6", -1, "")],
)
def test_one_gpu_is_left_to_be_seen(visible, index, left, monkeypatch):
    see_gpus(monkeypatch, 2, visible)
    show_one_gpu(index)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_without_a_flag_it_is_the_first_and_one_that_is_not_there_is_refused(monkeypatch):
    """TRL refuses several without a launcher, whose processes have one each."""
    see_gpus(monkeypatch, 2, None)
    with pytest.raises(UserError, match="^--gpu 2: GPUs 0 to 1 are visible"):
        show_one_gpu(2)  # it would hide all the others, and training would be on the CPU
    PolicyArguments()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    see_gpus(monkeypatch, 2, None)
    launch(monkeypatch)
    PolicyArguments()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def see_gpus(monkeypatch, count, visible):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # to be put back in the end
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_processes_on_the_cpu_find_one_another(monkeypatch):
    """Without being told of the CPU, each would train alone and write over the other."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = SimpleNamespace(use_cpu=False, bf16=None, fp16=False)
    settle_hardware(args)
    assert not args.use_cpu
    launch(monkeypatch)
    settle_hardware(args)
    assert args.use_cpu
    assert not args.bf16


def test_one_process_in_place_of_several_is_refused(monkeypatch):
    """`accelerate launch --num_processes 2` starts one on a machine without a GPU, at half the intended batch."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    args = SimpleNamespace(use_cpu=True, bf16=None, fp16=False)
    settle_hardware(args)  # one was asked for
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="one process only"):
        settle_hardware(args)
    monkeypatch.setenv("LOCAL_RANK", "1")  # left over in a shell: the process would take itself for one of several
    with pytest.raises(UserError, match="LOCAL_RANK is set in the environment but WORLD_SIZE is not"):
        settle_hardware(args)
    launch(monkeypatch)
    settle_hardware(args)
