"""The miniature's world and its report."""

import json
import sys

import pytest
from PIL import Image

from cropvlm.boxes import format_bbox
from cropvlm.data import load_rows
from cropvlm.predictions import read_predictions, write_predictions
from miniature import boxes, report
from miniature.world import draw_row


def test_the_same_seed_draws_the_same_rows():
    assert draw_row("3-train-0", 2) == draw_row("3-train-0", 2)
    assert draw_row("3-train-0") != draw_row("3-test-0")


def test_the_splits_share_no_image_and_no_id(tiny_world):
    train, test = (load_rows(str(tiny_world), split) for split in ("train", "test"))
    pictures = [{row["image"]["bytes"] for row in split} for split in (train, test)]
    assert not pictures[0] & pictures[1]
    assert not set(train["question_id"]) & set(test["question_id"])
    assert all(len(answers) == 10 for answers in [*train["answers"], *test["answers"]])


def test_the_table_and_the_contact_sheet(tiny_world, tmp_path, monkeypatch, capsys):
    rows = load_rows(str(tiny_world), "test")
    ids = rows["question_id"][:]
    for part in {box for _, box in report.SETTINGS.values() if box}:
        flags = ["--dataset_path", str(tiny_world), "--split", "test", "--column", "true_bbox"]
        monkeypatch.setattr(sys, "argv", ["boxes", *flags, "--output", str(tmp_path / f"mini_{part}.json")])
        boxes.main()
    written = read_predictions(tmp_path / "mini_true_bbox.json")
    assert written[0]["answer"] == format_bbox(rows[0]["true_bbox"])
    for setting, (part, _) in report.SETTINGS.items():
        # With a crop the first reference is answered, without one a dash, which no reference is.
        texts = [row["answers"][0] if "no crop" not in setting else "-" for row in rows]
        records = [{"question_id": i, "answer": text} for i, text in zip(ids, texts, strict=True)]
        write_predictions(tmp_path / f"mini_{part}.json", records, {})

    flags = ["--dataset_path", str(tiny_world), "--name", "mini", "--predictions", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["report", *flags])
    report.main()
    summaries = {summary["setting"]: summary for summary in json.loads((tmp_path / "mini_results.json").read_text())}
    assert list(summaries) == list(report.SETTINGS)
    assert summaries["no crop"] == {
        "setting": "no crop",
        "accuracy": 0.0,
        "valid_boxes": 0.0,
        "mean_area_pct": 100.0,
        "questions": 12,
    }
    assert summaries["true box"]["accuracy"] > 0
    assert summaries["true box"]["valid_boxes"] == 100
    assert summaries["true box"]["mean_area_pct"] == pytest.approx(summaries["GRPO"]["mean_area_pct"])
    # GRPO and SFT have the same answers here: no difference, so the claim that GRPO helps more fails.
    assert "- FAILS: GRPO helps more: +0.0 over SFT" in capsys.readouterr().out
    with Image.open(tmp_path / "mini_boxes.png") as sheet:
        assert sheet.width > 4 * report.THUMB
