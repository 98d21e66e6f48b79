"""Rows split over the processes of `accelerate launch`."""

import datetime
import os
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object


def rank() -> int:
    """The number of this process under `accelerate launch`, else 0."""
    return int(os.environ.get("RANK", 0))


def num_processes() -> int:
    """How many processes `accelerate launch` has started, else 1."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device_index(gpu: int) -> int:
    """The GPU of this process: `--gpu`, or its own one under `accelerate launch` unless that asks for the CPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if num_processes() > 1 and gpu >= 0 else gpu


def worker_count(num_workers: int | None, device_type: str) -> int:
    """Resolve `--num_workers`: on a CPU the model needs the cores itself."""
    if num_workers is not None:
        return num_workers
    if device_type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores - 1))


def shard(rows: Any) -> Any:
    """This process's share of `rows`, a Dataset or a list (or None): a run of neighbours."""
    if rows is None or num_processes() == 1:
        return rows
    start, stop = (len(rows) * r // num_processes() for r in (rank(), rank() + 1))
    return rows[start:stop] if isinstance(rows, list) else rows.select(range(start, stop))


def exchange(items: list) -> list:
    """The items of all processes, on each of them; waits for the slowest."""
    if num_processes() == 1:
        return items
    # gloo on whatever device the models run: only a few megabytes of text pass, and the wait may be long.
    PartialState(cpu=True, timeout=datetime.timedelta(days=7))
    return gather_object(items)


def gather(records: list[dict], ids: list) -> list[dict]:
    """The records of all processes in the order of `ids`."""
    by_id = {record["question_id"]: record for record in exchange(records)}
    return [by_id[i] for i in ids]
