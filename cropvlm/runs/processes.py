"""Threads and workers of this machine, and rows split over the processes of `accelerate launch`."""

import contextlib
import datetime
import multiprocessing.util
import os
import sys
import tempfile
from typing import Any

from cropvlm.errors import UserError
from cropvlm.models.cores import cpu_count

# What torch's launcher, which `accelerate launch` starts, sets for every one of its processes.
LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

LONGEST_TMPDIR = 60  # letters; a socket's path may have 107, and some 32 are added


def rank() -> int:
    """The number of this process among those of one launch; 0 without a launcher."""
    return int(os.environ["RANK"]) if num_processes() > 1 else 0


def num_processes() -> int:
    """The number of processes of this launch; 1 without a launcher.

    Raises `UserError` where the environment names several, but not all of a launcher's variables.
    """
    count = os.environ.get("WORLD_SIZE", "").strip()
    if count in ("", "1"):
        return 1
    if not all(os.environ.get(name) for name in LAUNCHER_VARIABLES):
        seen = ", ".join(f"{name}={os.environ.get(name, '')}" for name in LAUNCHER_VARIABLES)
        raise UserError(f"the environment names several processes as no launcher does ({seen}); unset WORLD_SIZE")
    return int(count)


def device_index(gpu: int) -> int:
    """The GPU of this process: `gpu`, or its own of several processes; -1, the CPU, stays."""
    return int(os.environ["LOCAL_RANK"]) if num_processes() > 1 and gpu >= 0 else gpu


def limit_threads() -> None:
    """Limit torch's threads to a container's CPU quota, unless $OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ and (cores := cpu_count()) < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores)  # read when torch is loaded
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(cores)


def worker_count(num_workers: int | None, device_type: str) -> int:
    """The number of processes that prepare images. By default none on a CPU: the model needs the cores itself."""
    if num_workers is not None:
        return num_workers
    if device_type == "cpu":
        return 0
    processes_here = int(os.environ["LOCAL_WORLD_SIZE"]) if num_processes() > 1 else 1
    return max(1, min(16, cpu_count() // processes_here - 1))


def shorten_socket_paths() -> None:
    """Let worker processes meet in /tmp if TMPDIR is too long for the path of a socket: they would wait for ever."""
    with contextlib.suppress(FileNotFoundError):  # every disk is full; what needs to write says so
        wanted = tempfile.gettempdir()
        if len(os.fsencode(wanted)) > LONGEST_TMPDIR:
            tempfile.tempdir = "/tmp"
            multiprocessing.util.get_temp_dir()  # made now, and taken by every worker
            tempfile.tempdir = wanted  # for anything else


def shard(rows: Any) -> Any:
    """This process's share of `rows`, a Dataset or a list (or None): consecutive rows."""
    if rows is None or num_processes() == 1:
        return rows
    start, stop = (len(rows) * r // num_processes() for r in (rank(), rank() + 1))
    return rows[start:stop] if isinstance(rows, list) else rows.select(range(start, stop))


def exchange(items: list) -> list:
    """The items of all processes, on each of them; waits for the slowest."""
    if num_processes() == 1:
        return items
    from accelerate import PartialState  # imports torch
    from accelerate.utils import gather_object

    # gloo, on GPUs too: only a few megabytes of text pass, and the wait may be long.
    PartialState(cpu=True, timeout=datetime.timedelta(days=7))
    return gather_object(items)
