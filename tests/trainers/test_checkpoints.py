"""Which checkpoint a run resumes from, and what makes two runs the same."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

import train_grpo
import train_sft
from cropvlm.errors import UserError
from cropvlm.trainers import checkpoints
from cropvlm.trainers.checkpoints import (
    RECORD,
    add_rows,
    describe_run,
    differences,
    named_checkpoint,
    newest_checkpoint,
    read_record,
    write_record,
)
from cropvlm.trainers.settings import PolicyArguments
from cropvlm.trainers.train import is_finished

RUN = {"settings": {"seed": 1, "base_model": "models/a"}, "contents": {"base_model": None}}
RUN |= {"training": {}, "seen_rows": ""}
OTHER = RUN | {"settings": {"seed": 2, "base_model": "models/a"}}


def write_checkpoint(folder: Path, step: int, run: dict | None = RUN) -> Path:
    """A checkpoint of two files, one of them in a folder; run None: without its record."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ref").mkdir(parents=True)
    for name in ("optimizer.pt", "ref/adapter_model.safetensors"):
        (checkpoint / name).write_text(f"{name} of step {step}")
    if run is not None:
        write_record(checkpoint, run, [Path("optimizer.pt"), Path("ref/adapter_model.safetensors")])
    return checkpoint


def test_weights_that_are_no_longer_finite_end_the_run(tmp_path):
    args = train_sft.SFTArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    recorder, model = checkpoints.CheckpointRecorder(RUN, args), torch.nn.Linear(2, 1)
    step = partial(recorder.on_step_end, args, SimpleNamespace(global_step=7), None, model=model)
    step()
    model.weight.data[0, 1] = torch.nan
    with pytest.raises(UserError, match="step 7 has left weights that are not finite"):
        step()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", None),  # missing
        ("ref/adapter_model.safetensors", b"\0" * 39),  # of the same length
        (RECORD, None),
        *((RECORD, text) for text in (b"{", b"null", b"[" * 100_000, b'{"files": [], "settings": {}, "contents": {}}')),
    ],
    ids=range(7),
)
def test_a_checkpoint_is_whole_or_not(name, content, tmp_path):
    checkpoint = write_checkpoint(tmp_path, 7)
    assert read_record(checkpoint)["settings"] == RUN["settings"]
    file = checkpoint / name
    if content is None:
        file.unlink()
    else:
        assert name == RECORD or len(content) == file.stat().st_size
        file.write_bytes(content)
    assert read_record(checkpoint) is None


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    write_checkpoint(tmp_path, 9)
    expected = write_checkpoint(tmp_path, 10)
    write_checkpoint(tmp_path, 11, None)
    (write_checkpoint(tmp_path, 100) / "optimizer.pt").unlink()
    for name in ("checkpoint-200.bak", "checkpoint-7-old", "checkpoint-"):  # a user's copies
        shutil.copytree(expected, tmp_path / name)
    path, record = newest_checkpoint(str(tmp_path), RUN)
    assert (path, record["settings"]) == (expected, RUN["settings"])
    assert caplog.text.count("is damaged, incomplete") == 2
    assert f"resuming from {expected}" in caplog.text


def test_without_a_whole_checkpoint_training_starts_anew_and_says_so(tmp_path, caplog):
    (write_checkpoint(tmp_path, 2) / "optimizer.pt").unlink()
    assert newest_checkpoint(str(tmp_path), RUN) is None
    assert f"no whole checkpoint in {tmp_path}: starting anew" in caplog.text


def test_checkpoints_of_another_run_are_refused_or_passed_over(tmp_path, caplog):
    mine = write_checkpoint(tmp_path, 3)
    theirs = write_checkpoint(tmp_path, 8, OTHER)
    assert newest_checkpoint(str(tmp_path), RUN)[0] == mine
    assert f"{theirs} comes from a run with other settings (seed 2 there, 1 here)" in caplog.text
    assert named_checkpoint(mine, RUN)[0] == mine
    with pytest.raises(UserError, match="seed 2 there, 1 here"):
        named_checkpoint(theirs, RUN)
    with pytest.raises(UserError, match="no whole checkpoint"):
        named_checkpoint(tmp_path, RUN)
    shutil.rmtree(mine)
    with pytest.raises(UserError, match=r"checkpoint-8 comes from .* \(seed 2 there, 1 here\)"):
        newest_checkpoint(str(tmp_path), RUN)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 8}, [2, 4, 5]),  # 2 steps a generation
        ({"gradient_accumulation_steps": 4, "num_iterations": 3}, [3, 5]),  # 3, the last step of all besides
        ({"save_only_model": True}, []),
    ],
)
def test_steps_after_which_a_run_can_resume(options, steps, tmp_path):
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    assert [step for step in range(1, 6) if checkpoints.can_resume(args, step, 5)] == steps


