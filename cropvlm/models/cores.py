"""The cores that threads and worker processes may use."""

import contextlib
import math
import os
import re
from pathlib import Path


def cpu_count(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of cores that this process may use: a container's CPU quota, rounded up, where it has one.

    own: the control groups of this process; mounted: the files of all groups. A container sees its own as the root.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = [""]
    with contextlib.suppress(OSError):  # not Linux
        groups += re.findall(r"^\d+:(?:cpu|cpu,cpuacct)?:/(.*)$", own.read_text(), re.MULTILINE)
    for group in groups:
        for part, names in ("", ["cpu.max"]), ("cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):  # cgroup v2 and v1
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max 100000": no quota
                texts = [(mounted / part / group / name).read_text() for name in names]
                quota, period = map(int, " ".join(texts).split())
                cores = min(cores, math.ceil(quota / period)) if quota > 0 else cores
    return cores
