"""The table of benchmarks as published, and how a data set is recognised and named."""

import pytest

from cropvlm.data.catalog import BENCHMARKS, dataset_name, find_benchmark, locate

TABLE = {  # id, configuration, split, metric
    "textvqa": ("lmms-lab/textvqa", None, "validation", "vqa"),
    "docvqa": ("lmms-lab/DocVQA", "DocVQA", "validation", "anls"),
    "infovqa": ("lmms-lab/DocVQA", "InfographicVQA", "validation", "anls"),
    "stvqa": ("danjacobellis/stvqa_task1", None, "train", "anls"),
    "vstar": ("craigwu/vstar_bench", None, "test", "letter"),
    "hrbench4k": ("DreamMr/HR-Bench", "hrbench_version_split", "hrbench_4k", "letter"),
    "hrbench8k": ("DreamMr/HR-Bench", "hrbench_version_split", "hrbench_8k", "letter"),
}


def test_the_table():
    assert {b.name: (b.hub_id, b.config, b.split, b.metric) for b in BENCHMARKS.values()} == TABLE


@pytest.mark.parametrize(
    ("path", "location", "benchmark"),
    [
        ("hrbench8k@v1", ("DreamMr/HR-Bench", "hrbench_version_split", "v1"), "hrbench8k"),
        ("lmms-lab-encoder/DocVQA:DocVQA@refs/pr/1", ("lmms-lab-encoder/DocVQA", "DocVQA", "refs/pr/1"), "docvqa"),
        ("me/mine@abc", ("me/mine", None, "abc"), None),
        ("FOLDER/a@b:c", ("FOLDER/a@b:c", None, None), None),
    ],
)
def test_where_a_data_set_lies(tmp_path, path, location, benchmark):
    (tmp_path / "a@b:c").mkdir()
    path = path.replace("FOLDER", str(tmp_path))
    assert locate(path) == (location[0].replace("FOLDER", str(tmp_path)), *location[1:])
    found = find_benchmark(path)
    assert (found and found.name) == benchmark


def test_dataset_name(tmp_path):
    (tmp_path / "stvqa").mkdir()
    given = [("someone/other:part", None), ("someone/other", "vstar"), (f"{tmp_path}/stvqa/.", None)]
    assert [dataset_name(*each) for each in given] == ["other_part", "vstar", "stvqa"]
