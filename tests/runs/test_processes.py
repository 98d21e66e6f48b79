"""Rows split over processes, and which environments say that there are several."""

import os
import subprocess
import sys

import pytest
from datasets import Dataset
from processes import REPO

from cropvlm.errors import UserError
from cropvlm.runs.processes import (
    LAUNCHER_VARIABLES,
    device_index,
    exchange,
    limit_threads,
    num_processes,
    rank,
    shard,
    worker_count,
)

LAUNCHED = {"WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}
LAUNCHED |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def set_to(**variables):
        for name in LAUNCHER_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "0"},
        LAUNCHED | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ],
    ids=["nothing", "ranks alone", "a launch of one"],
)
def test_one_process(environment, variables):
    environment(**variables)
    assert (num_processes(), rank(), device_index(3), device_index(-1)) == (1, 0, 3, -1)
    assert shard([1, 2, 3]) == [1, 2, 3]
    assert exchange([1]) == [1]
    assert worker_count(None, "cuda") >= 1
    given = [(3, "cuda"), (0, "cuda"), (None, "cpu"), (2, "cpu")]
    assert [worker_count(*each) for each in given] == [3, 0, 0, 2]


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": "2", "RANK": "1"}, LAUNCHED | {"MASTER_PORT": ""}], ids=["size and rank", "no port"]
)
def test_an_environment_that_no_launcher_makes_is_refused(environment, variables):
    environment(**variables)
    for ask in (num_processes, rank):
        with pytest.raises(UserError, match="as no launcher does .*RANK=.*; unset WORLD_SIZE"):
            ask()


@pytest.mark.parametrize("rows", [0, 2, 10])
def test_shards_are_all_rows_in_order(environment, rows):
    shared = {"list": [], "Dataset": []}
    for i in range(3):
        environment(**LAUNCHED | {"RANK": str(i), "LOCAL_RANK": str(i)})
        assert (num_processes(), rank(), device_index(0), device_index(-1)) == (3, i, i, -1)
        shared["list"] += shard(list(range(rows)))
        shared["Dataset"] += list(shard(Dataset.from_dict({"i": list(range(rows))}))["i"])
        assert shard(None) is None
    assert shared == {"list": list(range(rows)), "Dataset": list(range(rows))}


def test_torch_gets_as_many_threads_as_the_quota_allows(monkeypatch):
    monkeypatch.setattr("cropvlm.runs.processes.cpu_count", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_workers_meet_in_a_folder_with_a_short_name(tmp_path):
    """The path of a socket may have 107 letters; with a longer one workers wait for ever."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    program = (
        "import multiprocessing.util, tempfile; from cropvlm.runs.processes import shorten_socket_paths as shorten\n"
        "shorten(); print(multiprocessing.util.get_temp_dir(), tempfile.gettempdir())"
    )
    options = {"capture_output": True, "text": True, "check": True, "cwd": REPO}
    done = subprocess.run([sys.executable, "-c", program], env={"TMPDIR": str(folder)}, **options)
    sockets, others = done.stdout.split()
    assert sockets.startswith("/tmp/pymp-")
    assert others == str(folder)
