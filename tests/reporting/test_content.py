"""Croppers and answers by what was recorded of them: what is comparable, and several trainings."""

import json
from pathlib import Path

import pytest
import yaml
from reporting_worlds import FIGURE, NONE, SFT, right, write_answers, write_boxes, write_rows

from cropvlm.runs.provenance import model_checksum, saved_rows
from reporting.claims_file import each_run
from reporting.results import read_folder
from reporting.verdicts import Evidence, judge, what_would_decide

TRAINED = """
title: a test
benchmarks: {rows: {rows: 100}}
answerers: {small: {title: small, model: vlm, longest_edge: 64, max_new_tokens: 8, dtype: float32}}
data: {texts: {sources: [texts], output: datasets/texts, rows: 50}}
croppers:
  sft: {title: SFT, stage: SFT, model: models/sft, longest_edge: 64, trained_on: texts, training: ""}
  grpo:
    {title: GRPO, stage: GRPO, model: models/grpo, longest_edge: 64, trained_on: texts, training: --learning_rate 3e-4,
     base: sft, reward: likelihood}
"""
TEXTS = {"name": "texts", "path": "texts", "split": "train", "commit": None}
RECORD = {
    **{"checksum": "c", "stage": "GRPO", "reward": "likelihood", "longest_edge": 64, "sources": [TEXTS], "rows": 50},
    **{"seed": 42, "steps": 10, "planned_steps": 10, "base": "models/sft"},
}
SFT_RECORD = RECORD | {"stage": "SFT", "reward": None, "base": "vlm", "settings": {"max_steps": -1}}
RECORD |= {"base_training": SFT_RECORD, "settings": {"max_steps": -1, "learning_rate": 3e-4, "beta": 0.01}}
BOXES = ["[0, 0, 50, 50]."] * 100
WITH_GRPO = FIGURE | {"cropper": "grpo"}


def judge_grpo(world, record: dict, model: str = "models/grpo", of_boxes: dict | None = None, head=TRAINED, **used):
    """Return verdict and reason of a figure with GRPO's boxes. of_boxes, used: their settings and those of answers."""
    write_boxes(Path("p/a_bbox.json"), BOXES, model, "rows", record, **(of_boxes or {}))
    write_answers(Path("p/a_answers.json"), right(50), "rows", boxes=BOXES, settings=used)
    (judged,) = world({}, head, figures=[WITH_GRPO])
    return judged.verdict, judged.reason


OTHERS = {  # what a training recorded -> why it is not that of the claims file
    "as the claims file says": ({}, ""),
    "reward": ({"reward": "accuracy"}, "cropper's reward accuracy instead of likelihood"),
    "stage": ({"stage": "SFT"}, "cropper's stage SFT instead of GRPO"),
    "rows": ({"rows": 10}, "rows of its training 10 instead of 50"),
    "steps short of planned": ({"steps": 3}, "steps of its training 3 instead of 10"),
    "size": ({"longest_edge": 128}, "cropper trained at 128 instead of 64"),
    "a price that the other lacks": ({"need": {"crop_cost": 0.5}}, "cropper's crop_cost 0.5 instead of None"),
    "base": ({"base": "other"}, "base other instead of models/sft"),
    "other data": ({"sources": [TEXTS | {"name": "else"}]}, "cropper trained on else instead of texts"),
    "rows that trained it": (
        {"sources": [TEXTS, TEXTS | {"name": "rows", "split": None}]},
        "cropper trained on rows, texts instead of texts; the cropper was trained on it",
    ),
    "rows that trained its base": (
        {"base_training": SFT_RECORD | {"sources": [TEXTS, TEXTS | {"name": "rows"}]}},
        "in its base: cropper trained on rows, texts instead of texts; the cropper was trained on it",
    ),
    "its rows by another name": ({"seen_rows": 7}, "the cropper was trained on 7 of its rows"),
    "its choice": ({"chosen_on": {"name": "rows", "split": None}}, "the cropper's best checkpoint was chosen on it"),
    "a few steps, all as planned": (
        {"settings": {"max_steps": 10, "learning_rate": 1e-2}},
        "its training's max_steps 10 instead of -1.0; its training's learning_rate 0.01 instead of 0.0003",
    ),
}


