"""docs/use.md: its Python example as it stands, and its commands for the proxy and lmms-eval with tiny models."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")


def test_the_example_in_python(tiny_smolvlm, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert 'Cropper("models/grpo_512", longest_edge=512)' in code
    code = code.replace("models/grpo_512", str(tiny_smolvlm)).replace("longest_edge=512", "longest_edge=64")
    Image.new("RGB", (80, 60)).save(tmp_path / "sign.jpg")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{code}\nprint(full.size, len(boxes))"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(80, 60) 1\n"


def test_the_proxys_commands_are_accepted(monkeypatch):
    from serving import proxy

    calls = re.findall(r"^bash scripts/serve.sh (.*)$", PAGE, flags=re.MULTILINE)
    assert len(calls) == 2
    for flags in calls:
        monkeypatch.setattr(sys, "argv", ["proxy", *flags.split()])
        assert proxy.parse_args().model_path == "models/grpo_512"


def test_the_plugins_arguments_are_the_documented_ones():
    """Without lmms-eval, which is not in this environment."""
    (table,) = re.findall(r"\| `--model_args`.*?\n\n", PAGE, flags=re.DOTALL)
    documented = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line)))
    source = (ROOT / "serving" / "lmms.py").read_text()
    parameters = source[source.index("def __init__(") : source.index("**others")]
    assert documented == set(re.findall(r"^        (\w+): ", parameters, flags=re.MULTILINE))
