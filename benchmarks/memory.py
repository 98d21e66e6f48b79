"""The memory of a script while it runs."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


@dataclass
class Watched:
    """peaks: bytes, the highest reading in each tenth of the work; 0 for a tenth without a reading."""

    exit_code: int
    seconds: float
    peaks: list[int]


def own_memory(pid: int) -> int:
    """Bytes of anonymous and shared memory of a process and its descendants.

    A page that several of them have, as after a fork, counts once (proportional set size). Pages of memory-mapped files
    on disk are the system's cache, can be dropped at any time and do not count.
    """
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if int(fields["Pid"]) == pid:
                rollup = (status.parent / "smaps_rollup").read_text().splitlines()[1:]
                parts = dict(line.split(":", 1) for line in rollup)
                total += sum(int(parts.get(key, "0 kB").split()[0]) * 1024 for key in ("Pss_Anon", "Pss_Shmem"))
            elif int(fields["PPid"]) == pid:
                total += own_memory(int(fields["Pid"]))
        except OSError:  # it has ended
            continue
    return total


def watch(script: str, flags: dict[str, object], journal: Path, rows: int) -> Watched:
    """Run a script of this repository and read its memory every second. rows: that its journal will hold in the end."""
    argv = [sys.executable, str(REPO / script), *(str(word) for pair in flags.items() for word in pair)]
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    start, tenth, peaks = time.monotonic(), 0, [0] * 10
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        tenth = max(tenth, min(9, 10 * rows_in(journal) // rows))
        peaks[tenth] = max(peaks[tenth], own_memory(process.pid))
        time.sleep(1)
    return Watched(process.returncode, time.monotonic() - start, peaks)


def rows_in(journal: Path) -> int:
    """Number of rows in a journal; 0 without one."""
    try:
        return max(0, journal.read_bytes().count(b"\n") - 1)  # the first line holds the settings
    except FileNotFoundError:
        return 0