@pytest.mark.parametrize(("change", "reason"), OTHERS.values(), ids=OTHERS)
def test_a_cropper_is_what_its_training_recorded(world, change, reason):
    assert judge_grpo(world, RECORD | change) == ("not comparable" if reason else "reproduced", reason)


def test_a_copied_folder_is_the_same_cropper_and_one_without_a_record_is_not(world):
    assert judge_grpo(world, RECORD, "elsewhere/copy") == ("reproduced", "")
    assert judge_grpo(world, {"checksum": "c"})[1] == "nothing is recorded of the cropper's training"


def test_a_cropper_whose_training_set_was_made_anew_is_not_comparable(world):
    write_rows(Path("datasets/texts_grpo"), 3)
    record = RECORD | {"saved_rows": saved_rows("datasets/texts_grpo")}
    assert judge_grpo(world, record) == ("reproduced", "")
    write_rows(Path("datasets/texts_grpo"), 3, question=["else?"] * 3)
    changed = "datasets/texts_grpo has changed since the cropper was trained on it"
    assert judge_grpo(world, record) == ("not comparable", changed)


def test_boxes_of_a_cropper_that_was_trained_anew_are_not_comparable(world):
    weights = Path("models/grpo/adapter_model.safetensors")
    weights.parent.mkdir(parents=True)
    weights.write_text("first")
    record = RECORD | {"checksum": model_checksum("models/grpo")}
    assert judge_grpo(world, record) == ("reproduced", "")
    weights.write_text("again")
    assert judge_grpo(world, record) == ("not comparable", "models/grpo has changed since it wrote the boxes")


@pytest.mark.parametrize(
    ("of_boxes", "of_answers", "reason"),
    [
        ({}, {"max_new_tokens": 64}, "answerer's max_new_tokens 64 instead of 8"),
        ({}, {"dtype": "torch.bfloat16"}, "answerer's dtype bfloat16 instead of float32"),
        ({}, {"prompt": "Hm?"}, "another prompt of the answerer"),
        ({}, {"min_pixels": 5}, "answerer's min pixels 5 instead of 9"),
        ({}, {"image_fit": "crop"}, "answerer's image fit crop instead of pad"),
        ({"max_new_tokens": 99}, {}, "cropper's max_new_tokens 99 instead of 32"),
        ({"longest_edge": 32}, {}, "cropper's longest edge 32 instead of 64"),
        ({"prompt": "Hm?"}, {}, "another prompt of the cropper"),
    ],
)
def test_other_settings_are_not_comparable(world, of_boxes, of_answers, reason):
    used = {"max_new_tokens": 8, "dtype": "torch.float32", "min_pixels": 9} | of_answers
    head = TRAINED.replace("dtype: float32", "dtype: float32, min_pixels: 9")
    assert judge_grpo(world, RECORD, of_boxes=of_boxes, head=head, **used) == ("not comparable", reason)


def test_a_claim_compares_answers_of_the_same_settings(world):
    write_answers(Path("p/none_answers.json"), right(10), "rows", settings={"max_new_tokens": 8})
    texts = ["[1, 1, 50, 50]."] * 100
    write_boxes(Path("p/sft_bbox.json"), texts, "models/sft", "rows")
    write_answers(Path("p/sft_answers.json"), right(50), "rows", boxes=texts, settings={"max_new_tokens": 64})
    (judged,) = world({}, claims=[{"says": "it", "score": SFT, "over": NONE}])
    assert (judged.verdict, judged.reason) == ("not comparable", "answers with max_new_tokens 64 and 8 are compared")


@pytest.mark.parametrize(("name", "reason"), [("vlm-2026-01-01", ""), ("other", "the server replied as other")])
def test_a_server_replies_as_the_model_that_was_asked(world, name, reason):
    models = {"answerer": "vlm", "server": "http://localhost", "replied": [name]}
    write_answers(Path("p/none_answers.json"), right(50), "rows", models=models)
    (judged,) = world({}, figures=[FIGURE])
    assert (judged.verdict, judged.reason) == ("not comparable" if reason else "reproduced", reason)


def test_a_control_is_a_setting_of_its_own(world):
    write_boxes(Path("p/sft_bbox.json"), BOXES, "models/sft", "rows")
    control = {"mode": "elsewhere", "control": "elsewhere"}
    for name, number, settings in (("crop", 60, {}), ("elsewhere", 20, control)):
        write_answers(Path(f"p/{name}_answers.json"), right(number), "rows", boxes=BOXES, settings=settings)
    claim = {"says": "it", "score": SFT, "over": SFT | {"control": "elsewhere"}}
    (judged,) = world({}, claims=[claim])
    assert (judged.verdict, judged.ours) == ("reproduced", pytest.approx(40))


