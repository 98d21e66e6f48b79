"""Files are written whole or not at all, and nothing else is touched or left behind."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from cropvlm.errors import UserError
from cropvlm.runs.files import check_writable, open_locked, open_to_group, write_json


def test_a_file_is_a_json_list_with_a_record_per_line_and_the_permissions_of_others(tmp_path):
    write_json(tmp_path / "a.json", [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "b"}])
    expected = '[\n{"question_id": 1, "answer": "a"},\n{"question_id": 2, "answer": "b"}\n]\n'
    assert (tmp_path / "a.json").read_text() == expected
    (tmp_path / "other").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", ["old"])

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="a.json: No space left on device"):
        write_json(tmp_path / "a.json", ["new"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == ["old"]


@pytest.mark.parametrize("name", [".", "file/a.json", "x" * 300, "/proc/a.json", "/dev/null"])
def test_unwritable_outputs_are_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / name)


def test_nothing_is_written_but_the_file(tmp_path):
    """Links and files at names that a temporary file might have are the user's own."""
    (tmp_path / "mine").write_text("mine")
    names = [".a.json.tmp", ".a.json.12345678.tmp.bak", ".b.json.12345678.tmp"]
    for name in (*names, "a.json"):  # the last is replaced, not followed
        (tmp_path / name).symlink_to("mine")
    check_writable(tmp_path / "a.json")
    write_json(tmp_path / "a.json", ["new"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.json", "mine", *names])
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # as where SIGKILL lets nothing be tidied up
        with pytest.raises(KeyboardInterrupt):
            write_json(tmp_path / "a.json", ["first"])
    (left,) = (p.name for p in tmp_path.iterdir())
    assert re.fullmatch(r"\.a\.json\.[0-9a-f]{8}\.tmp", left)
    write_json(tmp_path / "a.json", ["second"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_library_withholds_is_given_as_the_umask_asks(tmp_path):
    (tmp_path / "weights").touch(0o600)
    (tmp_path / "program").touch(0o700)
    before = os.umask(0o027)
    open_to_group(tmp_path)
    os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("weights", "program")] == [0o640, 0o740]


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with open_locked(tmp_path / "a") as file:
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert "without locks: start no second run there" in caplog.text
