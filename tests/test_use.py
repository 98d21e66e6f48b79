"""Every command of docs/use.md, with tiny models and the miniature's rows in the place of what it names."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from servers import serving

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, tiny_smolvlm) -> Path:
    """A folder with `models/grpo_512`."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/grpo_512").symlink_to(tiny_smolvlm)
    return tmp_path


def flags(start: str, **replaced: object) -> list[str]:
    """The flags of the one command of the page that begins so. replaced: other values for some of them."""
    (command,) = re.findall(rf"^{start} (.*)$", PAGE.replace("\\\n", ""), flags=re.MULTILINE)
    words = shlex.split(command)
    for name, value in replaced.items():
        words[words.index(f"--{name}") + 1] = str(value)
    return words


def execute(folder: Path, *command: object) -> str:
    """The output of a command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [str(word) for word in command]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_in_python(folder):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert "longest_edge=512" in code
    code = code.replace("longest_edge=512", "longest_edge=64")
    Image.new("RGB", (80, 60)).save(folder / "sign.jpg")
    printed = execute(folder, sys.executable, "-c", f"{code}\nprint(images[0].size, len(boxes))")
    assert printed == "(80, 60) 1\n"


def test_the_plugins_arguments_are_the_documented_ones():
    """Without lmms-eval, which is not in this environment; `batch_size` is a flag of its own."""
    (table,) = re.findall(r"\| `--model_args`.*?\n\n", PAGE, flags=re.DOTALL)
    documented = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line)))
    source = (ROOT / "serving" / "lmms.py").read_text()
    parameters = source[source.index("def __init__(") : source.index("**others")]
    assert documented | {"batch_size"} == set(re.findall(r"^        (\w+): ", parameters, flags=re.MULTILINE))
    words = flags("bash scripts/lmms_eval.sh")
    shown = dict(item.split("=") for item in words[words.index("--model_args") + 1].split(","))
    assert {"answerer", "cropper"} <= shown.keys() <= documented


@pytest.mark.slow
def test_the_proxy(folder, server, tiny_smolvlm, tiny_world):
    before_a_server = flags("bash scripts/serve.sh --model_path models/grpo_512 --api_base")
    before_a_server = ["--model_path", "models/grpo_512", "--api_base", server.url, *before_a_server[1:]]
    alone = flags("bash scripts/serve.sh --model_path models/grpo_512 --vqa_model_path")
    alone = ["--model_path", "models/grpo_512", "--vqa_model_path", tiny_smolvlm, *alone[1:-2]]
    script = "generate_final_answers.py"
    rows = ["--dataset_path", tiny_world, "--split", "test", "--max_samples", 2]
    proxies = [serving(folder, "serving.proxy", *given, ready="docs") for given in (before_a_server, alone)]
    with proxies[0] as first, proxies[1] as second:
        asked = flags(f"python3 {script} --modes base", api_base=first)
        execute(folder, sys.executable, ROOT / script, "--modes", "base", *asked, *rows)
        reply = httpx2.get(f"{second}/models", trust_env=False)
    parts = [[part["type"] for part in body["messages"][0]["content"]] for body in server.bodies]
    assert parts == [["image_url", "image_url", "text"]] * 2
    assert reply.json()["data"][0]["id"] == str(tiny_smolvlm)
