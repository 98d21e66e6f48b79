"""Prediction files, their meta files, and the join."""

from pathlib import Path

import pytest
from steps import RECORDS

from cropvlm.errors import UserError
from cropvlm.runs.predictions import (
    build_meta,
    join_on_question_id,
    meta_path,
    read_file,
    read_meta,
    read_predictions,
    write_predictions,
)


def test_predictions_survive_the_round_trip_with_the_type_of_their_ids(tmp_path):
    path = tmp_path / "new folder" / "a_bbox.json"
    write_predictions(path, [{**record, "note": "not written"} for record in RECORDS], {"split": "test"})
    assert read_predictions(path) == RECORDS
    assert read_meta(path) == {"split": "test"}
    assert read_file(path, "cropper").records == RECORDS  # a meta file without models
    assert sorted(p.name for p in path.parent.iterdir()) == ["a_bbox.json", "a_bbox.meta.json"]
    assert read_meta(path.with_name("b_bbox.json")) == {}


def test_meta_names_every_library_and_what_load_rows_needs():
    source = {"dataset_path": "d", "split": None, "max_samples": 3}
    meta = build_meta(source, models={"cropper": "m"}, settings={"s": 1}, counts={"rows": 3})
    names = {"torch", "torchvision", "transformers", "datasets", "qwen-vl-utils", "numpy", "rapidfuzz", "gpu", "python"}
    assert names <= meta.pop("versions").keys()
    described = {"models": {"cropper": "m"}, "settings": {"s": 1}, "counts": {"rows": 3}, "failed": []}
    assert meta == source | {"dataset": None} | described


def test_meta_path():
    for name, meta in {"a": "a.meta.json", "a_v1.5": "a_v1.5.meta.json", "a.b.json": "a.b.meta.json"}.items():
        assert meta_path(Path("x") / name) == Path("x") / meta


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"question_id": 1, "ans', "expected a JSON file"),
        (b"{}", "it holds {}, expected a JSON list"),
        (b'[{"question_id": 1, "answer": "a"}, {"question_id": 1.0, "answer": "a"}]', "it holds {'question_id': 1.0"),
        (b'[{"question_id": 1, "answer": 5}]', "it holds {'question_id': 1, 'answer': 5}, expected"),
    ],
    ids=["cut", "an object", "float id", "answer a number"],
)
def test_garbage_is_refused_in_one_line(tmp_path, content, problem):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        read_predictions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.json, .* \(.*No such file"):
        read_predictions(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_predictions(tmp_path)


ROWS = [{"question_id": 3}, {"question_id": "3"}, {"question_id": 1}]


def test_join_follows_the_rows_and_keeps_types_apart():
    records = [{"question_id": i, "answer": repr(i)} for i in (1, "3", 3)]
    assert join_on_question_id(records, ROWS) == ["3", "'3'", "1"]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([3, 1], r"\(1 missing: '3'\)"),
        ([3, "3", 1, 1], r"\(1 duplicate: 1\)"),
        ([3, "3", 1, "1"], r"\(1 unknown: '1'\)"),
        ([3, "3", "1"], r"\(1 missing: 1; 1 unknown: '1'\)"),
    ],
    ids=["missing", "duplicate", "unknown", "other type"],
)
def test_join_refuses_in_one_line(ids, problem):
    records = [{"question_id": i, "answer": "x"} for i in ids]
    with pytest.raises(UserError, match=problem) as error:
        join_on_question_id(records, ROWS, "p.json")
    assert "p.json" in str(error.value)
    assert "\n" not in str(error.value)
