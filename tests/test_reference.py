"""The published values: the released experiment's, the EvalAI scorer's and the `anls` package's."""

import json
import os
from pathlib import Path

import pytest

from cropvlm.boxes import expand_bbox, parse_teacher_bbox
from cropvlm.metrics import anls, most_common_answer, official_vqa_accuracy, vqa_accuracy

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "reference" / "cases.json"


@pytest.fixture(scope="module")
def cases():
    path = Path(os.environ.get("CROPVLM_REFERENCE_CASES", DEFAULT))
    if not path.is_file():
        pytest.skip(f"no reference cases at {path}; $CROPVLM_REFERENCE_CASES names another file")
    return json.loads(path.read_text(encoding="utf-8"))


def assert_all(cases, values, expected):
    """Compare whole lists: one differing case is shown with its input."""
    differing = [(case, value) for case, value in zip(cases, values, strict=True) if value != expected(case)]
    assert cases
    assert not differing


def test_expand_bbox(cases):
    cases = cases["expand_bbox"]
    keys = ("bbox_px", "width", "height", "area_multiplier")
    values = [list(expand_bbox(*(case[key] for key in keys))) for case in cases]
    assert_all(cases, values, lambda case: case["bbox_pct"])


@pytest.mark.parametrize(
    ("name", "metric"), [("paper", vqa_accuracy), ("official", official_vqa_accuracy), ("anls", anls)]
)
def test_scores(cases, name, metric):
    cases = cases["vqa"]
    values = [metric(case["prediction"], case["answers"]) for case in cases]
    assert_all(cases, values, lambda case: pytest.approx(case[name], abs=1e-12))


def test_validity_reward(cases):
    from cropvlm.rewards import validity_reward

    cases = cases["valid_box_reward"]
    values = validity_reward(completions=[case["completion"] for case in cases])
    assert_all(cases, values, lambda case: case["reward"])


def test_parse_teacher_bbox(cases):
    cases = cases["teacher_response"]
    values = [parse_teacher_bbox(case["response"]) for case in cases]
    assert_all(cases, values, lambda case: case["bbox_px"] and tuple(case["bbox_px"]))


def test_most_common_answer(cases):
    cases = cases["most_common_answer"]
    values = [most_common_answer(case["answers"]) for case in cases]
    assert_all(cases, values, lambda case: case["answer"])
