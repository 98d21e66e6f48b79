"""The stages behind a claims file, their order, and the driver that runs them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from reporting_worlds import write_answers

from cropvlm.errors import UserError
from reporting.claims import read_claims
from reporting.plan import Stage, chosen, hours_left, only_command, stages
from reporting.rates import (
    ANSWERS,
    BOXES,
    GRPO,
    SFT,
    TEACHER,
    Rate,
    Work,
    measured_rates,
    published_rates,
    rate_of,
)

ROOT = Path(__file__).resolve().parents[2]

PAPER = read_claims(ROOT / "scripts" / "claims" / "paper.yaml")


def test_what_a_stage_needs_comes_before_it():
    seen = set()
    for name, stage in stages(PAPER).items():
        assert set(stage.needs) <= seen, name
        seen.add(name)
    assert {f"train/{kind}_{size}" for kind in ("sft", "grpo") for size in (512, 1024, 2048)} <= seen
    assert "train/grpo_accuracy_1024" in seen
    # Seven benchmarks, with and without a crop.
    assert len([name for name in seen if name.startswith("answers/qwen_448/")]) == 14


@pytest.mark.parametrize("name", ["boxes/grpo_1024/vstar", "answers/qwen_448/grpo_2048/docvqa"])
def test_commands_have_their_scripts_flags(name, monkeypatch):
    from test_readme import parse

    monkeypatch.chdir(ROOT)
    script, *flags = stages(PAPER)[name].command
    assert (ROOT / script).is_file()
    parse([script, *flags], monkeypatch)
    with pytest.raises(UserError):
        parse([script, *flags, "--no_such_flag"], monkeypatch)


def test_training_names_configurations_that_are_there():
    commands = [stage.command for name, stage in stages(PAPER).items() if name.startswith("train/")]
    configs = [command[command.index("--config") + 1] for command in commands]
    assert len(configs) == 7
    assert all((ROOT / config).is_file() for config in configs)


def test_only_picks_a_stage_and_what_it_needs():
    picked = chosen(stages(PAPER), ["answers/qwen_448/grpo_2048/vstar"])
    assert list(picked) == [
        "data/mixture",
        "train/sft_2048",
        "train/grpo_2048",
        "boxes/grpo_2048/vstar",
        "answers/qwen_448/grpo_2048/vstar",
    ]
    assert chosen(stages(PAPER), ["nothing*"]) == {}


def test_the_command_of_a_setting_picks_its_stages():
    of_vstar, *_ = [figure.settings for figure in PAPER.figures if figure.settings[0].benchmark.name == "vstar"]
    assert only_command(of_vstar) == "python3 scripts/reproduce.py 0 --only answers/qwen_448/grpo_2048/vstar"
    mean = PAPER.figures[0].settings
    assert only_command(mean) == "python3 scripts/reproduce.py 0 --only 'answers/llava_336/none/*'"
    assert list(chosen(stages(PAPER), ["answers/llava_336/none/*"])) == [
        f"answers/llava_336/none/{s.benchmark.name}" for s in mean
    ]  # noqa: E501


def test_hours_come_from_this_machines_meta_files_first(tmp_path):
    write_answers(tmp_path / "a_answers.json", ["x"] * 10, "rows", answerer="m")  # 10 rows in 2 s, at 64 px
    measured = measured_rates(tmp_path)
    work = Work(ANSWERS, "m", 64)
    assert measured == {work: Rate(5, "measured here")}
    stage = Stage("a", ("x",), (tmp_path / "gone",), work=work, rows=36000)
    assert hours_left(stage, measured, {}) == (pytest.approx(2), "measured here")
    assert hours_left(replace(stage, outputs=(tmp_path,)), measured, {}) == (0, "done")
    assert hours_left(replace(stage, rows=None), measured, {}) == (None, "")
    published = {(TEACHER, None): 10.0}
    at_another_size = replace(stage, work=replace(work, size=128))
    assert hours_left(at_another_size, measured, published) == (
        pytest.approx(1),
        "benchmarks/README.md; nearest figure: teacher 7B",
    )


def test_of_two_files_the_slower_counts(tmp_path):
    write_answers(tmp_path / "a_answers.json", ["x"] * 10, "rows", answerer="m")
    write_answers(tmp_path / "b_answers.json", ["x"] * 100, "rows", answerer="m", boxes=["[0, 0, 9, 9]."] * 100)
    assert measured_rates(tmp_path) == {Work(ANSWERS, "m", 64): Rate(5, "measured here")}


TABLE = """\
| date | command | tiles |
| work | ours | other way | ratio |
|---|---|---|---|
| boxes 512 px | 62 rows/s | one at a time | 40 |
| boxes 2048 px | 1 rows/s | 0.5 rows/s, one at a time | 2.00 |
| GRPO step 512 px, 16 prompts | 9.4 s | 19.9 s, unmodified TRL | 2.1 |
| SFT 512 px | not done in 180 s | | |
| teacher 7B | 4.9 rows/s | one at a time | 12.6 |
text in between
| boxes 2048 px | 20 rows/s | 0.5 rows/s, one at a time | 40.00 |
"""


def test_a_gpus_rates_are_read_from_the_tables_of_the_readme(tmp_path):
    (tmp_path / "README.md").write_text(TABLE)
    assert published_rates(tmp_path / "README.md") == {
        (BOXES, 512): 62,
        (BOXES, 2048): 20,  # the later one
        (GRPO, 512): pytest.approx(16 / 9.4),
        (TEACHER, None): 4.9,
    }


def test_the_projects_own_readme_has_every_kind_of_work():
    assert published_rates().keys() == {
        *((kind, size) for kind in (BOXES, ANSWERS, GRPO, SFT) for size in (512, 2048)),
        (TEACHER, None),
    }


SMOLVLM, TEACHERS = "HuggingFaceTB/SmolVLM-256M-Instruct", {(TEACHER, None): 5.0}
TWO_SIZES = {(BOXES, 512): 50.0, (BOXES, 2048): 10.0}  # 0.02 and 0.1 s a row


@pytest.mark.parametrize(
    ("work", "published", "rate", "source"),
    [
        (Work(BOXES, "models/grpo", 512), TWO_SIZES, 50, ""),
        # 1024 px has (4 - 1) / (16 - 1) = a fifth of the way in pixels: 0.02 + 0.08 / 5 = 0.036 s.
        (Work(BOXES, "models/grpo", 1024), TWO_SIZES, 1 / 0.036, "; interpolated between 512 and 2048 px"),
        (Work(BOXES, "models/grpo", 384), TWO_SIZES, 50, "; nearest figure: 512 px"),
        (Work(BOXES, "models/grpo", 4096), TWO_SIZES, 10, "; nearest figure: 2048 px"),
        (Work(BOXES, "models/grpo"), TWO_SIZES, 10, "; nearest figure: 2048 px"),
        (Work(ANSWERS, SMOLVLM, 512), {(ANSWERS, 512): 80.0}, 80, "; for both answers"),
        (Work(ANSWERS, "llava-hf/llava-1.5-7b-hf"), TEACHERS, 5, "; nearest figure: teacher 7B"),
        (Work(ANSWERS, "Qwen/Qwen2.5-VL-7B-Instruct", 448), TEACHERS, 5, "; nearest figure: teacher 7B"),
        (
            Work(ANSWERS, "gpt-4.1-nano", 512, server=True),
            TEACHERS,
            5,
            "; nearest figure: teacher 7B; the model is behind a server",
        ),
        (
            Work(GRPO, "models/grpo", 512, reward="accuracy"),
            {(GRPO, 512): 2.0},
            2,
            "; with the likelihood reward",
        ),
    ],
)
def test_estimates_say_what_they_are_from(work, published, rate, source):
    assert rate_of(work, {}, published) == Rate(pytest.approx(rate), f"benchmarks/README.md{source}")


def test_without_a_figure_of_its_kind_nothing_is_estimated():
    assert rate_of(Work(SFT, "models/sft", 512), {}, TWO_SIZES) is None


def drive(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    call = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *flags]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=cwd)


def test_plan_prints_every_command_and_runs_nothing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = drive("0", "--plan")
    assert done.returncode == 0
    assert "left out without $OPENAI_API_KEY: answers/gpt_512/" in done.stdout
    listed = [name for name, stage in stages(PAPER).items() if not stage.key]
    assert [line.split(":")[0] for line in done.stdout.splitlines()[1:-1:2]] == listed
    assert re.fullmatch(r"\d+ of 155 stages are done; \d+\.\d h left on one GPU", done.stdout.splitlines()[-1])
    assert "train/sft_2048: 6.2 h (benchmarks/README.md)\n" in done.stdout  # 62,042 rows at 2.8 rows/s


@pytest.mark.parametrize("flags", [[], ["x"], ["0", "--only", "nothing"], ["0", "--claims", "gone.yaml"]], ids=str)
def test_mistakes_are_one_line(flags):
    done = drive(*flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_every_stage_on_the_miniature(tiny_world, tiny_smolvlm, tiny_qwen, tmp_path):
    """Data, SFT, GRPO, boxes, answers with and without the crop, report; then all is done."""
    for script in (*ROOT.glob("*.py"), ROOT / "cropvlm", ROOT / "reporting", ROOT / "scripts"):
        (tmp_path / script.name).symlink_to(script)
    small = "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_steps 1 --report_to none"
    content = {
        "title": "tiny",
        "benchmarks": {tiny_world.name: {"split": "test", "rows": 12, "path": str(tiny_world)}},
        "data": {
            "tiny": {
                "sources": [str(tiny_world)],
                "output": "datasets/tiny",
                "flags": f"--split train --model_path {tiny_qwen} --batch_size 8",
            }
        },
        "answerers": {"small": {"title": "small", "model": str(tiny_smolvlm), "longest_edge": 64}},
        "croppers": {
            "sft": {
                "title": "SFT",
                "stage": "SFT",
                "model": "models/sft",
                "longest_edge": 64,
                "trained_on": "tiny",
                "training": f"--base_model {tiny_smolvlm} --longest_edge 64 --lora_r 4 --lora_alpha 8 {small}",
            },
            "grpo": {
                "title": "GRPO",
                "stage": "GRPO",
                "model": "models/grpo",
                "longest_edge": 64,
                "trained_on": "tiny",
                "base": "sft",
                "training": f"--vqa_model {tiny_smolvlm} --longest_edge 64 --vqa_longest_edge 64 "
                f"--num_generations 2 --max_completion_length 8 {small}",
            },
        },
        "claims": [
            {
                "says": "a random model reads nothing",
                "score": {"answerer": "small", "cropper": "grpo"},
                "over": {"answerer": "small", "cropper": "none"},
                "at_most": 100,
            }
        ],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    flags = ["0", "--claims", "tiny.yaml", "--predictions", "predictions"]
    done = drive(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (verdict,) = json.loads((tmp_path / "predictions" / "report.json").read_text())["verdicts"]
    assert verdict["verdict"] == "reproduced"
    assert "6 of 6 stages are done; 0.0 h left" in drive(*flags, "--plan", cwd=tmp_path).stdout
