"""The scripts in benchmarks/ still fit the code that they measure."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    """Let their modules be found, as when one of them is run; the path that they add themselves goes as well."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_importing_one_finds_what_it_needs_and_does_nothing(path, capsys):
    runpy.run_path(str(path))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_generation_speed_says_that_both_ways_write_the_same(monkeypatch, capsys):
    import generation_speed
    import smolvlm

    monkeypatch.setitem(smolvlm.TEXT, "num_hidden_layers", 1)
    monkeypatch.setitem(smolvlm.VISION, "num_hidden_layers", 1)
    flags = "--rows 3 --single_rows 2 --box_tokens 3 --answer_tokens 2 --dtype float32 --profile --peak_tflops 1"
    monkeypatch.setattr(sys, "argv", ["generation_speed.py", *flags.split()])
    generation_speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("times as fast; same text in 2 of 2 rows") for line in lines) == 2  # boxes, answers
    # Rows 0 and 1 ask about one image, row 2 about another; a tile is 17.7 GFLOP in the one layer, 1.2 for patches,
    # 0.9 in the connector: 2 * 19.8 / 3 = 13.2, and some 0.7 for a prompt and 3 tokens.
    gflop = [float(line.split()[0]) for line in lines if " GFLOP a row; " in line]
    assert gflop[0] == pytest.approx(13.9, rel=0.1)


@pytest.mark.slow
def test_teacher_speed_says_that_both_ways_write_the_same(monkeypatch, capsys):
    import teacher_speed

    flags = "--rows 4 --single_rows 3 --new_tokens 3"
    monkeypatch.setattr(sys, "argv", ["teacher_speed.py", *flags.split()])
    teacher_speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "same text in 3 of 3 rows"
    assert lines[1].endswith("rows/s (3 rows)")


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--real_budget --num_workers 2"])
def test_teacher_memory_runs_to_the_end(monkeypatch, capsys, tmp_path, flags):
    import teacher_memory

    monkeypatch.setattr(sys, "argv", ["teacher_memory.py", "--rows", "4", "--folder", str(tmp_path), *flags.split()])
    teacher_memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 rows of 1 megapixel, exit code 0, ")
    assert float(re.search(r"own memory: ([\d.]+) GiB", lines[1])[1]) > 0.1


def test_rows_in_a_journal(tmp_path):
    from memory import rows_in

    journal = tmp_path / "a.journal.jsonl"
    assert rows_in(journal) == 0
    journal.write_text('{"settings": {}}\n{"question_id": 1, "answer": ""}\n{"quest')
    assert rows_in(journal) == 1
