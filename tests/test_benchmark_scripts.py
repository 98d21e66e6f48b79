"""The scripts in benchmarks/ still fit the code that they measure."""

import importlib
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


def test_all_lines_of_the_gpu_table_keep_within_twenty_minutes():
    import gpu_table

    assert sum(line.limit for line in gpu_table.LINES) < 20 * 60
    assert sum(gpu_table.TINY[line.command.split()[0]][1] for line in gpu_table.LINES) < 8 * 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "measured"),
    [
        ("generation_speed", "--box_tokens 3 --answer_tokens 2 --dtype float32", 2),  # boxes, answers
        ("teacher_speed", "--new_tokens 3", 1),
    ],
)
def test_both_ways_write_the_same(script, flags, measured, monkeypatch, capsys):
    import smolvlm

    monkeypatch.setitem(smolvlm.TEXT, "num_hidden_layers", 1)
    monkeypatch.setitem(smolvlm.VISION, "num_hidden_layers", 1)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--rows", "3", "--single_rows", "2", *flags.split()])
    importlib.import_module(script).main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("times as fast; same text in 2 of 2 rows") for line in lines) == measured
