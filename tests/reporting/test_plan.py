"""The stages behind a claims file, their order and hours, and the plan that is printed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from processes import REPO
from reporting_worlds import write_answers, write_boxes, write_rows

from cropvlm.runs.provenance import model_checksum, saved_rows
from reporting.claims_file import each_run, read_claims
from reporting.plan import Stage, chosen, hours, only_command, stages, unfinished
from reporting.rates import ANSWERS, BOXES, GRPO, PUBLISHED, SFT, TEACHER, Work, measured_rates, rate_of

PAPER = read_claims(REPO / "scripts" / "claims" / "paper.yaml")


def test_what_a_stage_needs_comes_before_it():
    seen = set()
    for name, stage in stages([PAPER]).items():
        assert set(stage.needs) <= seen, name
        seen.add(name)
    assert {f"train/{kind}_{size}" for kind in ("sft", "grpo") for size in (512, 1024, 2048)} <= seen
    assert "train/grpo_accuracy_1024" in seen
    # Six benchmarks, without a crop, with GRPO's and with the teacher's.
    assert len([name for name in seen if name.startswith("answers/qwen_448/")]) == 18


PLANNED = {
    "paper": ("boxes/grpo_1024/vstar", "answers/qwen_448/grpo_2048/docvqa"),
    "need": ("data/mixture_need", "train/need_2", "boxes/need_2/vstar", "answers/qwen_448/need_2/vstar"),
}


@pytest.mark.parametrize("claims", PLANNED)
def test_commands_have_their_scripts_flags_and_no_file_is_written_twice(claims, monkeypatch):
    from test_readme import parse

    monkeypatch.chdir(REPO)
    made = stages([read_claims(REPO / f"scripts/claims/{claims}.yaml")])
    for name in PLANNED[claims]:
        assert (REPO / made[name].command[0]).is_file()
        parse(list(made[name].command), monkeypatch)
    commands = [stage.command for stage in made.values()]
    assert all((REPO / c[c.index("--config") + 1]).is_file() for c in commands if "--config" in c)
    outputs = [path for stage in made.values() for path in stage.outputs]
    assert len(outputs) == len(set(outputs))
    if claims == "need":  # rows are labelled, and the need is recorded
        assert "--label_need" in made["data/mixture_need"].command
        assert "--need" in made["boxes/need_2/vstar"].command
        # A threshold needs no answers of its own: those with every crop and those without any have them all.
        assert "answers/qwen_448/none/vstar" in made
        assert not any("--need_threshold" in command for command in commands)


def test_only_picks_a_stage_and_what_it_needs():
    picked = chosen(stages([PAPER]), ["answers/qwen_448/grpo_2048/vstar"])
    before = ["data/mixture", "train/sft_2048", "train/grpo_2048", "boxes/grpo_2048/vstar"]
    assert list(picked) == [*before, "answers/qwen_448/grpo_2048/vstar"]
    assert chosen(stages([PAPER]), ["nothing*"]) == {}
    # The command of a setting picks its stages.
    of_vstar = next(item.columns[0] for item in PAPER.items if item.columns[0][0].benchmark.name == "vstar")
    assert only_command(of_vstar) == "python3 scripts/reproduce.py 0 --only answers/qwen_448/grpo_2048/vstar"
    mean = [setting for (setting,) in PAPER.items[0].columns]
    assert only_command(mean) == "python3 scripts/reproduce.py 0 --only 'answers/llava_336/none/*'"
    names = [f"answers/llava_336/none/{setting.benchmark.name}" for setting in mean]
    assert list(chosen(stages([PAPER]), ["answers/llava_336/none/*"])) == names


def test_hours_come_from_this_machines_meta_files_first(tmp_path):
    write_answers(tmp_path / "a_answers.json", ["x"] * 10, "rows", answerer="m")  # 10 rows in 2 s, at 64 px
    # Of two files the slower counts.
    write_answers(tmp_path / "b_answers.json", ["x"] * 100, "rows", answerer="m", boxes=["[0, 0, 9, 9]."] * 100)
    measured = measured_rates(tmp_path)
    work = Work(ANSWERS, "m", 64)
    assert measured == {work: 5}
    stage = Stage("a", ("x",), (tmp_path / "gone",), work=work, rows=36000)
    assert hours(stage, measured) == (pytest.approx(2), "measured here")
    assert hours(replace(stage, rows=None), measured) == (None, "")
    # Four answers to each question: the crop and three controls.
    four = replace(stage, outputs=(tmp_path / "gone",) * 4, boxes=tmp_path / "boxes.json")
    assert hours(four, measured) == (pytest.approx(8), "measured here")


SMOLVLM = "HuggingFaceTB/SmolVLM-256M-Instruct"
RATES = {
    "at a measured size": (Work(BOXES, SMOLVLM, 512), 62, ""),
    # 1024 px have (1024^2 - 512^2) / (2048^2 - 512^2) = 1/5 of the way: 0.8 / 62 + 0.2 / 18 s.
    "between two": (Work(BOXES, SMOLVLM, 1024), 1 / (0.8 / 62 + 0.2 / 18), ", from 512 and 2048 px"),
    "below: the nearest": (Work(BOXES, SMOLVLM, 64), 62, ", from 512 and 2048 px"),
    "the model's own size: the largest": (Work(SFT, "models/sft", None), 2.8, ""),
    "another answerer": (Work(ANSWERS, "llava", 336), 4.9, ", by the rate of a 7B model"),
    "the teacher": (Work(TEACHER, "the teacher"), 4.9, ""),
}


@pytest.mark.parametrize(("work", "rate", "source"), RATES.values(), ids=RATES)
def test_estimates_say_what_they_are_from(work, rate, source):
    assert rate_of(work, {}) == (pytest.approx(rate), f"one H200{source}")


def test_the_published_rates_are_those_of_the_benchmarks_readme():
    text = (REPO / "benchmarks" / "README.md").read_text()
    for kind, name in {BOXES: "boxes", ANSWERS: "both answers", SFT: "SFT"}.items():
        for size, rate in PUBLISHED[kind].items():
            assert f"| {name} {size} px | {rate:g} rows/s |" in text
    for size, rate in PUBLISHED[GRPO].items():
        seconds = float(re.search(rf"\| GRPO step {size} px, 16 prompts \| ([\d.]+) s \|", text)[1])
        assert rate == pytest.approx(16 / seconds, abs=0.01)


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A function from more of a cropper, and of the file, to the stages of its boxes and answers."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()

    def staged(cropper: dict, **more: dict) -> dict[str, Stage]:
        content = {
            "title": "t",
            "benchmarks": {"rows": {"path": "rows"}},
            "answerers": {"a": {"title": "A", "model": "vlm"}},
            "croppers": {"c": {"title": "C", "stage": "SFT", "model": "model"} | cropper},
            "also": [{"answerer": "a", "cropper": "c"}],
        }
        Path("claims.yaml").write_text(yaml.safe_dump(content | more))
        return stages([read_claims("claims.yaml")], Path("p"))

    return staged


def test_a_stage_is_done_while_its_inputs_are_what_its_meta_file_says(staged):
    Path("model/model.safetensors").write_text("first")
    made, texts = staged({}), ["[0, 0, 9, 9]."] * 3
    boxes, answers = made["boxes/c/rows"], made["answers/a/c/rows"]
    write_boxes(boxes.outputs[0], texts, "model", "rows", {"checksum": model_checksum("model")})
    write_answers(answers.outputs[0], ["x"] * 3, "rows", boxes=texts)
    assert unfinished(made) == {}
    Path("model/model.safetensors").write_text("trained anew")
    assert boxes.changed == "model"
    assert list(unfinished(made)) == ["boxes/c/rows", "answers/a/c/rows"]
    write_boxes(boxes.outputs[0], ["[1, 1, 9, 9]."] * 3, "model", "rows")
    assert (list(unfinished(made)), answers.changed) == (["answers/a/c/rows"], "p/boxes/c/rows_bbox.json")


def test_a_training_whose_rows_were_made_anew_is_not_done(staged):
    write_rows(Path("datasets/t_sft"), 3)
    Path("model/adapter_model.safetensors").touch()
    record = {"training": {"saved_rows": saved_rows("datasets/t_sft")}, "contents": {"base_model": None}}
    Path("model/run.json").write_text(json.dumps(record))
    data = {"t": {"sources": ["rows"], "output": "datasets/t"}}
    stage = staged({"trained_on": "t", "training": "x"}, data=data)["train/c"]
    assert stage.done
    write_rows(Path("datasets/t_sft"), 3, question=["else?"] * 3)
    assert stage.changed == "datasets/t_sft"


def drive(*flags: str, cwd: Path = REPO) -> subprocess.CompletedProcess:
    call = [sys.executable, str(REPO / "scripts" / "reproduce.py"), *flags]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=cwd)


def test_plan_prints_every_command_and_runs_nothing(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = drive("0", "--plan")
    assert done.returncode == 0
    assert "left out without $OPENAI_API_KEY: answers/gpt_512/" in done.stdout
    listed = [name for name, stage in stages([PAPER]).items() if not stage.key]
    assert [line.split(":")[0] for line in done.stdout.splitlines()[1:-1:2]] == listed
    assert re.fullmatch(r"\d+ of 184 stages are done; \d+\.\d h left on one GPU.*", done.stdout.splitlines()[-1])
    assert "train/sft_2048: 6.2 h (one H200)\n" in done.stdout  # 62,042 rows at 2.8 rows/s
    assert "--controls full_twice no_detail elsewhere" in done.stdout
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert "; 191 requests\n" in drive("0", "--plan", "--only", "answers/gpt_512/grpo_2048/vstar").stdout


def test_every_seed_trains_every_cropper_of_its_own(monkeypatch):
    made = stages(each_run(REPO / "scripts/claims/paper.yaml", seeds=3))
    one, two = made["train/grpo_1024"].command, made["train/grpo_1024_seed43"].command
    assert "--seed" not in one
    assert two[two.index("--seed") + 1] == "43"
    assert two[two.index("--base_model") + 1] == "models/sft_1024_mixture_seed43"
    assert made["train/grpo_1024_seed44"].needs == ("data/mixture", "train/sft_1024_seed44")
    assert len([name for name in made if name.startswith("answers/qwen_448/none/")]) == 6  # without a crop once


@pytest.mark.parametrize("flags", [[], ["x"], ["0", "--only", "nothing"], ["0", "--claims", "gone.yaml"]], ids=str)
def test_mistakes_are_one_line(flags):
    done = drive(*flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_every_stage_on_the_miniature(tiny_world, tiny_smolvlm, tiny_qwen, tmp_path):
    """Data, SFT, GRPO, boxes, answers with and without the crop, report; then all is done."""
    for script in (*REPO.glob("*.py"), REPO / "cropvlm", REPO / "reporting", REPO / "scripts"):
        (tmp_path / script.name).symlink_to(script)
    small = "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_steps 1 --report_to none"
    Path(tmp_path / "tiny.yaml").write_text(f"""
