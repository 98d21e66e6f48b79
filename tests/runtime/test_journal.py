"""The journal of a run: what it keeps, what it refuses, and its lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cropvlm.cli import UserError
from cropvlm.runtime.journal import Journal

REPO = Path(__file__).resolve().parents[2]
RECORDS = [
    {"question_id": 7, "answer": "stop"},
    {"question_id": "7", "answer": ""},
    {"question_id": "docvqa/é", "answer": 'Größe "1"\n\u2028 \ud800'},  # a lone surrogate: servers do send them
]


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
