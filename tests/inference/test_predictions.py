"""Prediction files, their meta files, the join, and the journal with its lock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from cropvlm.cli import UserError
from cropvlm.inference.predictions import (
    build_meta,
    join_on_question_id,
    meta_path,
    read_meta,
    read_predictions,
    write_predictions,
)
from cropvlm.runtime.files import check_writable, write_json
from cropvlm.runtime.journal import Journal

REPO = Path(__file__).resolve().parents[2]
RECORDS = [
    {"question_id": 7, "answer": "stop"},
    {"question_id": "7", "answer": ""},
    {"question_id": "docvqa/é", "answer": 'Größe "1"\n\u2028 \ud800'},  # a lone surrogate: servers do send them
]


def test_predictions_survive_the_round_trip_with_the_type_of_their_ids(tmp_path):
    path = tmp_path / "new folder" / "a_bbox.json"
    write_predictions(path, [{**record, "note": "not written"} for record in RECORDS], {"split": "test"})
    assert read_predictions(path) == RECORDS
    assert read_meta(path) == {"split": "test"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["a_bbox.json", "a_bbox.meta.json"]


def test_a_file_is_a_json_list_with_a_record_per_line(tmp_path):
    write_json(tmp_path / "a.json", [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}])
    expected = '[\n{"question_id": 1, "answer": "a"},\n{"question_id": 2, "answer": "b"}\n]\n'
    assert (tmp_path / "a.json").read_text() == expected


def test_meta_names_every_library_and_what_load_rows_needs():
    meta = build_meta(
        dataset_path="d", split=None, max_samples=3, models={"cropper": "m"}, settings={"s": 1}, counts={"rows": 3}
    )
    assert {"torch", "transformers", "datasets"} <= meta.pop("versions").keys()
    assert meta == {
        "dataset_path": "d",
        "dataset": None,
        "split": None,
        "max_samples": 3,
        "models": {"cropper": "m"},
        "settings": {"s": 1},
        "counts": {"rows": 3},
        "failed": [],
    }


@pytest.mark.parametrize(
    ("name", "meta"), [("a.json", "a.meta.json"), ("a_v1.5", "a_v1.5.meta.json"), ("a.b.json", "a.b.meta.json")]
)
def test_meta_path(name, meta):
    assert meta_path(Path("x") / name) == Path("x") / meta


def test_no_meta_file_is_an_empty_meta(tmp_path):
    assert read_meta(tmp_path / "a.json") == {}


@pytest.mark.parametrize(
    "records",
    [
        [{"question_id": 1, "answer": None}],
        [{"question_id": 1.0, "answer": "a"}],
        [{"question_id": True, "answer": "a"}],
        [{"answer": "a"}],
        [{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}],
    ],
    ids=["no text", "float id", "boolean id", "no id", "doubled id"],
)
def test_bad_records_are_not_written(tmp_path, records):
    with pytest.raises(ValueError, match="record 0|doubled"):
        write_predictions(tmp_path / "a.json", records, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", ["old"])

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="a.json: No space left on device"):
        write_json(tmp_path / "a.json", ["new"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == ["old"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b'[{"question_id": 1, "ans', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"7": "a"}', "holds a dict"),
        (b'["a"]', "item 0 is 'a'"),
        (b'[{"question_id": 1, "answer": 5}]', "item 0"),
        (b'[{"question_id": null, "answer": "a"}]', "item 0"),
    ],
    ids=["empty", "cut", "no UTF-8", "deep", "an object", "no records", "answer a number", "id null"],
)
def test_garbage_is_refused_in_one_line(tmp_path, content, problem):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        read_predictions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.json: No such file"):
        read_predictions(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_predictions(tmp_path)


def test_check_writable_makes_the_folder_and_nothing_else(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["a", "a/b"]


@pytest.mark.parametrize("name", [".", "file/a.json", "x" * 300, "/proc/a.json", "/dev/null"])
def test_unwritable_outputs_are_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / name)


ROWS = [{"question_id": 3}, {"question_id": "3"}, {"question_id": 1}]


def test_join_follows_the_rows_and_keeps_types_apart():
    records = [{"question_id": i, "answer": repr(i)} for i in (1, "3", 3)]
    assert join_on_question_id(records, ROWS) == ["3", "'3'", "1"]


def test_join_takes_a_dataset():
    rows = datasets.Dataset.from_dict({"question_id": ["b", "a"]})
    records = [{"question_id": "a", "answer": "1"}, {"question_id": "b", "answer": "2"}]
    assert join_on_question_id(records, rows) == ["2", "1"]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([3, 1], r"\(1 missing: '3'\)"),
        ([3, "3", 1, 1], r"\(1 doubled: 1\)"),
        ([3, "3", 1, "1"], r"\(1 strange: '1'\)"),
        ([3, "3", "1"], r"\(1 missing: 1; 1 strange: '1'\)"),
        ([3, "3", 1, *range(10, 17)], r"\(7 strange: 10, 11, 12, 13, 14, \.\.\.\)"),
        ([], r"\(3 missing: 3, '3', 1\)"),
    ],
    ids=["missing", "doubled", "strange", "other type", "many", "none"],
)
def test_join_refuses_in_one_line(ids, problem):
    records = [{"question_id": i, "answer": "x"} for i in ids]
    with pytest.raises(UserError, match=problem) as error:
        join_on_question_id(records, ROWS, "p.json")
    assert "p.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_journal_keeps_rows_for_the_next_run(tmp_path):
    target = tmp_path / "new" / "a.json"
    with Journal(target, {"size": (512, 512)}) as journal:
        assert journal.rows == {}
        journal.append(RECORDS[:2])
    with Journal(target, {"size": (512, 512)}) as journal:
        assert list(journal.rows.values()) == RECORDS[:2]
        journal.append(iter(RECORDS[2:]))
        assert list(journal.rows.values()) == RECORDS
        journal.remove()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("cut", range(1, 41))
def test_a_last_line_cut_anywhere_is_dropped_and_written_anew(tmp_path, cut):
    with Journal(tmp_path / "a", {}) as journal:
        journal.append(RECORDS)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    with Journal(tmp_path / "a", {}) as journal:
        assert list(journal.rows.values()) == RECORDS[:2]
        journal.append(RECORDS[2:])
    assert journal.path.read_bytes() == whole


def test_a_cut_header_starts_anew(tmp_path):
    (tmp_path / "a.journal.jsonl").write_text('{"settings": {"si')
    with Journal(tmp_path / "a", {"size": 1}) as journal:
        assert journal.rows == {}
        assert journal.path.read_text() == '{"settings": {"size": 1}}\n'
    assert not journal.path.exists()  # a run that did no row, as where the model is missing, leaves no file


def test_a_journal_of_other_settings_is_refused_with_the_way_out(tmp_path):
    with Journal(tmp_path / "a", {"size": 512, "model": "m", "old": 1}) as journal:
        journal.append(RECORDS)
    before = journal.path.read_bytes()
    with (
        pytest.raises(
            UserError, match=r"3 rows .*\(old 1 there, None here; size 512 there, 64 here\).* delete the file"
        ),
        Journal(tmp_path / "a", {"size": 64, "model": "m"}),
    ):
        pass
    assert journal.path.read_bytes() == before
    with Journal(tmp_path / "a", {"size": 512, "model": "m", "old": 1}) as journal:  # and the lock was let go
        assert len(journal.rows) == 3


@pytest.mark.parametrize(
    "content",
    ['{"settings": {}}\nnonsense\n', '{"settings": {}}\n{"answer": "a"}\n', "[]\n", '{"settings": 1}\n', "\0\n"],
)
def test_a_broken_journal_is_refused(tmp_path, content):
    (tmp_path / "a.journal.jsonl").write_text(content)
    with (
        pytest.raises(UserError, match=r"line \d of .*a.journal.jsonl is not readable; delete"),
        Journal(tmp_path / "a", {}),
    ):
        pass


def test_a_journal_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), Journal(tmp_path / "file" / "a", {}):
        pass


HOLD = """
import os, sys, time
from cropvlm.runtime.journal import Journal
with Journal(sys.argv[1], {}) as journal:
    journal.append([{"question_id": 1, "answer": "a"}])
    child = os.fork()  # as a preprocessing worker, which outlives a killed parent
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    target = tmp_path / "a.json"
    first = subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE, text=True, cwd=REPO)
    child = int(first.stdout.readline())
    try:
        with pytest.raises(UserError, match="another run is writing here"), Journal(target, {}):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with Journal(target, {}) as journal:
            assert journal.rows == {1: {"question_id": 1, "answer": "a"}}
    finally:
        os.kill(child, signal.SIGKILL)
        first.kill()
        first.wait()


def test_neither_torch_nor_transformers_is_imported():
    heavy = "{'torch', 'transformers', 'datasets'}"
    code = f"import sys, cropvlm.inference.predictions; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