def test_an_older_checkpoint_goes_once_the_newer_one_is_recorded(tmp_path, monkeypatch):
    """With `--save_total_limit 1`; one that nobody can resume from pushes none out, and goes with the next."""
    options = {"save_total_limit": 1, "num_iterations": 2}  # two steps are taken with each generation
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    recorder = checkpoints.CheckpointRecorder(RUN, args)
    assert args.save_total_limit is None  # else transformers would delete them before

    write_checkpoint(tmp_path, "1-kept", None)  # a user's own copy

    def save(step):
        write_checkpoint(tmp_path, step, None)
        recorder.on_save(args, SimpleNamespace(global_step=step, max_steps=9, best_model_checkpoint=None), None)
        return sorted(path.name[11:] for path in tmp_path.glob("checkpoint-*"))

    assert [save(step) for step in (2, 3, 4)] == [["1-kept", "2"], ["1-kept", "2", "3"], ["1-kept", "4"]]
    monkeypatch.setattr(checkpoints, "write_record", None)
    with pytest.raises(TypeError):  # as if killed
        save(6)
    assert newest_checkpoint(str(tmp_path), RUN)[0].name == "checkpoint-4"


def describe(types, tmp_path, policy=None, **options):
    args = types[1](output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    return describe_run(args, types[0](**(policy or {})))


describe_sft = partial(describe, (PolicyArguments, train_sft.SFTArguments))
describe_grpo = partial(describe, (train_grpo.GRPOPolicyArguments, train_grpo.GRPOArguments))


SFT = {"seed": 7, "data_seed": 7, "max_steps": 3, "num_train_epochs": 2, "warmup_steps": 5, "learning_rate": 1e-7}
SFT |= {"lr_scheduler_type": "linear", "bf16": True, "optim": "adamw_torch", "max_grad_norm": 0.5}
SFT |= {"weight_decay": 0.1, "dataloader_drop_last": True}
GRPO = {"beta": 0.1, "temperature": 1, "num_generations": 3, "top_k": 0, "max_completion_length": 8}
GRPO |= {"disable_dropout": False, "reward_weights": [1, 2]}
SFT_POLICY = dict.fromkeys(("longest_edge", "lora_r", "lora_alpha", "max_samples"), 64)
SFT_POLICY |= dict.fromkeys(("split", "processor", "base_model", "vqa_model"), "another")
SFT_POLICY |= {"lora_dropout": 0, "use_lora": False}
GRPO_POLICY = {"reward": "accuracy", "vqa_longest_edge": 64, "crop_cost": 0.5}


@pytest.mark.parametrize(
    ("describe", "changed", "policy"), [(describe_sft, SFT, SFT_POLICY), (describe_grpo, GRPO, GRPO_POLICY)]
)
def test_what_determines_the_weights_has_to_be_the_same(describe, changed, policy, tmp_path):
    found = differences(describe(tmp_path), describe(tmp_path, policy, **changed))
    assert [text.split()[0] for text in found] == sorted(changed | policy)


def test_what_leaves_the_weights_as_they_are_may_change(tmp_path):
    """Not even the rows' path is compared: they are, when they are loaded."""
    changed = {"logging_steps": 5, "save_steps": 7, "save_total_limit": 1, "disable_tqdm": True, "run_name": "another"}
    changed |= {"dataloader_num_workers": 2, "gradient_checkpointing": True, "resume_from_checkpoint": "True"}
    changed |= {"push_to_hub": True, "hub_model_id": "me/cropper", "hub_token": "hf_x", "per_device_eval_batch_size": 3}
    policy = {"merge": True, "dataset_path": "moved"}
    assert differences(describe_sft(tmp_path), describe_sft(tmp_path / "elsewhere", policy, **changed)) == []


def test_a_step_may_be_divided_but_not_changed(tmp_path):
    """But for a loss of TRL's that is a mean over each part."""
    sizes = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 4}
    remedies = {"micro_batch_size": 24, "gradient_checkpointing": True, "dataloader_num_workers": 0}
    resumed = describe_grpo(tmp_path, {"reward_batch_size": 1}, **sizes, **remedies)  # as an error says
    assert differences(describe_grpo(tmp_path), resumed) == []
    found = differences(describe_sft(tmp_path), describe_sft(tmp_path, gradient_accumulation_steps=2))
    assert found == ["rows_a_step 16 there, 32 here"]
    one, other = (describe_grpo(tmp_path, loss_type="bnpo", **more) for more in ({}, sizes))
    assert [text.split()[0] for text in differences(one, other)] == [*sorted(sizes)]


