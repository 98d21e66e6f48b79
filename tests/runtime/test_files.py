"""Files are written whole or not at all, and nothing else is touched or left behind."""

import json
import os

import pytest

from cropvlm.cli import UserError
from cropvlm.runtime.files import check_writable, write_json


def test_a_file_is_a_json_list_with_a_record_per_line(tmp_path):
    write_json(tmp_path / "a.json", [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}])
    expected = '[\n{"question_id": 1, "answer": "a"},\n{"question_id": 2, "answer": "b"}\n]\n'
    assert (tmp_path / "a.json").read_text() == expected


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", ["old"])

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="a.json: No space left on device"):
        write_json(tmp_path / "a.json", ["new"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == ["old"]


def test_check_writable_makes_the_folder_and_nothing_else(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["a", "a/b"]


@pytest.mark.parametrize("name", [".", "file/a.json", "x" * 300, "/proc/a.json", "/dev/null"])
def test_unwritable_outputs_are_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / name)
