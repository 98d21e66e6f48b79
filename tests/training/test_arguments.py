"""The configuration files, which checkpoint a run goes on from, and processes on the CPU."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_grpo
import train_sft
from cropvlm.cli import UserError
from cropvlm.training.arguments import PolicyArguments, parse
from cropvlm.training.setup import check_base, checkpoint_to_resume, note_base, settle_hardware, show_one_gpu

CONFIGS = Path(__file__).resolve().parents[2] / "scripts" / "configs"
SFT = (PolicyArguments, train_sft.SFTArguments)
GRPO = (train_grpo.GRPOPolicyArguments, train_grpo.GRPOArguments)


@pytest.mark.parametrize("longest_edge", [512, 1024, 2048])
@pytest.mark.parametrize(("stage", "types"), [("sft", SFT), ("grpo", GRPO)])
def test_configs_are_the_defaults_but_for_the_size(stage, types, longest_edge, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"train_{stage}.py", "--use_cpu", "True"])
    plain_policy, plain_args = parse(types)
    sys.argv += ["--config", str(CONFIGS / f"{stage}_{longest_edge}.yaml")]
    policy, args = parse(types)
    assert policy.longest_edge == longest_edge
    assert args.output_dir == f"models/{stage}_{longest_edge}"
    assert policy.base_model == (
        "HuggingFaceTB/SmolVLM-256M-Instruct" if stage == "sft" else f"models/sft_{longest_edge}"
    )
    sized = {"longest_edge", "base_model"}
    assert {k: v for k, v in vars(policy).items() if k not in sized} == {
        k: v for k, v in vars(plain_policy).items() if k not in sized
    }
    names = set(types[1].__annotations__) - {"output_dir"}
    assert {name: getattr(args, name) for name in names} == {name: getattr(plain_args, name) for name in names}


def test_the_command_line_goes_before_the_config(monkeypatch):
    flags = ["--config", str(CONFIGS / "grpo_1024.yaml"), "--learning_rate", "1e-3", "--use_cpu", "True"]
    monkeypatch.setattr(sys, "argv", ["train_grpo.py", *flags])
    policy, args = parse(GRPO)
    assert (policy.longest_edge, args.learning_rate, args.beta) == (1024, 1e-3, 0.01)


@pytest.mark.parametrize(
    ("types", "flag", "value", "expected"),
    [
        *((SFT, flag, "0", "at least 1") for flag in ("--longest_edge", "--lora_r", "--lora_alpha")),
        *((types, "--per_device_train_batch_size", "0", "at least 1") for types in (SFT, GRPO)),
        *((types, "--gradient_accumulation_steps", "0", "at least 1") for types in (SFT, GRPO)),
        *((types, "--vqa_longest_edge", "0", "at least 1") for types in (SFT, GRPO)),
        *((types, "--lora_dropout", "2.0", "less than 1") for types in (SFT, GRPO)),
        *((types, "--report_to", "foo", "none, all or what is installed: .*tensorboard") for types in (SFT, GRPO)),
        (SFT, "--packing", "True", "cannot be packed"),
        (SFT, "--max_length", "8", "no row may be cut"),
        (GRPO, "--num_generations", "0", "at least 2"),
        (GRPO, "--max_completion_length", "0", "at least 1"),
        (GRPO, "--steps_per_generation", "0", "at least 1"),
        (GRPO, "--generation_batch_size", "0", "at least 1"),
        (GRPO, "--temperature", "0.0", "more than 0"),
        (GRPO, "--loss_type", "foo", "grpo, bnpo, dr_grpo"),
        (GRPO, "--scale_rewards", "foo", "group, batch, none"),
        (GRPO, "--reward_batch_size", "0", "at least 1"),
        (GRPO, "--reward_batch_size", "-1", "at least 1"),
        (GRPO, "--log_crops_every", "-1", "at least 0"),
    ],
)
def test_values_that_cannot_be_trained_with(types, flag, value, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", flag, value, "--use_cpu", "True"])
    with pytest.raises(UserError, match=f"^{flag} {value}: .*{expected}"):
        parse(types)


@pytest.mark.parametrize(
    ("visible", "index", "left"),
    [(None, 0, "0"), (None, 1, "1"), ("4,6", 1, "6"), ("GPU-1a,GPU-2b", 0, "GPU-1a"), (None, -1, ""), ("4,6", -1, "")],
)
def test_one_gpu_is_left_to_be_seen(visible, index, left, monkeypatch):
    see_gpus(monkeypatch, 2, visible)
    show_one_gpu(index)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize("visible", [None, "4,6"])
def test_a_gpu_that_is_not_there_is_refused(visible, monkeypatch):
    """Else it would hide all the others, and training would be on the CPU."""
    see_gpus(monkeypatch, 2, visible)
    with pytest.raises(UserError, match="--gpu 2: GPUs 0 to 1"):
        show_one_gpu(2)


@pytest.mark.parametrize("index", [0, 3, -1])
def test_without_a_gpu_nothing_changes(index, monkeypatch):
    see_gpus(monkeypatch, 0, None)
    show_one_gpu(index)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def see_gpus(monkeypatch, count, visible):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # to be put back in the end
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    for step, state in [(9, "{}"), (10, "{}"), (11, '{"cut'), (12, None)]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    for name in ("checkpoint-100.bak", "checkpoint-7-old", "checkpoint-"):  # a user's copies
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    args = train_sft.SFTArguments(output_dir=str(tmp_path), use_cpu=True, resume_from_checkpoint="True")
    assert checkpoint_to_resume(args) == str(tmp_path / "checkpoint-10")
    args.output_dir = str(tmp_path / "new")
    assert checkpoint_to_resume(args) is None


def test_a_run_goes_on_with_the_base_that_it_started_from(tmp_path):
    args = train_sft.SFTArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    check_base("models/a", checkpoint)  # nothing is known of that run
    note_base(args, "models/a")
    check_base("models/a", checkpoint)
    check_base("./models/a/", checkpoint)
    check_base("models/b", None)  # starts anew
    with pytest.raises(UserError, match="--base_model models/b: .*started from models/a; name that one"):
        check_base("models/b", checkpoint)


def test_processes_on_the_cpu_find_one_another(monkeypatch):
    """Without being told of the CPU, each would train alone and write over the other."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = SimpleNamespace(use_cpu=False, bf16=None, fp16=False)
    settle_hardware(args)
    assert not args.use_cpu
    monkeypatch.setenv("LOCAL_RANK", "1")
    settle_hardware(args)
    assert args.use_cpu
    assert not args.bf16


def test_one_process_in_place_of_several_is_refused(monkeypatch):
    """`accelerate launch --num_processes 2` starts one where there is no GPU, at half the batch that was meant."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    args = SimpleNamespace(use_cpu=True, bf16=None, fp16=False)
    settle_hardware(args)  # one was asked for
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="--multi_gpu --num_processes 2"):
        settle_hardware(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    settle_hardware(args)
