"""The scripts in benchmarks/ still fit the code that they measure."""

import importlib
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


@pytest.mark.slow
def test_grpo_step_agrees_with_trl_over_a_whole_step(monkeypatch, capsys):
    import grpo_step

    flags = "--prompts 2 --longest_edge 1024 --new_tokens 4"
    monkeypatch.setattr(sys, "argv", ["grpo_step.py", *flags.split()])
    grpo_step.main()
    output = capsys.readouterr().out
    for way in ("ours", "trl"):
        assert re.search(rf"^{way} .* s a step, .* prompts/s, peak memory .* GiB, rollout .*, reference", output, re.M)
    assert len(re.findall(r"^ +62043 prompts: .* h; .* s of the processor's time a step$", output, re.M)) == 2
    ((rewards, gradients, largest),) = re.findall(
        r"rewards (\S+) \(from .*\), gradients (\S+) \(the largest: (\S+)\)", output
    )
    assert float(rewards) < 1e-4
    assert float(gradients) < 1e-5
    assert float(largest) > 1e-3
