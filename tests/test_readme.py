"""What the README promises: each command names a script and flags that are there, and the tree is the repository's."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import create_dataset
from cropvlm.benchmarks import BENCHMARKS
from cropvlm.cli import UserError
from cropvlm.teacher.responses import teacher_settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
STARTS = ("python3 ", "bash ", "accelerate ", "source ")


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
    return None


class Parsed(Exception):
    """Raised where a script would go on after reading its arguments."""


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

    monkeypatch.setattr(module, "train", stop)
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
def test_the_command_names_a_file_that_is_there(command):
    assert command.startswith(STARTS)
    call = python_call(command)
    script = call[0] if call else shlex.split(command)[1]
    assert script == ".venv/bin/activate" or (ROOT / script).is_file()


@pytest.mark.parametrize("command", [command for command in commands() if python_call(command)])
def test_the_script_accepts_the_flags(command, monkeypatch, capsys):
    try:
        parse(python_call(command), monkeypatch)
    except (SystemExit, UserError) as error:
        pytest.fail(f"{command}: {error} {capsys.readouterr().err}")


@pytest.mark.parametrize(
    "command",
    [
        "python3 create_dataset.py --no_such_flag",
        "python3 generate_bbox.py",
        "python3 vqa_accuracy.py --predictions_file P --metric bleu",
        "bash scripts/train_sft.sh 0 --no_such_flag 1",
    ],
)
def test_this_test_would_see_a_wrong_flag(command, monkeypatch):
    with pytest.raises((SystemExit, UserError)):
        parse(python_call(command), monkeypatch)


def tree() -> dict[str, str]:
    """Path -> what the README's tree says of it."""
    block = next(text for _, text in BLOCKS if text.startswith("create_dataset.py"))
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in block.splitlines()]
    return {path: text for paths, text in lines for path in paths.split()}


def test_everything_in_the_tree_is_there_and_described():
    listed = tree()
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert all(listed.values())


def test_everything_of_note_is_in_the_tree():
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("no git checkout: which files are the project's cannot be told")
    folders = ("cropvlm", "miniature", "scripts")
    tracked = [Path(line) for line in result.stdout.splitlines()]
    files = [path for path in tracked if len(path.parts) == 1 and not path.name.startswith(".")]
    files += [path for path in tracked if str(path.parent) in folders and path.suffix in (".py", ".sh")]
    rest = {f"{path.parts[0]}/" for path in tracked if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    wanted = {str(path) for path in files} | rest - {f"{folder}/" for folder in folders}
    assert len(wanted) > 20
    assert sorted(wanted - tree().keys()) == []


def test_training_sets_of_other_teachers_lie_elsewhere(monkeypatch):
    """In one place the second command would refuse the journal of the first; --from_journal follows its own."""
    kept, last = {}, None
    for call in filter(None, map(python_call, commands())):
        if call[0] != "create_dataset.py":
            continue
        monkeypatch.setattr(sys, "argv", call)
        args = create_dataset.parse_args()
        if args.from_journal:
            assert args.output_path == last
        else:
            settings = teacher_settings(args)
            assert kept.setdefault(args.output_path, settings) == settings, call
        last = args.output_path
    assert len(kept) > 2


def test_the_links_and_paths_in_the_text_are_there():
    named = re.findall(r"`((?:cropvlm|miniature|scripts|tests)/[\w./]+)`", PROSE)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_benchmarks_are_those_of_the_table():
    line = next(line for line in README.splitlines() if line.startswith("# another benchmark: "))
    names = line.removeprefix("# another benchmark: ").split(",")[0].split()
    assert names == list(BENCHMARKS)


def test_the_examples_of_files_are_what_they_claim(tmp_path):
    from cropvlm.boxes import parse_bbox
    from cropvlm.inference.predictions import read_predictions

    (example,) = [text for language, text in BLOCKS if language == "json"]
    (tmp_path / "example.json").write_text(example)
    records = read_predictions(tmp_path / "example.json")
    assert [parse_bbox(record["answer"]) for record in records] == [(31, 64, 48, 72), (5, 10, 60, 95)]
    assert records == json.loads(example)


def test_the_numbered_list_counts_without_a_gap():
    section = README.split("## Where this differs")[1].split("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", section, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10