title: tiny
benchmarks: {{{tiny_world.name}: {{split: test, rows: 12, path: {tiny_world}}}}}
data:
  tiny:
    {{sources: [{tiny_world}], output: datasets/tiny, flags: --split train --model_path {tiny_qwen} --batch_size 8}}
answerers: {{small: {{title: small, model: {tiny_smolvlm}, longest_edge: 64}}}}
croppers:
  sft: &sft
    title: SFT
    stage: SFT
    model: models/sft
    longest_edge: 64
    trained_on: tiny
    training: --base_model {tiny_smolvlm} --longest_edge 64 --lora_r 4 --lora_alpha 8 {small}
  grpo:
    <<: *sft
    stage: GRPO
    model: models/grpo
    base: sft
    training: --vqa_model {tiny_smolvlm} --longest_edge 64 --vqa_longest_edge 64
      --num_generations 2 --max_completion_length 8 {small}
claims:
  - says: a random model reads nothing
    score: {{answerer: small, cropper: grpo}}
    over: {{answerer: small, cropper: none}}
    at_most: 100
""")
    flags = ["0", "--claims", "tiny.yaml", "--predictions", "predictions"]
    done = drive(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (verdict,) = json.loads((tmp_path / "predictions" / "report.json").read_text())["verdicts"]
    assert verdict["verdict"] == "reproduced"
    assert "6 of 6 stages are done; 0.0 h left" in drive(*flags, "--plan", cwd=tmp_path).stdout
