"""Stages run side by side, one on each GPU; a signal ends them, to be resumed."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from reporting.plan import Stage, unfinished

GRACE = 30  # seconds between SIGTERM and SIGKILL
POLL = 0.1  # seconds between looks at signals and stages
PR_SET_PDEATHSIG = 1
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # of a queue, before it kills


class Scheduler:
    """Runs stages on GPUs, one at a time on each; a stage begins when those it needs are done.

    After `run`, `failed` has the names of stages that failed, `left_out` those of stages that need one of these, and
    `interrupted` those that a signal ended.
    """

    def __init__(self, stages: dict[str, Stage], gpus: list[int]):
        self.waiting = unfinished(stages)
        self.finished = stages.keys() - self.waiting.keys()
        self.gpus, self.known = gpus, set(stages)
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.interrupted: list[str] = []
        self.running: dict[int, tuple[Stage, subprocess.Popen]] = {}  # by GPU

    def run(self) -> int | None:
        """Run all stages. Returns the exit code for a signal that ended them, None without one."""
        with collected_signals() as signals:
            while not signals and self._start_all():
                time.sleep(POLL)
                for gpu, (stage, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[gpu]
                        good = process.returncode in (0, COMPLETE_WITH_FAILURES) and stage.done
                        self.finished.add(stage.name) if good else self.failed.append(stage.name)
            if not signals:
                return None
            self._end_all(signals)
        return COMPLETE_WITH_FAILURES if signals[0] in WARNINGS else 128 + signals[0]

    def _start_all(self) -> bool:
        """Start a stage on every free GPU for which there is one; whether any stage is running."""
        for gpu in self.gpus:
            while gpu not in self.running and (stage := self._next()):
                say(f"== GPU {gpu}: {stage.name}: {shlex.join(['python3', *stage.command])}")
                try:
                    self.running[gpu] = stage, start([sys.executable, *stage.command, "--gpu", str(gpu)])
                except OSError as error:  # no more processes, for instance
                    say(f"{stage.name} cannot start: {error.strerror}")
                    self.failed.append(stage.name)
        return bool(self.running)

    def _next(self) -> Stage | None:
        """Take a waiting stage whose needs are done; those whose needs cannot be done are left out."""
        for name, stage in list(self.waiting.items()):
            needs = self.known & set(stage.needs)
            if needs & {*self.failed, *self.left_out}:
                self.left_out.append(name)
                del self.waiting[name]
            elif needs <= self.finished:
                return self.waiting.pop(name)
        return None

    def _end_all(self, signals: list[int]) -> None:
        """End the running stages with all their processes; at a further signal, without waiting for them."""
        self.interrupted = [stage.name for stage, _ in self.running.values()]
        processes = [process for _, process in self.running.values()]
        for process in processes:
            signal_group(process, signal.SIGTERM)
        seen, end = len(signals), time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < end and len(signals) == seen:
            time.sleep(POLL)
        for process in processes:
            signal_group(process, signal.SIGKILL)  # and what a stage has left behind


def start(command: list[str]) -> subprocess.Popen:
    """Start a command that leads a process group of its own and is killed when this process dies, even by SIGKILL."""
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def die_with_parent() -> None:
        if hasattr(libc, "prctl"):  # Linux
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # which died before the call
                os._exit(1)

    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)


def say(text: str) -> None:
    """Print a line; a full disk or a terminal that is gone keeps no stage from running."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def signal_group(process: subprocess.Popen, number: int) -> None:
    """Send a signal to all processes of a group, if any is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Yield a list to which the signals that end a run are added.

    Also SIGINT where a shell had it ignored; not SIGHUP under nohup. A handler that raised would do so anywhere, as
    within a fork, where Python drops the exception.
    """
    signals: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, *WARNINGS]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
