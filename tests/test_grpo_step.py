"""benchmarks/grpo_step.py at the miniature geometry: the three ways agree, and it prints what it promises."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "grpo_step.py"


@pytest.mark.slow
def test_the_three_ways_agree_over_a_whole_step(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--prompts", "2", "--longest_edge", "1024", "--new_tokens", "4"])
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])  # as when it is run
    runpy.run_path(str(SCRIPT), run_name="__main__")
    output = capsys.readouterr().out
    for way in ("ours", "trl", "released"):
        assert re.search(rf"^{way} .* s a step, .* prompts/s, peak memory .* GiB, rollout .*, reference", output, re.M)
    assert len(re.findall(r"^ +31000 prompts: .* h; .* s of the processor's time a step$", output, re.M)) == 3
    assert len(re.findall(r"times as fast as .*; the reward alone .* times$", output, re.M)) == 2
    differences = re.findall(r"rewards (\S+) \(from .*\), gradients (\S+) \(the largest: (\S+)\)", output)
    assert len(differences) == 2
    for rewards, gradients, largest in differences:
        assert float(rewards) < 1e-4
        assert float(gradients) < 1e-5
        assert float(largest) > 1e-3
