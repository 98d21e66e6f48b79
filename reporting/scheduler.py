"""Stages run side by side, one on each GPU; a signal ends them, to be resumed."""

import contextlib
import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from reporting.plan import Stage, unfinished

GRACE = 30  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1
# Queues warn with the last two before they kill.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal asked the driver to end; not an error of any stage."""

    def __init__(self, number: int):
        super().__init__(number)
        warned = number in (signal.SIGUSR1, signal.SIGUSR2)
        self.exit_code = COMPLETE_WITH_FAILURES if warned else 128 + number


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

    def run(self) -> None:
        """Run all stages. Raises `Interrupted` on a signal, after the running stages have ended."""
        with listening() as signals:
            while self._start_all() or self.running:
                if number := next_signal(signals):
                    self._end_all(signals)
                    raise Interrupted(number)
                for gpu, (stage, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[gpu]
                        self._ended(stage, process.returncode)

    def _start_all(self) -> bool:
        """Start a stage on every free GPU for which there is one; whether any was started."""
        started = False
        for gpu in self.gpus:
            while gpu not in self.running and (stage := self._next()):
                say(f"== GPU {gpu}: {stage.name}: {shlex.join(['python3', *stage.command])}")
                try:
                    self.running[gpu] = stage, start([sys.executable, *stage.command, "--gpu", str(gpu)])
                    started = True
                except OSError as error:  # no more processes, for instance
                    say(f"{stage.name} cannot start: {error.strerror}")
                    self.failed.append(stage.name)
        return started

    def _ended(self, stage: Stage, code: int) -> None:
        good = code in (0, COMPLETE_WITH_FAILURES) and stage.done
        self.finished.add(stage.name) if good else self.failed.append(stage.name)

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

    def _end_all(self, signals: int) -> None:
        """End the running stages with all their processes; a second signal ends the patience."""
        self.interrupted = [stage.name for stage, _ in self.running.values()]
        processes = [process for _, process in self.running.values()]
        for process in processes:
            signal_group(process, signal.SIGTERM)
        end = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if next_signal(signals, end - time.monotonic()):
                break
        for process in processes:
            signal_group(process, signal.SIGKILL)  # and what a stage has left behind


def start(command: list[str]) -> subprocess.Popen:
    """Start a command that leads a process group of its own and is killed when this process dies, however it does."""
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
def listening() -> Iterator[int]:
    """Collect `SIGNALS` and the ends of children in a pipe, and give the end to read from.

    Also SIGINT where a shell had it ignored; not SIGHUP under nohup. A handler that raised would do so anywhere, as
    within a fork, where Python drops the exception.
    """
    ignored = [number for number in (signal.SIGHUP,) if signal.getsignal(number) is signal.SIG_IGN]
    numbers = [number for number in (*SIGNALS, signal.SIGCHLD) if number not in ignored]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


def next_signal(signals: int, seconds: float | None = None) -> int | None:
    """Wait until a signal or the end of a child, or so many seconds; return the signal, None for a child."""
    ready, _, _ = select.select([signals], [], [], seconds)
    return next((number for number in os.read(signals, 4096) if number != signal.SIGCHLD), None) if ready else None
