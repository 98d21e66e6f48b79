"""The real clients against a Hub on loopback: which files are fetched, what is cached, what arrives there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import loopback_hub
import pytest
from loopback_hub import environment
from published import RED, write_hub

ROOT = Path(__file__).resolve().parents[1]

# Answers each line `[path, split, compare]` with the ids and whether there are images; or, to compare, with whether
# features and rows are those of load_dataset.
CLIENT = """
import json, sys
import datasets
from cropvlm.data.catalog import locate
from cropvlm.data.rows import load_rows
from cropvlm.data.repositories import load_published

datasets.disable_progress_bars()
for line in sys.stdin:
    path, split, compare = json.loads(line)
    if compare:
        ours, known, _ = load_published(path, split)
        source, config, _ = locate(path)
        files = known.data_files.get(split or known.split)
        options = {"data_files": {split or known.split: files}} if files else {"name": config}
        theirs = datasets.load_dataset(source, **options, split=str(ours.split))
        tables = [rows.with_format("arrow")[:] for rows in (ours, theirs)]
        answer = [ours.features == theirs.features, tables[0].equals(tables[1])]
    else:
        rows = load_rows(path, split)
        images = [row["image"]["bytes"] or row["image"]["path"] for row in rows]
        answer = [rows["question_id"][:], all(images)]
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with all benchmarks, and two data sets of other people."""
    folder = tmp_path_factory.mktemp("hub")
    with loopback_hub.started() as hub:
        for repo, files in write_hub(folder).items():
            hub.add_folder("datasets", repo, files)
        (folder / "csv").mkdir()
        for split in ("train", "test"):
            (folder / "csv" / f"{split}.csv").write_text(f"question_id,question,answers,image\n{split},q,None,a.jpg\n")
        (folder / "csv" / "a.jpg").write_bytes(RED)
        hub.add_folder("datasets", "someone/csv", folder / "csv")
        yield hub


def ask(env: dict[str, str], folder: Path, compare: bool = False, splits: int | None = None) -> list:
    """The answers to the first `splits` of SPLITS, all in one process."""
    lines = [json.dumps([path, split, compare]) for path, split, *_ in SPLITS[:splits]]
    call, pipes = [sys.executable, "-c", CLIENT], {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(call, input="\n".join(lines), env=env, cwd=folder, **pipes)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(map(json.loads, done.stdout.splitlines()))


VSTAR = ("direct_attributes/a.jpg", "relative_position/b.jpg", "test_questions.jsonl")
# What is asked for, its ids, and the files that hold it.
SPLITS = [
    ("textvqa", None, [34602, 34603], ["lmms-lab/textvqa/data/validation-00000-of-00001.parquet"]),
    ("lmms-lab/textvqa", "test", [34603, 34602], ["lmms-lab/textvqa/data/test-00000-of-00001.parquet"]),
    ("docvqa", None, ["49153", "24580"], ["lmms-lab/DocVQA/DocVQA/validation-00000-of-00001.parquet"]),
    ("docvqa", "train", ["337", "338"], ["lmms-lab/DocVQA/DocVQA/train-00000-of-00001.parquet"]),
    ("infovqa", None, ["98313", "98314"], ["lmms-lab/DocVQA/InfographicVQA/validation-00000-of-00001.parquet"]),
    ("infovqa", "train", ["337", "338"], ["lmms-lab/DocVQA/InfographicVQA/train-00000-of-00001.parquet"]),
    ("stvqa", None, [0, 1], ["danjacobellis/stvqa_task1/data/train-00000-of-00001.parquet"]),
    ("vstar", None, ["0", "1"], [f"craigwu/vstar_bench/{file}" for file in VSTAR]),
    ("hrbench4k", None, [0, 1], ["DreamMr/HR-Bench/hr_bench_4k.parquet"]),
    ("hrbench8k", None, [1, 0], ["DreamMr/HR-Bench/hr_bench_8k.parquet"]),
    ("someone/csv", "test", ["test"], ["someone/csv/a.jpg", "someone/csv/test.csv"]),
]


@pytest.mark.slow
def test_only_the_files_of_the_split_are_fetched(hub, tmp_path):
    """And its rows, features and order are those of `load_dataset`; without a connection they come from the cache."""
    home, expected = tmp_path / "home", [[ids, True] for _, _, ids, _ in SPLITS]
    hub.fetched.clear()
    assert ask(environment(hub, home), tmp_path) == expected
    fetched = hub.fetched_data()
    for path, _, _, files in SPLITS:
        assert sorted(fetched[: len(files)]) == files, path
        fetched = fetched[len(files) :]
    assert fetched == []
    assert not [request for request in hub.unknown if "/api/" in request]
    assert ask(environment(hub, home, HF_HUB_OFFLINE="1"), tmp_path) == expected
    # Not the CSV file, in which load_dataset makes a null of the answer None
    assert ask(environment(hub, home), tmp_path, compare=True, splits=-1) == [[True, True]] * (len(SPLITS) - 1)


@pytest.fixture
def project(tmp_path) -> Path:
    """The scripts and what they import, in a folder of their own."""
    folder = tmp_path / "project"
    for name in ("cropvlm", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    (folder / "scripts" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')  # all is installed here
    return folder


COMMANDS = re.findall(r"^(?:python3|bash) [^#\n]*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def smolvlm_of_512_px(tmp_path) -> Path:
    """A tiny SmolVLM with tiles of the real size, so that an image at the default resolution is a single one."""
    from transformers import Idefics3ForConditionalGeneration

    from miniature.tiny_models import build_smolvlm, save

    model, processor = build_smolvlm()
    model.config.vision_config.image_size, model.config.vision_config.patch_size = 512, 64
    larger = Idefics3ForConditionalGeneration(model.config)
    larger.generation_config = model.generation_config
    processor.image_processor.size = processor.image_processor.max_image_size = {"longest_edge": 512}
    return save(tmp_path / "smolvlm", larger, processor)


@pytest.mark.slow
def test_the_six_commands_with_their_defaults(hub, project, tmp_path, smolvlm_of_512_px, tiny_qwen):
    hub.add_folder("models", "HuggingFaceTB/SmolVLM-256M-Instruct", smolvlm_of_512_px)
    hub.add_folder("models", "Qwen/Qwen2.5-VL-7B-Instruct", tiny_qwen)
    hub.fetched.clear()
    env = environment(hub, tmp_path / "home", PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def call(command: str) -> str:
        options = {"cwd": project, "env": env, "capture_output": True, "text": True, "check": False, "timeout": 1500}
        done = subprocess.run(["bash", "-c", command], **options)
        assert done.returncode == 0, (command, done.stderr[-3000:])
        return done.stdout

    steps = ("create_dataset", "train_sft", "train_grpo", "generate_bbox", "generate_final", "vqa_accuracy")
    commands = [next(command.strip() for command in COMMANDS if step in command) for step in steps]
    call(f"{commands[0]} --push_to_hub someone/boxes")
    call(f"{commands[1]} --push_to_hub True --hub_model_id someone/sft --hub_private_repo True")
    for command in commands[2:5]:
        call(command)
    assert re.fullmatch(r"\d+\.\d{4}", call(commands[5]).splitlines()[-1])

    commit = hub.repositories["models", "HuggingFaceTB/SmolVLM-256M-Instruct"].resolve("main")
    meta = json.loads((project / "predictions" / "textvqa_base_answers.meta.json").read_text())
    assert meta["settings"]["model_files"] == commit
    record = json.loads((project / "models" / "sft_512" / "run.json").read_text())
    assert record["contents"]["base_model"] == record["contents"]["vqa_model"] == commit

    data = [path for path in hub.fetched_data() if path.startswith("lmms-lab/")]
    assert data == [f"lmms-lab/textvqa/data/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
    sent = hub.files("datasets", "someone/boxes")
    assert {"README.md", "teacher_report.json", "teacher_report.png"} <= sent.keys()
    assert {path.split("/")[0] for path in sent if path.endswith(".parquet")} == {"sft", "grpo"}
    assert hub.repositories["datasets", "someone/boxes"].private
    adapter = hub.files("models", "someone/sft")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= adapter.keys()
    assert hub.repositories["models", "someone/sft"].private
