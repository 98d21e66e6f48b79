"""The configuration files, and values that training cannot use."""

import sys
from pathlib import Path

import pytest

import train_grpo
import train_sft
from cropvlm.cli import UserError
from cropvlm.training.arguments import PolicyArguments, parse

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
