"""README and docs are true: each command names a script and flags that exist, and the tree is the repository's."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cropvlm.data.catalog import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
DOORS = {
    "scripts/demo.sh": "scripts/demo.py",
    "scripts/mcp_server.sh": "scripts/mcp_server.py",
    "scripts/serve.sh": "serving/proxy.py",
}
STARTS = ("python3 ", "bash ", "accelerate ", "source ", "conda ", "vllm ")


def commands() -> list[str]:
    """The lines of the bash blocks, continuations joined and comments dropped, and the commands within the text."""
    script = "".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    lines = [shlex.join(shlex.split(line, comments=True)) for line in script.splitlines()]
    inline = [text for text in re.findall(r"`([^`\n]+)`", PROSE) if text.startswith(STARTS)]
    return list(dict.fromkeys(filter(None, lines + inline)))


def python_call(command: str) -> list[str] | None:
    """The script's or module's file and its arguments, of a command that runs python in the end; else None."""
    match shlex.split(command):
        case ["python3", "-m", module, *args]:
            return [module.replace(".", "/") + ".py", *args]
        case ["python3", script, *args] | ["accelerate", "launch", script, *args]:
            return [script, *args]
        case ["bash", script, gpu, *args] if script in ("scripts/train_sft.sh", "scripts/train_grpo.sh"):
            return [Path(script).stem + ".py", "--gpu", gpu, *args]
        case ["bash", script, *args] if script in DOORS and args:
            return [DOORS[script], *args]
    return None


class Parsed(Exception):
    """Raised where a script would continue after reading its arguments."""


def parse(call: list[str], monkeypatch) -> None:
    """Let the script of `call` read its arguments in this process. SystemExit or UserError if it refuses them."""
    module = importlib.import_module(call[0].removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", call)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which --gpu of the trainers sets; restored afterwards
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    if hasattr(module, "parse_args"):
        module.parse_args()
        return

    def stop(*_):
        raise Parsed

    monkeypatch.setattr("cropvlm.trainers.train.train", stop)
    with pytest.raises(Parsed):
        module.main()


def test_the_readme_prints_the_commands_of_the_experiment():
    expected = [
        "bash scripts/miniature.sh",
        "bash scripts/test.sh",
        "python3 create_dataset.py",
        "bash scripts/train_sft.sh 0",
        "bash scripts/train_grpo.sh 0",
        "python3 generate_bbox.py --model_path models/grpo_512",
        "python3 generate_final_answers.py --bbox predictions/textvqa_bbox.json",
        "python3 vqa_accuracy.py --predictions_file predictions/textvqa_cropvlm_answers.json",
        "bash scripts/reproduce.sh 0",
    ]
    found = commands()
    assert [command for command in expected if command not in found] == []


@pytest.mark.parametrize("command", commands())
def test_the_command_names_a_script_that_accepts_its_flags(command, monkeypatch):
    assert command.startswith(STARTS)
    if call := python_call(command):
        parse(call, monkeypatch)
    elif not command.startswith(("conda ", "vllm ", "source .venv/bin/activate")):
        assert (ROOT / shlex.split(command)[1]).is_file()


def tree() -> dict[str, str]:
    """Path -> what the README's tree says of it; what is indented lies in the folder above."""
    block = next(text for _, text in BLOCKS if text.startswith("create_dataset.py"))
    described, folder = {}, ""
    for line in block.splitlines():
        names, text = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        indented = line.startswith(" ")
        described |= {(folder if indented else "") + name: text for name in names.split()}
        folder = folder if indented else names
    return described


def test_the_tree_is_the_repositorys():
    """All in it exists and is described; what lies at the top, and the package's modules and wings, are in it."""
    listed = tree()
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert all(listed.values())
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout: the project's own files cannot be listed")
    tracked = [Path(line) for line in result.stdout.splitlines() if not line.startswith(".")]
    wanted = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in tracked}
    package = [path.parts for path in tracked if path.parts[0] == "cropvlm" and path.name != "__init__.py"]
    wanted |= {f"cropvlm/{parts[1]}" + ("/" if len(parts) > 2 else "") for parts in package}
    assert len(wanted) > 20
    assert sorted(wanted - listed.keys()) == []


def test_the_links_and_paths_in_the_text_are_there():
    named = re.findall(r"`((?:cropvlm|miniature|scripts|tests|docs|benchmarks)/[\w./]+)`", PROSE)
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        named += [folder / target for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_benchmarks_are_those_of_the_table():
    line = next(line for line in TEXT.splitlines() if line.startswith("# another benchmark: "))
    names = line.removeprefix("# another benchmark: ").split(",")[0].split()
    assert names == list(BENCHMARKS)


def test_the_examples_of_files_are_what_they_claim(tmp_path):
    from cropvlm.boxes import parse_bbox
    from cropvlm.runs.predictions import read_predictions

    (example,) = [text for language, text in BLOCKS if language == "json"]
    (tmp_path / "example.json").write_text(example)
    records = read_predictions(tmp_path / "example.json")
    assert [parse_bbox(record["answer"]) for record in records] == [(31, 64, 48, 72), (5, 10, 60, 95)]
    assert records == json.loads(example)