def test_what_the_environment_decides_has_to_be_the_same(tmp_path, monkeypatch):
    """A launcher that leaves all as it is makes no other run."""
    before = describe_sft(tmp_path)
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "no")
    assert differences(before, describe_sft(tmp_path)) == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # flags are silent, the model computes in bfloat16
    assert [text.split()[0] for text in differences(before, describe_sft(tmp_path))] == ["environment"]


def test_a_description_holds_no_token_and_survives_json(tmp_path):
    run = describe_grpo(tmp_path, hub_token="hf_SECRET", push_to_hub=True)
    assert "hf_SECRET" not in json.dumps(run)
    assert differences(json.loads(json.dumps(run)), run) == []
    newer = run | {"settings": run["settings"] | {"a_new_option": None}}  # as of another version of the libraries
    assert differences(run, newer) == []
    plain, priced = ({"settings": settings, "contents": {}} for settings in ({}, {"crop_cost": 0.5}))
    assert differences(plain, priced) == ["crop_cost None there, 0.5 here"]  # recorded only where it is given


def test_a_run_whose_rows_have_changed_is_another_run(tmp_path):
    data, output = tmp_path / "data", tmp_path / "model"
    rows = datasets.Dataset.from_dict({"question_id": [1], "question": ["What?"]})
    rows.save_to_disk(data)
    args = train_sft.SFTArguments(output_dir=str(output), report_to="none", use_cpu=True, resume_from_checkpoint="True")
    policy = PolicyArguments(dataset_path=str(data))
    run = describe_run(args, policy)
    output.mkdir()
    assert not is_finished(args, policy, run)
    write_record(output, add_rows(run, str(data), rows), [])
    assert is_finished(args, policy, run)
    policy.dataset_path = str(data.rename(tmp_path / "moved"))
    assert is_finished(args, policy, run)
    rows.map(lambda row: {"question": "Who?"}).save_to_disk(data)
    for path, seen in ((data, "has changed"), (shutil.copytree(data, tmp_path / "other"), "there, .*other' here")):
        policy.dataset_path = str(path)
        with pytest.raises(UserError, match=f"dataset_path .*data' {seen}"):
            is_finished(args, policy, run)


def test_seconds_of_a_training_add_up_over_resumes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    args = train_sft.SFTArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = SimpleNamespace(global_step=3, max_steps=9)
    first = checkpoints.CheckpointRecorder(RUN, args)
    now[0] = 160
    record = first.described(state)
    second = checkpoints.CheckpointRecorder(RUN, args, record)
    now[0] = 165
    assert [each["training"]["seconds"] for each in (record, second.described(state))] == [60, 65]


def test_a_measure_that_chooses_the_best_checkpoint_is_compared_and_told_wherever_the_model_is_used(tmp_path):
    options = {"load_best_model_at_end": True, "eval_dataset_path": "textvqa", "max_steps": 7, "eval_strategy": "steps"}
    options |= {"save_steps": 4, "eval_steps": 2}
    described = describe_sft(tmp_path, **options)
    found = differences(described, describe_sft(tmp_path, **options | {"eval_steps": 4}))
    assert found == ["eval_steps 2 there, 4 here"]
    training = described["training"]
    assert training["chosen_on"] == {"name": "textvqa", "split": None}
    assert (training["settings"]["max_steps"], training["settings"]["lora_r"]) == (7, 128)
    assert "chosen_on" not in describe_sft(tmp_path)["training"]
