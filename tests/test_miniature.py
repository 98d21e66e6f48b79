"""The miniature's world, its committed checkpoints and its report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cropvlm.boxes import format_bbox
from cropvlm.data.rows import load_rows
from cropvlm.metrics import vqa_accuracy
from cropvlm.modeling import load_model, load_processor
from cropvlm.runs.predictions import read_predictions, write_predictions
from miniature import known_boxes as boxes
from miniature import table as report
from miniature.letters import tell_apart
from miniature.pretraining.families import FAMILIES
from miniature.world import draw_row, write_world

COMMITTED = Path(report.__file__).parent / "models"


def test_rows_come_from_the_seed_and_splits_share_no_image_and_no_id(tiny_world):
    assert draw_row("3-train-0", 2) == draw_row("3-train-0", 2)
    assert draw_row("3-train-0") != draw_row("3-test-0")
    train, test = (load_rows(str(tiny_world), split) for split in ("train", "test"))
    pictures = [{row["image"]["bytes"] for row in split} for split in (train, test)]
    assert not pictures[0] & pictures[1]
    assert not set(train["question_id"]) & set(test["question_id"])
    assert all(len(answers) == 10 for answers in [*train["answers"], *test["answers"]])


def test_half_of_the_questions_of_the_world_of_need_are_about_a_large_placard(tmp_path):
    write_world(tmp_path / "world", train=40, test=4, need=True)
    rows = load_rows(str(tmp_path / "world"), "train")
    widths = [x2 - x1 for x1, _, x2, _ in rows["true_bbox"]]  # in percent, rounded outwards: up to 2 more
    assert all(55 <= width <= 82 for width in widths[::2])
    others = ["small" if 20 <= width <= 32 else "middle" if 35 <= width <= 52 else width for width in widths[1::2]]
    assert set(others) == {"small", "middle"}
    pictures = [row["image"]["bytes"] for row in rows]
    assert pictures[::2] == pictures[1::2]  # both of an image: the question decides
    assert all(len(set(pair)) == 2 for pair in zip(rows["question"][::2], rows["question"][1::2], strict=True))


def test_letters_that_look_alike_are_told_apart():
    embeddings = torch.eye(6)
    embeddings[2:5] = torch.tensor([1, 1, 1, 1, 1, 1.0]) + 0.01 * torch.eye(6)[:3]  # all in one direction
    before = embeddings.clone()
    tell_apart(embeddings, [1, 2, 3, 3])
    assert (embeddings[[0, 1, 4, 5]] == before[[0, 1, 4, 5]]).all()  # one has no twin, or is not asked for
    moves = embeddings[2:4] - before[2:4]
    assert moves.norm(dim=1).tolist() == pytest.approx([1, 1])  # as long as those without a twin
    assert torch.nn.functional.cosine_similarity(*embeddings[2:4], dim=0) < 0.99


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
    blind = {"accuracy": 0.0, "valid_boxes": 0.0, "mean_area_pct": 100.0, "questions": 12}
    assert summaries["no crop"] == blind | {"setting": "no crop"}
    scores = [vqa_accuracy(answers[0], answers) for answers in rows["answers"]]
    assert summaries["true box"]["accuracy"] == pytest.approx(100 * sum(scores) / 12, abs=0.01)
    assert summaries["true box"]["valid_boxes"] == 100
    assert summaries["true box"]["mean_area_pct"] == pytest.approx(summaries["GRPO"]["mean_area_pct"])
    printed = capsys.readouterr().out
    assert "| teacher box | 100.0 | 1.00 |" in printed
    assert printed == (tmp_path / "mini_results.md").read_text()
    with Image.open(tmp_path / "mini_boxes.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    for color in ((0, 255, 0), (255, 0, 0), (0, 0, 255)):  # the three boxes and the frames of their crops
        assert (pixels == color).all(1).sum() > 12 * report.THUMB


def test_how_boxes_lie_to_placards_by_hand():
    placards = [[10, 20, 30, 40]] * 4
    # The placard; one twice as wide and as high; its left half; no box, so the whole image: 5 times its sides.
    boxes = ["[10, 20, 30, 40].", "[0, 10, 40, 50].", "[10, 20, 20, 40].", "none"]
    assert report.placard_fit(boxes, placards) == (0.75, 1.5)  # longer sides 1, 2, 1, 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_committed_checkpoint_is_a_whole_model_that_the_command_makes(family):
    folder = COMMITTED / family
    built, processor = FAMILIES[family].build()
    model = load_model(str(folder), device="cpu")
    shapes = [{name: weight.shape for name, weight in each.state_dict().items()} for each in (built, model)]
    assert shapes[0] == shapes[1]
    assert type(model) is type(built)
    assert all(weight.isfinite().all() for weight in model.parameters())
    committed = load_processor(str(folder))
    assert type(committed) is type(processor)
    assert committed.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert committed.chat_template == processor.chat_template
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert len(sizes) > 3
    assert sum(sizes) <= 4 * 2**20
