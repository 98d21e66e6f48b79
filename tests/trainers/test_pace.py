"""Rows and tokens a second, and the share of a step that waits for images, as both trainers log them."""

import time

import pytest
from trainers import make_grpo_trainer

import train_sft
from cropvlm.trainers import shared_images as sharing
from cropvlm.trainers import training_data as training_rows
from cropvlm.trainers.pace import Pace
from cropvlm.trainers.settings import PolicyArguments
from cropvlm.trainers.trl_overrides import BoxGRPOTrainer


def test_figures_are_of_the_time_that_the_stopwatch_ran(monkeypatch):
    """10 s of 14, 4 of them waiting; then 2 s in which nothing was trained."""
    clock = iter([0.0, 1.0, 5.0, 10.0, 14.0, 16.0]).__next__
    monkeypatch.setattr(time, "perf_counter", clock)
    pace = Pace()
    pace.run(tokens=100)  # at 0
    with pace.waiting():  # 1 to 5
        pace.run(tokens=150)
    pace.rows += 16
    pace.stop()  # 10
    pace.stop()
    assert pace.figures(tokens=400) == {"rows_per_second": 1.6, "tokens_per_second": 30, "waited_for_images": 0.4}
    pace.run(tokens=400)  # 14
    pace.stop()  # 16
    assert pace.figures(tokens=400) == {"rows_per_second": 0, "tokens_per_second": 0, "waited_for_images": 0}


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.4, 0.6, 1.0), (0.0, 0.0, 0.5)])
def test_sft_tells_how_long_it_waits(seconds, least, most, tiny_smolvlm, boxed_world, tmp_path, monkeypatch):
    """4 rows a step, each opened in `seconds` more than usual; a step of this model takes a fraction of a second."""
    read = training_rows.open_image
    monkeypatch.setattr(training_rows, "open_image", lambda source: time.sleep(seconds) or read(source))
    options = {"per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "no", "report_to": "none"}
    args = train_sft.SFTArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    policy = PolicyArguments(base_model=str(tiny_smolvlm), dataset_path=str(boxed_world), longest_edge=64, lora_r=4)
    trainer = train_sft.make_trainer(args, policy)
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 2
    assert all(least <= entry["waited_for_images"] <= most for entry in entries)
    tokens = [entry["num_tokens"] for entry in entries]
    for entry, of_step in zip(entries, (tokens[0], tokens[1] - tokens[0]), strict=True):
        assert entry["tokens_per_second"] / entry["rows_per_second"] == pytest.approx(of_step / 4)


@pytest.mark.parametrize(("seconds", "working"), [(3.0, 0), (0.5, 1.5)])
def test_grpo_reads_images_while_it_works(
    seconds, working, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch
):
    """Two prompts a step, read at once. Of 3 s each step waits what is left of them when it begins; 0.5 s pass beside a
    step of 1.5 s, all but the first.
    """
    read, score = sharing.open_training_image, BoxGRPOTrainer._calculate_rewards
    monkeypatch.setattr(sharing, "open_training_image", lambda *args: time.sleep(seconds) or read(*args))
    monkeypatch.setattr(BoxGRPOTrainer, "_calculate_rewards", lambda *args: time.sleep(working) or score(*args))
    options = {"max_steps": 3, "max_completion_length": 2, "save_strategy": "no", "per_device_train_batch_size": 6}
    options |= {"gradient_accumulation_steps": 1}
    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, **options)
    trainer.train()
    waits = [entry["waited_for_images"] * 2 / entry["rows_per_second"] for entry in logged(trainer)]
    steps = [2 / entry["rows_per_second"] for entry in logged(trainer)]
    assert waits[0] == pytest.approx(seconds, abs=0.7)
    for wait, before in zip(waits[1:], steps, strict=False):
        assert wait == pytest.approx(max(0, seconds - before), abs=0.7)
