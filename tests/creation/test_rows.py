"""create_dataset.py: what both parts hold, growth by hand, what is left out; the teacher here and behind a server."""

import json

import pytest
from fake_server import open_url
from made_sets import RESPONSES, content, save_rows
from PIL import Image as PILImage

from cropvlm import modeling


def test_halves_of_the_tiny_world(script, tmp_path, tiny_world):
    assert script() == 0
    source = content(tiny_world / "train")
    sft, grpo = content(tmp_path / "made_sft"), content(tmp_path / "made_grpo")
    assert [row["question_id"] for row in sft + grpo] == [row["question_id"] for row in source]
    assert len(sft) == 12  # 24 // 2
    # Encoded images go through untouched, and so do all columns of the source.
    assert [{key: row[key] for key in source[0]} for row in sft + grpo] == source
    assert set(sft[0]) - set(source[0]) == {"bbox", "teacher_response", "source"}
    assert set(grpo[0]) - set(source[0]) == {"source"}
    assert {row["source"] for row in sft + grpo} == {"miniature"}
    assert all(len(row["bbox"]) == 4 and isinstance(row["teacher_response"], str) for row in sft)


def test_unreadable_images_and_rows_without_references_are_left_out(script, tmp_path, tiny_world, caplog):
    rows = content(tiny_world / "train")[:8]
    for i in (2, 6):  # the header stands, the pixels are cut off
        rows[i]["image"]["bytes"] = rows[i]["image"]["bytes"][:-500]
    rows[5]["answers"] = []  # nothing to reward boxes by
    assert script("--dataset_path", str(save_rows(tmp_path / "broken", rows))) == 3
    kept = [[row["question_id"] for row in content(tmp_path / f"made_{part}")] for part in ("sft", "grpo")]
    assert kept == [[rows[i]["question_id"] for i in part] for part in ((0, 1, 3), (4, 7))]
    assert all(f"{{'broken': 1}} ({rows[i]['question_id']})" in caplog.text for i in (2, 5, 6))
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["left_out_of_grpo"] == {"no references": 1, "unreadable images": 1}
    assert [row["question_id"] for row in report["left_out"]] == [rows[2]["question_id"]]


def test_rows_without_references_alone(script, asked, tmp_path, tiny_world, capfd):
    rows = content(tiny_world / "train")[:4]
    for row in rows:
        row["answers"] = []
    folder = str(save_rows(tmp_path / "bare", rows))
    assert script("--dataset_path", folder) == 2
    assert "box them all with --sft_share 1.0" in capfd.readouterr().err
    assert script("--dataset_path", folder, "--sft_share", "1.0") == 0
    assert len(content(tmp_path / "made_sft")) == 4


@pytest.mark.parametrize("ids", [None, [5, 5, 6, 7]])
def test_a_concatenated_set_without_ids_of_its_own(script, asked, tmp_path, tiny_world, ids, caplog):
    rows = [{key: row[key] for key in ("image", "question", "answers")} for row in content(tiny_world / "train")[:4]]
    if ids:
        rows = [row | {"question_id": question_id} for row, question_id in zip(rows, ids, strict=True)]
    folder = str(save_rows(tmp_path / "concatenated", rows))
    assert script("--dataset_path", folder) == 0
    assert "row numbers" in caplog.text
    assert asked == [0, 1]
    asked.clear()
    assert script("--dataset_path", folder) == 0  # the ids are the same at every run
    assert asked == []
    made = [row for part in ("sft", "grpo") for row in content(tmp_path / f"made_{part}")]
    assert [row["question_id"] for row in made] == [0, 1, 2, 3]
    assert script("--dataset_path", folder, f"{tiny_world}=8", "--output_path", str(tmp_path / "mixed")) == 0
    mixed = content(tmp_path / "mixed_sft")
    assert [row["question_id"] for row in mixed[:2]] == ["concatenated/0", "concatenated/1"]
    assert [row["source"] for row in mixed] == ["concatenated"] * 2 + ["miniature"] * 4


def test_boxes_grow_by_area_and_report_and_card_lie_beside_them(script, asked, tmp_path):
    assert script("--max_samples", "10") == 0
    rows = content(tmp_path / "made_sft")
    assert [(row["teacher_response"], row["bbox"]) for row in rows] == RESPONSES
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["responses"] == {"box": 4, "no list": 1}
    # The areas of RESPONSES sorted, at indices 1 to 4
    assert report["cut_points"] == pytest.approx([0.01, 0.04, 0.09, 1])
    assert report["rows_by_fifth"] == [1, 1, 1, 1, 1]
    with PILImage.open(tmp_path / "made_sft/teacher_report.png") as picture:
        assert picture.size == (1440, 240)  # one line of five tiles of 240, and room for a sixth
    card = (tmp_path / "made_sft/README.md").read_text()
    assert "| miniature | miniature (a local folder) | see the source | 5 | 5 |" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "made_grpo/README.md").read_text() == card


def test_attention_reaches_the_model_and_the_journal(script, tmp_path, monkeypatch):
    asked_for, load = [], modeling.load_model
    note = lambda path, **options: asked_for.append(options["attn_implementation"]) or load(path, **options)  # noqa: E731
    monkeypatch.setattr(modeling, "load_model", note)
    assert script("--max_samples", "2") == 0
    assert script("--max_samples", "4", "--attn_implementation", "eager") == 2  # of a journal without
    assert script("--max_samples", "2", "--attn_implementation", "eager", "--output_path", f"{tmp_path}/eager") == 0
    assert asked_for == [None, "eager"]


def test_a_server_is_the_teacher(script, tmp_path, server, hurried):
    def lower_right_quarter(*_) -> str:
        width, height = sizes()[-1]
        return json.dumps({"bbox_2d": [width // 2, height // 2, width, height]})

    def sizes() -> list:
        return [open_url(body["messages"][0]["content"][0]["image_url"]["url"]).size for body in server.bodies]

    server.react = lower_right_quarter
    flags = ["--api_base", server.url, "--api_model", "qwen", "--api_concurrency", "1"]
    flags += ["--max_pixels", "100000", "--max_samples", "6", "--growth", "1", "1", "1", "1", "1"]
    assert script(*flags) == 0
    assert len(sizes()) == 3
    # The server gets images that Qwen2.5-VL's resizing keeps, and its boxes are read in their pixels.
    assert all(width % 28 == height % 28 == 0 and width * height <= 100000 for width, height in sizes())
    assert [row["bbox"] for row in content(tmp_path / "made_sft")] == [[50, 50, 100, 100]] * 3
    assert "Teacher: qwen, greedy" in (tmp_path / "made_sft/README.md").read_text()
