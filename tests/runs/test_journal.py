"""The journal of a run: what it keeps, what it refuses, and its lock."""

import os
import signal
import subprocess
import sys

import pytest
from processes import REPO
from steps import RECORDS

from cropvlm.errors import UserError
from cropvlm.runs.journal import Journal


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


@pytest.mark.parametrize("cut", [1, 40])  # the end of the line; nearly all of it
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
    before, shown = journal.path.read_bytes(), r"3 rows .*\(old 1 there, None here; size 512 there, 64 here\).* delete"
    with pytest.raises(UserError, match=shown), Journal(tmp_path / "a", {"size": 64, "model": "m"}):
        pass
    assert journal.path.read_bytes() == before
    # The lock was let go, and a setting that did not exist then counts as left at its default.
    with Journal(tmp_path / "a", {"size": 512, "model": "m", "old": 1, "new": None}) as journal:
        assert len(journal.rows) == 3


@pytest.mark.parametrize(
    "content",
    ['{"settings": {}}\nnonsense\n', '{"settings": {}}\n{"answer": "a"}\n', "my notes"],
)
def test_a_broken_journal_is_refused(tmp_path, content):
    content += '{"question_id": 7, "answ'  # cut: nothing of a file that is refused is dropped
    (tmp_path / "a.journal.jsonl").write_text(content)
    with pytest.raises(UserError, match="l is not readable as a journal; delete"), Journal(tmp_path / "a", {}):
        pass
    assert (tmp_path / "a.journal.jsonl").read_text() == content


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "a.journal.jsonl").symlink_to("mine")
    with pytest.raises(UserError, match="is not a regular file"), Journal(tmp_path / "a", {}):
        pass
    assert (tmp_path / "a.journal.jsonl").is_symlink()
    assert not (tmp_path / "mine").exists()


FULL = """
import resource, signal, sys
from cropvlm.runs.cli import UserError
from cropvlm.runs.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))  # a file that grows beyond it is an OSError
try:
    with Journal(sys.argv[1], {"size": 512}) as journal:
        for i in range(10):
            journal.append([{"question_id": i, "answer": "a"}])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 27, 100])
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(tmp_path, limit):
    """The header takes 28 bytes, a row 34."""
    command = [sys.executable, "-c", FULL, tmp_path / "a", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True)
    path = tmp_path / "a.journal.jsonl"
    assert done.stderr == ""
    assert done.stdout == f"cannot write {path}: File too large; name another output\n"
    whole_rows = max(0, limit - 28) // 34
    assert path.exists() == bool(whole_rows)
    with Journal(tmp_path / "a", {"size": 512}) as journal:
        assert list(journal.rows) == list(range(whole_rows))


HOLD = """
import os, sys, time
from cropvlm.runs.journal import Journal
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
