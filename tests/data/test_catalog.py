"""The table of benchmarks as published, and how a data set is recognised and named."""

import subprocess
import sys
from pathlib import Path

import pytest

from cropvlm.data.catalog import BENCHMARKS, benchmark_by_columns, dataset_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "hub_id", "config", "split", "metric", "instruction"),
    [
        ("textvqa", "lmms-lab/textvqa", None, "validation", "vqa", None),
        ("docvqa", "lmms-lab/DocVQA", "DocVQA", "validation", "anls", None),
        ("infovqa", "lmms-lab/DocVQA", "InfographicVQA", "validation", "anls", None),
        ("stvqa", "danjacobellis/stvqa_task1", None, "train", "anls", None),
        (
            "vstar",
            "craigwu/vstar_bench",
            None,
            "test",
            "letter",
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            "hrbench4k",
            "DreamMr/HR-Bench",
            "hrbench_version_split",
            "hrbench_4k",
            "letter",
            "Answer the option letter directly.",
        ),
        (
            "hrbench8k",
            "DreamMr/HR-Bench",
            "hrbench_version_split",
            "hrbench_8k",
            "letter",
            "Answer the option letter directly.",
        ),
    ],
)
def test_the_table(name, hub_id, config, split, metric, instruction):
    entry = BENCHMARKS[name]
    assert (entry.hub_id, entry.config, entry.split) == (hub_id, config, split)
    assert (entry.metric, entry.instruction) == (metric, instruction)


@pytest.fixture
def copies(tmp_path) -> Path:
    (tmp_path / "stvqa").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "dataset", "name"),
    [
        ("docvqa", None, "docvqa"),
        ("lmms-lab/textvqa", None, "textvqa"),
        ("lmms-lab-encoder/DocVQA:InfographicVQA", None, "infovqa"),
        ("someone/other", None, "other"),
        ("someone/other:part", None, "other_part"),
        ("someone/other", "vstar", "vstar"),
        ("FOLDER/stvqa/", None, "stvqa"),
        ("FOLDER/stvqa/.", None, "stvqa"),
    ],
)
def test_dataset_name(copies, path, dataset, name):
    assert dataset_name(path.replace("FOLDER", str(copies)), dataset) == name


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["image", "question", "question_id", "answers"], "textvqa"),
        (["image", "question", "answers"], "textvqa"),  # a concatenated mixture
        (["image", "question", "answer"], "stvqa"),
        (["image", "question", "questionId", "answers"], "docvqa"),
        (["image", "text", "label", "question_id"], "vstar"),
        (["image", "question", "index", "A", "B", "C", "D", "answer"], "hrbench4k"),
        (["picture"], "textvqa"),
    ],
)
def test_columns_decide_where_the_name_does_not(columns, name):
    assert benchmark_by_columns(columns).name == name


def test_a_script_parses_its_flags_without_the_library():
    code = "import sys, cropvlm.data.rows; sys.exit(bool({'datasets', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
