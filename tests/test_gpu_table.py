"""benchmarks/: in gpu_table.py every line runs in its time and a failure is named."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    """Let their modules be found, as when one of them is run; the path that they add themselves goes as well."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize(
    ("program", "row"),
    [
        ("print('ours 2'); print('other 6')", "2 s | 6 s, another | 3.00"),
        ("print('ours 2'); raise ValueError('a|b')", "2 s | ValueError: a/b | "),
        ("print('other 2')", "nothing printed | 2 s, another | "),
        (
            # Its child holds the pipe open.
            "import subprocess, time; print('ours 2', flush=True); subprocess.Popen(['sleep', '30']); time.sleep(30)",
            "2 s | not done in 1 s | ",
        ),
    ],
    ids=["figures", "the other way failed", "no figure of ours", "the other way too slow"],
)
def test_a_row(monkeypatch, tmp_path, program, row):
    import gpu_table

    (tmp_path / "script.py").write_text(program)
    monkeypatch.setattr(gpu_table, "FOLDER", tmp_path)
    limit = 1 if "sleep" in program else 60
    line = gpu_table.Line("work", "script.py", r"^ours (\d+)", r"^other (\d+)", "another", "s", limit)
    assert gpu_table.run(line, tiny=False) == f"| work | {row} |"


@pytest.mark.slow
def test_a_line_of_each_benchmark_runs():
    """At the smallest size; all lines: bash benchmarks/gpu.sh --tiny"""
    only = ["boxes 512", "GRPO step 512", "SFT 512", "teacher"]
    call = [sys.executable, FOLDER / "gpu_table.py", "--tiny", "--only", *only]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    heading, _, _, _, columns, _, *rows = done.stdout.splitlines()
    assert re.fullmatch(r"### .+, torch .+, \d{4}-\d\d-\d\d", heading)
    assert columns == "| work | ours | other way | ratio |"
    assert len(rows) == len(only)
    figure = r"\| [\d.e+-]+ (s|rows/s)"
    unfinished = r"\| not done in \d+ s"  # on a busy machine
    row = rf"\| .+ ({figure}|{unfinished}) ({figure}, .+|{unfinished}) \| [\d.]* ?\|"
    assert all(re.fullmatch(row, line) for line in rows), rows
    assert any(re.match(rf"\| .+ {figure} \|", line) for line in rows)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_importing_one_finds_what_it_needs_and_does_nothing(path, capsys):
    runpy.run_path(str(path))
    assert capsys.readouterr().out == ""
