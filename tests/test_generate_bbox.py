"""generate_bbox.py: the box file and its meta, resuming after an interruption, mistakes by the user."""

from pathlib import Path

import pytest
import torch
from steps import question_ids, read, save_with_broken_images

import generate_bbox
from cropvlm import generation
from cropvlm.runs.predictions import meta_path


@pytest.fixture
def script(call, tiny_world, lively):
    """Run the script in this process, on 12 rows with a tiny cropper unless told otherwise; its exit code."""
    defaults = ["--model_path", lively["smolvlm"], "--dataset_path", tiny_world, "--split", "test"]
    size = ["--longest_edge", 64, "--max_new_tokens", 8, "--gpu", -1]
    return lambda *flags: call(generate_bbox.main, *defaults, *size, *flags)


@pytest.fixture
def texts(monkeypatch):
    """Let the model write a text for some rows, all 12 by default, without computing it."""

    def write(rows=range(12)):
        monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: ((i, ["[0, 0, 9, 9]."]) for i in rows))

    return write


def test_writes_the_raw_texts_in_data_set_order_with_a_meta(script, tiny_world, lively):
    assert script() == 0
    records = read("predictions/miniature_bbox.json")
    assert [record["question_id"] for record in records] == question_ids(tiny_world)
    assert all(record.keys() == {"question_id", "answer"} for record in records)
    assert len({record["answer"] for record in records}) > 6  # texts of their own, not one for all
    meta = read("predictions/miniature_bbox.meta.json")
    assert (meta["dataset_path"], meta["split"]) == (str(tiny_world), "test")
    assert meta["models"] == {"cropper": str(lively["smolvlm"]), "cropper_base": None}
    assert (meta["settings"]["longest_edge"], meta["settings"]["dtype"]) == (64, "torch.float32")
    assert {"model_files", "questions", "max_new_tokens", "prompt"} <= meta["settings"].keys()
    assert meta["versions"]["torch"] == torch.__version__.split("+")[0]
    # Random weights write no box.
    assert meta["counts"].items() >= {"rows": 12, "invalid_boxes": 12, "failed": 0}.items()
    written = sorted(path.name for path in Path("predictions").iterdir())
    assert written == ["miniature_bbox.json", "miniature_bbox.meta.json"]
    assert script("--max_samples", 5, "--name", "few", "--attn_implementation", "eager") == 0
    assert read("predictions/few_bbox.json") == records[:5]
    few = read("predictions/few_bbox.meta.json")
    assert (few["max_samples"], few["settings"]["attn_implementation"]) == (5, "eager")


def test_counts_boxes_and_their_area():
    answers = [" [0, 0, 50, 50].", "[0, 0, 10, 10]", "[50, 0, 0, 50].", ""]
    records = [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]
    # Areas 25% and 1%; the third is inverted, the fourth empty.
    expected = {"invalid_boxes": 2, "mean_area_pct": 13.0}
    assert generate_bbox.count_boxes(records) == expected
    records[2]["answer"] = "Not needed."  # counted apart
    assert generate_bbox.count_boxes(records) == expected | {"invalid_boxes": 1, "not_needed": 1}


def test_rows_of_another_base_are_not_mixed_in(script, capsys, texts):
    texts([0])
    Path("base").mkdir()
    given = ["--output", "a.json", "--base_model_path", "base"]
    with pytest.raises(KeyError):  # ends before all rows are there: the journal stays
        script(*given)
    Path("base/config.json").write_text("{}")
    assert script(*given) == 2
    assert "holds 1 rows of a run with other settings (model_files " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("output", "file"),
    [
        ("there.json", "there.json/miniature_bbox.json"),  # a folder all the same
        ("new.json/", "new.json/miniature_bbox.json"),
        ("deep/down/file.v2.json", "deep/down/file.v2.json"),
    ],
)
def test_output_is_a_folder_or_a_file(script, texts, output, file):
    texts()
    Path("there.json").mkdir()
    assert script("--output", output) == 0
    written = sorted(str(path) for path in Path().rglob("*.json") if path.is_file())
    assert written == sorted([file, str(meta_path(file))])


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(script, tmp_path, tiny_world, caplog):
    world = save_with_broken_images(tmp_path / "broken", tiny_world, [2, 7])
    assert script("--output", "good.json") == 0
    assert script("--dataset_path", world, "--output", "broken.json", "--batch_size", 3) == 3
    ids = question_ids(tiny_world)
    expected = [record | ({"answer": ""} if i in (2, 7) else {}) for i, record in enumerate(read("good.json"))]
    assert read("broken.json") == expected
    assert read("broken.meta.json")["counts"]["failed"] == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    named = [f"question_id {ids[i]}" for i in (2, 7)]
    assert [text.split(":")[0] for text in warnings] == [*named, "broken.json"]
    assert all(f"{name}: unreadable image" in warnings[-1] for name in named)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "nowhere/at/all"], "no such folder"),
        (["--model_path", "/dev/null"], "/dev/null: no such folder"),
        (["--name", "../../boxes"], "'../../boxes': expected a name without a slash"),
        (["--output", "x" * 245 + ".json"], "File name too long; name another output"),  # its meta file's
        (["--output", "taken"], "cannot write taken/miniature_bbox.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, tmp_path, capsys, flags, message):
    (tmp_path / "taken").touch()
    assert script(*flags) == 2
    error = capsys.readouterr().err
    assert "usage:" not in error
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json*"))
