"""The configuration files, which checkpoint a run goes on from, and processes on the CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_grpo
import train_sft
from cropvlm.arguments import PolicyArguments, checkpoint_to_resume, parse, settle_hardware
from cropvlm.cli import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "scripts" / "configs"
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


@pytest.mark.parametrize("flag", ["--longest_edge", "--lora_r", "--lora_alpha"])
def test_sizes_that_are_none(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_sft.py", flag, "0", "--use_cpu", "True"])
    with pytest.raises(ValueError, match=f"{flag} 0: expected at least 1"):
        parse(SFT)


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    for step, state in [(9, "{}"), (10, "{}"), (11, '{"cut'), (12, None)]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    args = train_sft.SFTArguments(output_dir=str(tmp_path), use_cpu=True, resume_from_checkpoint="True")
    assert checkpoint_to_resume(args) == str(tmp_path / "checkpoint-10")
    args.output_dir = str(tmp_path / "new")
    assert checkpoint_to_resume(args) is None


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
