"""The published values: the released experiment's, the EvalAI scorer's and the `anls` package's."""

import json
import os
from pathlib import Path

import pytest

from cropvlm.boxes import expand_bbox, parse_teacher_bbox
from cropvlm.metrics import anls, most_common_answer, official_vqa_accuracy, vqa_accuracy
from cropvlm.rewards import validity_reward

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "reference" / "cases.json"


@pytest.fixture(scope="module")
def cases():
    path = Path(os.environ.get("CROPVLM_REFERENCE_CASES", DEFAULT))
    if not path.is_file():
        pytest.skip(f"no reference cases at {path}; $CROPVLM_REFERENCE_CASES names another file")
    return json.loads(path.read_text(encoding="utf-8"))


def grown(case: dict) -> list[int]:
    return list(expand_bbox(*(case[key] for key in ("bbox_px", "width", "height", "area_multiplier"))))


def answers_of(case: dict) -> tuple[str, list[str]]:
    return case["prediction"], case["answers"]


PUBLISHED = {  # part of the file: what is computed of a case, and the name of the published value
    "expand_bbox": (grown, "bbox_pct"),
    "vqa": (lambda case: vqa_accuracy(*answers_of(case)), "paper"),
    "vqa, official": (lambda case: official_vqa_accuracy(*answers_of(case)), "official"),
    "vqa, ANLS": (lambda case: anls(*answers_of(case)), "anls"),
    "valid_box_reward": (lambda case: validity_reward(completions=[case["completion"]])[0], "reward"),
    "teacher_response": (lambda case: list(parse_teacher_bbox(case["response"]) or []) or None, "bbox_px"),
    "most_common_answer": (lambda case: most_common_answer(case["answers"]), "answer"),
}


@pytest.mark.parametrize("part", PUBLISHED)
def test_the_published_values(cases, part):
    compute, name = PUBLISHED[part]
    of_part = cases[part.split(",")[0]]
    values = [(case, compute(case)) for case in of_part]
    assert of_part
    # Whole lists: a case that differs is shown with its input.
    assert [(case, value) for case, value in values if value != pytest.approx(case[name], abs=1e-12)] == []