def test_several_trainings(world):
    """Two trainings, of which 40 and 60 of 100 are right, the same 40 in both."""
    for seed, number in ((42, 40), (43, 60)):
        model = "models/grpo" if seed == 42 else f"models/grpo_seed{seed}"
        texts = [f"[0, 0, 50, {seed}]."] * 100
        write_boxes(Path(f"p/{seed}_bbox.json"), texts, model, "rows", RECORD | {"seed": seed})
        write_answers(Path(f"p/{seed}_answers.json"), right(number), "rows", boxes=texts)
    head = TRAINED.replace("base: sft, ", "")
    Path("claims.yaml").write_text(head + yaml.safe_dump({"figures": [WITH_GRPO | {"margin": 23}]}))
    runs = each_run(Path("claims.yaml"), seeds=2)
    (judged,) = judge(runs, read_folder("p"), lambda _: "")
    assert (judged.verdict, judged.ours, judged.runs) == ("reproduced", pytest.approx(50), 2)
    assert judged.spread == pytest.approx(200**0.5)  # of 40 and 60: sqrt((10^2 + 10^2) / 1)
    # Of two trainings a sample has the lower one twice with a chance of 1/4: then it lies sqrt(2) * 10 below 50, and by
    # the questions (their mean of both: 40 ones, 20 halves; half the difference: 20 halves) a deviation of
    # sqrt(100 * (0.2 + 2 * 0.04) / 100) = 0.53 of 10 points around that. 2.5% of all is 10% of those: 1.28 deviations.
    half = 200**0.5 + 1.28 * 5.3
    assert judged.interval_95 == pytest.approx((50 - half, 50 + half), abs=1)
    (alone,) = judge(runs[:1], read_folder("p"), lambda _: "")
    assert (alone.ours, alone.spread, alone.runs) == (pytest.approx(40), None, 1)
    assert alone.interval_95 == pytest.approx((40 - 9.6, 40 + 9.6), abs=1)  # 1.96 * sqrt(40 * 60 / 100)
    write_answers(Path("p/42_answers.json"), right(100), "rows", boxes=["[0, 0, 50, 42]."] * 100)
    assert judge(runs, read_folder("p"), lambda _: "")[0].interval_95[1] == 100  # not 80 + sqrt(2) * 20
    (of_three,) = judge([*runs, *each_run(Path("claims.yaml"), seeds=3)[2:]], read_folder("p"), lambda _: "")
    assert (of_three.ours, of_three.over) == (pytest.approx(80), "2 of 3 trainings")


def test_what_no_training_changes_is_there_once(world):
    write_answers(Path("p/none_answers.json"), right(50), "rows", settings={"max_new_tokens": 8})
    Path("claims.yaml").write_text(TRAINED + yaml.safe_dump({"figures": [FIGURE]}))
    (judged,) = judge(each_run(Path("claims.yaml"), seeds=3), read_folder("p"), lambda _: "")
    assert (judged.runs, judged.spread, judged.over) == (1, None, "")


def test_boxes_that_failed_are_not_comparable(world):
    assert judge_grpo(world, RECORD)[0] == "reproduced"
    meta = json.loads(Path("p/a_bbox.meta.json").read_text())
    failed = [{"question_id": i, "reason": "the server was down"} for i in range(30)]
    Path("p/a_bbox.meta.json").write_text(json.dumps(meta | {"failed": failed}))
    (judged,) = world({}, TRAINED, figures=[WITH_GRPO])
    assert (judged.verdict, judged.reason) == ("not comparable", "30 boxes failed")


def test_when_trainings_differ_most_more_of_them_would_decide():
    evidence = Evidence(50.0, (27.4, 72.6), 20.0, runs=3, questions=10_000)
    # Three trainings that vary by 20 give 50 +- 22.6; for +- 10 it takes 3 * (22.6 / 10)^2 = 15.4.
    assert what_would_decide(10, 22.64, evidence).startswith("about 16 trainings would decide; there are 3")
    assert "no number" in what_would_decide(0.01, 23, evidence)
