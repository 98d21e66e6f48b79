"""Scripts as processes of their own: killed half-way, or several of one launch."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def call_script(monkeypatch, script: str, *flags: object) -> int:
    """The exit code of `python3 SCRIPT FLAGS`, run in this process."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPO / script), run_name="__main__")
    return stopped.value.code


# Two processes. Without --multi_gpu and a GPU it would start only one; port 0 is any that is free.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--main_process_port", "0"]


def launch_script(argv: list) -> subprocess.CompletedProcess:
    """Run a script as two processes of `accelerate launch`."""
    command, environment = [*LAUNCH, *map(str, argv)], {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPO, check=False)


def kill_launch(argv: list, journals: list[Path], rows: int) -> None:
    """Launch a script and kill all its processes once each of their journals holds `rows` rows."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*LAUNCH, *map(str, argv)], stderr=subprocess.DEVNULL, env=environment, cwd=REPO)
    while not all(journal.exists() and journal.read_text().count("\n") > rows for journal in journals):
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    children = [file.read_text() for file in Path(f"/proc/{process.pid}/task").glob("*/children")]
    for pid in (process.pid, *map(int, " ".join(children).split())):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended may wait for a while to be forgotten."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stopped(pids: list[int]) -> bool:
    """Whether processes end within a few seconds; those that do not are killed."""
    end = time.monotonic() + 10
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return not left
