"""generate_final_answers.py --controls: one more answer file for each, and the gain of a true box by them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import load_from_disk
from processes import REPO
from steps import write_boxes

import generate_final_answers
import vqa_accuracy
from cropvlm.boxes import format_bbox
from cropvlm.runs.controls import CONTROLS
from cropvlm.runs.predictions import read_meta, read_predictions, write_predictions

SMOLVLM = REPO / "miniature" / "models" / "smolvlm"


@pytest.fixture
def script(call):
    """Run step 5 in this process with the miniature's reader; its exit code."""
    defaults = ["--vqa_model_path", SMOLVLM, "--longest_edge", 64, "--max_new_tokens", 8, "--gpu", -1]
    return lambda *flags: call(generate_final_answers.main, *defaults, *flags)


@pytest.fixture
def boxes(tmp_path, tiny_world) -> Path:
    true = map(format_bbox, load_from_disk(str(tiny_world))["test"]["true_bbox"])
    return write_boxes(tmp_path / "predictions" / "world_bbox.json", tiny_world, list(true))


def answers_file(name: str) -> Path:
    return Path("predictions") / f"{name}_answers.json"


def test_each_control_is_one_more_file_and_the_others_stay_as_they_are(script, call, boxes, capsys):
    assert script("--bbox", boxes, "--max_samples", 11, "--name", "alone") == 0
    assert script("--bbox", boxes, "--max_samples", 11, "--controls", "all") == 0
    for mode in ("base", "cropvlm"):
        assert answers_file(f"world_{mode}").read_bytes() == answers_file(f"alone_{mode}").read_bytes()
        assert "control" not in read_meta(answers_file(f"world_{mode}"))["settings"]
    crop = read_meta(answers_file("world_cropvlm"))
    for control in CONTROLS:
        meta = read_meta(answers_file(f"world_{control}"))
        assert meta["settings"]["control"] == control
        assert meta["settings"]["boxes"] == crop["settings"]["boxes"]  # the cropper's, by which the two are paired
        assert [part["type"] for part in meta["settings"]["prompt"][0]["content"]].count("image") == (
            1 if control == "crop_alone" else 2
        )
    # Two questions about each image: the last of 11 rows has no partner.
    ids = [record["question_id"] for record in read_predictions(boxes)]
    meta = read_meta(answers_file("world_partner"))
    assert meta["left_out"] == [ids[10]]
    assert (meta["counts"]["rows"], meta["counts"]["left_out"]) == (10, 1)
    assert [record["question_id"] for record in read_predictions(answers_file("world_partner"))] == ids[:10]
    capsys.readouterr()
    assert call(vqa_accuracy.main, "--predictions_file", answers_file("world_partner")) == 0
    assert "over 10 questions" in capsys.readouterr().out


def test_a_mistake_is_one_line(script, boxes, monkeypatch, capsys):
    assert script("--modes", "base", "--controls", "elsewhere") == 2
    assert "--controls need the boxes: give --bbox FILE" in capsys.readouterr().err.splitlines()[-1]
    unknown = SimpleNamespace(seen_size=lambda size: None)
    monkeypatch.setattr(generate_final_answers, "answerer", lambda args: unknown)
    assert script("--bbox", boxes, "--controls", "no_detail") == 2
    assert "--controls no_detail: the size at which the model sees images is unknown" in capsys.readouterr().err


def test_where_no_crop_is_needed_the_answer_is_that_without_it(script, boxes, tiny_world):
    records = read_predictions(boxes)
    for record in records[:5]:
        record["answer"] = "Not needed."
    records[5]["answer"] = "somewhere"
    write_predictions(boxes, records, read_meta(boxes))
    assert script("--bbox", boxes, "--controls", "full_twice") == 0
    base, crop, full_twice = (read_predictions(answers_file(f"world_{m}")) for m in ("base", "cropvlm", "full_twice"))
    assert crop[:5] == full_twice[:5] == base[:5]
    assert crop[5:] != base[5:]
    counts = read_meta(answers_file("world_cropvlm"))["counts"]
    assert (counts["invalid_boxes"], counts["not_needed"]) == (1, 5)
    assert "not_needed" not in read_meta(answers_file("world_base"))["counts"]
