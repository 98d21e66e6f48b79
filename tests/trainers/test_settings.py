"""Flags and configuration files: what is taken, what is refused, and what --help lists."""

import os
import re
import sys

import pytest
from processes import REPO

import train_grpo
import train_sft
from cropvlm.errors import UserError
from cropvlm.trainers.settings import PolicyArguments, parse

CONFIGS = REPO / "scripts" / "configs"
HEAVY = ("datasets", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "cropvlm.modeling")
SFT = (PolicyArguments, train_sft.SFTArguments)
GRPO = (train_grpo.GRPOPolicyArguments, train_grpo.GRPOArguments)


@pytest.mark.parametrize("longest_edge", [512, 1024, 2048])
@pytest.mark.parametrize(("stage", "types"), [("sft", SFT), ("grpo", GRPO)])
def test_configs_are_the_defaults_but_for_the_size(stage, types, longest_edge, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"train_{stage}.py", "--use_cpu", "True"])
    plain_policy, plain_args = parse(types)
    sys.argv += ["--config", str(CONFIGS / f"{stage}_{longest_edge}.yaml")]
    policy, args = parse(types)
    assert args.output_dir == f"models/{stage}_{longest_edge}"
    base = "HuggingFaceTB/SmolVLM-256M-Instruct" if stage == "sft" else f"models/sft_{longest_edge}"
    assert vars(policy) == vars(plain_policy) | {"longest_edge": longest_edge, "base_model": base}
    names = set(types[1].__annotations__) - {"output_dir"}
    assert {name: getattr(args, name) for name in names} == {name: getattr(plain_args, name) for name in names}


@pytest.mark.parametrize(
    ("types", "flag", "value", "expected"),
    [
        (GRPO, "--vqa_longest_edge", "0", "at least 2"),
        (SFT, "--lora_dropout", "1.0", "less than 1"),
        (SFT, "--save_steps", "0.0", "more than 0"),
        (SFT, "--learning_rate", "nan", "a finite number"),
        (SFT, "--seed", str(2**32), "at most"),
        (SFT, "--remove_unused_columns", "True", "leave it out"),
        (GRPO, "--report_to", "foo", "none, all or what is installed: .*tensorboard"),
        (SFT, "--max_length", "8", "would cut its image tokens"),
        (GRPO, "--rollout_batch_size", "4", ""),
        (SFT, "--max_steps", "0", "at least 1"),
        (SFT, "--dataset_path", "", "'': the value is empty"),  # as left by a shell variable that is not set
        (SFT, "--config", "", "'': the value is empty"),
    ],
)
def test_values_that_cannot_be_trained_with(types, flag, value, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", flag, value, "--use_cpu", "True"])
    with pytest.raises(UserError, match=f"{flag} {value}.*{expected}"):
        parse(types)


def parse_yaml(text, types, tmp_path, monkeypatch, *flags):
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["train.py", "--use_cpu", "True", f"--config={tmp_path / 'c.yaml'}", *flags])
    return parse(types)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("longest_edge: 64.0", "--longest_edge.*invalid int value: '64.0'"),
        ("seed: [1, 2]", "unrecognized arguments: 2"),
        ("dataset_path: ''", "dataset_path is empty"),
        ("dataset: a", "unknown setting dataset"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_setting_of_another_type_in_a_config_is_refused(line, expected, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=rf"{expected}[\s\S]*; correct {tmp_path / 'c.yaml'}$"):
        parse_yaml(line, SFT, tmp_path, monkeypatch)


def test_what_a_config_may_hold(tmp_path, monkeypatch):
    text = "vqa_longest_edge: null\nprocessor: null\nuse_lora: false\nlearning_rate: 5.0e-6\nmax_samples: 8\n"
    text += "lr_scheduler_kwargs: {num_cycles: 1}\nreward_weights: [1, 0.5]\nbf16: null\nenv: {CROPVLM_X: 1}\nbeta: 1\n"
    monkeypatch.setenv("CROPVLM_X", "0")
    policy, args = parse_yaml(text, GRPO, tmp_path, monkeypatch, "--beta", "0.5")  # before the config's
    assert (policy.vqa_longest_edge, policy.processor, policy.use_lora, policy.max_samples) == (None, None, False, 8)
    assert args.beta == 0.5
    assert (args.learning_rate, args.reward_weights, args.lr_scheduler_kwargs) == (5e-6, [1, 0.5], {"num_cycles": 1})
    assert os.environ["CROPVLM_X"] == "1"


def test_the_released_warmup_ratio(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--use_cpu", "True", "--warmup_ratio", "0.1"])
    assert parse(SFT)[1].warmup_steps == 0.1
    sys.argv += ["--warmup_steps", "5"]
    with pytest.raises(UserError, match="--warmup_ratio 0.1: .*leave one out"):
        parse(SFT)


@pytest.mark.parametrize(("script", "types"), [(train_sft, SFT), (train_grpo, GRPO)])
def test_help_is_this_projects_and_help_all_is_trls_too(script, types, monkeypatch, capsys):
    helps = {}
    for flag in ("--help", "--help_all"):
        monkeypatch.setattr(sys, "argv", ["train.py", flag])
        with pytest.raises(SystemExit, match="0"):
            parse(types, script.__doc__)
        helps[flag] = capsys.readouterr().out
    shown = {flag: set(re.findall(r"^  --(\w+)", text, re.M)) for flag, text in helps.items()}
    assert helps["--help"].count("\n") < 80
    own = {name for each in types for name in each.__annotations__} | {"config", "help_all", "eval_dataset_path"}
    assert own <= shown["--help"] < shown["--help_all"]
    assert "weight_decay" in shown["--help_all"] - shown["--help"]
    assert "(default: 0.03)" in helps["--help"]
