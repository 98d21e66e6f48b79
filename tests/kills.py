"""A piece of work in a forked process, killed at any of its file-system events."""

import os
import signal
import sys
from collections.abc import Callable

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def run_forked(work: Callable[[], object], kill_at: int | None = None) -> tuple[int, int]:
    """Run `work` in a child of this process; return its exit code and the number of its events.

    The code is -SIGKILL where the child was killed, just before event number `kill_at`. An event is a file opened for
    writing, renamed or removed, or a folder made or removed, by Python.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, kill_at, writer)
    os.close(writer)
    with os.fdopen(reader) as events:
        count = len(events.read())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), count


def _work(work: Callable[[], object], kill_at: int | None, writer: int) -> None:
    import torch

    count = 0

    def count_event(event: str, details: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in EVENTS:
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        os.write(writer, b".")

    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent are not there
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(count_event)
        work()
        code = 0
    except BaseException as error:
        code = 2 if type(error).__name__ == "UserError" or isinstance(error, ValueError) else 1
    finally:
        os._exit(code)
