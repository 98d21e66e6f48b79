"""The stages behind a claims file, their order, and the driver that runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reporting_worlds import write_answers

from cropvlm.cli import UserError
from reporting.claims import read_claims
from reporting.plan import Stage, chosen, hours_left, measured_rates, only_command, stages

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

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
    script, *flags = stages(PAPER)[name].command[1:]
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


def test_hours_come_from_this_machines_meta_files(tmp_path):
    write_answers(tmp_path / "a_answers.json", ["x"] * 10, "rows", answerer="m")  # 10 rows in 2 s
    rates = measured_rates(tmp_path)
    assert rates == {("generate_final_answers.py", "m"): 5}
    command = ("python3", "generate_final_answers.py", "--vqa_model_path", "m")
    assert hours_left(Stage("a", command, (tmp_path / "gone",), rows=36000), rates) == pytest.approx(2)
    assert hours_left(Stage("a", command, (tmp_path,), rows=36000), rates) == 0  # done
    assert hours_left(Stage("a", ("x",), (tmp_path / "gone",), hours=3), rates) == 3
    assert hours_left(Stage("a", ("x",), (tmp_path / "gone",)), rates) is None


def made(name: str, code: int = 0, needs: tuple[str, ...] = ()) -> Stage:
    """A stage that notes its name and its GPU, and leaves a file."""
    program = f"import sys, pathlib; pathlib.Path({name!r}).touch(); print({name!r}); open('log', 'a').write({name!r} + ' ' + sys.argv[-1] + chr(10)); sys.exit({code})"  # noqa: E501
    return Stage(name, (sys.executable, "-c", program), (Path(name),), needs)


def test_a_failed_stage_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    from reproduce import Scheduler

    monkeypatch.chdir(tmp_path)
    Path("done").touch()
    items = [made("done"), made("a", 1), made("b", needs=("a",)), made("c", needs=("b",)), made("d", 3, ("done",))]
    scheduler = Scheduler({stage.name: stage for stage in items}, [4])
    scheduler.run()
    assert Path("log").read_text().split("\n")[:-1] == ["a 4", "d 4"]  # 3 is complete, with failures named
    assert (scheduler.failed, scheduler.left_out) == (["a"], ["b", "c"])


def test_two_gpus_share_the_stages_in_order(tmp_path, monkeypatch):
    from reproduce import Scheduler

    monkeypatch.chdir(tmp_path)
    items = [made("a"), made("b"), made("c", needs=("a", "b")), made("d", needs=("c",))]
    scheduler = Scheduler({stage.name: stage for stage in items}, [0, 1])
    scheduler.run()
    order = [line.split()[0] for line in Path("log").read_text().splitlines()]
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["c", "d"]
    assert not scheduler.failed


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
    assert "stages are done" in done.stdout.splitlines()[-1]


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
