"""Scripts as processes of their own: killed half-way, or several of one launch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def run_script(argv: list) -> None:
    subprocess.run([sys.executable, *map(str, argv)], check=True, stderr=subprocess.DEVNULL, cwd=REPO)


def kill_script(argv: list, journal: Path, rows: int) -> None:
    """Start a script and end it by SIGKILL once its journal holds so many rows."""
    process = subprocess.Popen([sys.executable, *map(str, argv)], stderr=subprocess.DEVNULL, cwd=REPO)
    while not journal.exists() or journal.read_text().count("\n") < 1 + rows:  # the first line holds the settings
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def launch_script(argv: list) -> subprocess.CompletedProcess:
    """Run a script as two processes of `accelerate launch`. Without --multi_gpu and a GPU it would start only one."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, *map(str, argv)], capture_output=True, text=True, env=environment, cwd=REPO, check=False
    )
