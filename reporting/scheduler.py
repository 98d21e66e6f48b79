"""Stages run side by side, one on each GPU; a signal ends them, to be resumed."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator

from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from reporting.plan import Stage

GRACE = 30  # seconds between SIGTERM and SIGKILL


class Interrupted(BaseException):
    """A signal asked the driver to end; not an error of any stage."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


class Scheduler:
    """Runs stages on GPUs, one at a time on each; a stage begins when those it needs are done.

    After `run`, `failed` has the names of stages that failed, `left_out` those of stages that need one of these.
    """

    def __init__(self, stages: dict[str, Stage], gpus: list[int]):
        self.waiting = {name: stage for name, stage in stages.items() if not stage.done}
        self.known, self.finished = set(stages), {name for name in stages if name not in self.waiting}
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.running: dict[str, subprocess.Popen] = {}
        self.gpus, self.changed = gpus, threading.Condition()

    def run(self) -> None:
        """Run all stages. Raises `Interrupted` on a signal, after the running stages have ended."""
        threads = [threading.Thread(target=self._work, args=(gpu,), daemon=True) for gpu in self.gpus]
        with raising_signals():
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except Interrupted:
                self._end()
                raise

    def _work(self, gpu: int) -> None:
        while (begun := self._begin(gpu)) is not None:
            stage, process = begun
            code = process.wait()
            with self.changed:
                del self.running[stage.name]
                good = code in (0, COMPLETE_WITH_FAILURES) and stage.done
                self.finished.add(stage.name) if good else self.failed.append(stage.name)
                self.changed.notify_all()

    def _begin(self, gpu: int) -> tuple[Stage, subprocess.Popen] | None:
        """Start a stage, which leads a process group of its own; None where none is left."""
        with self.changed:
            if (stage := self._next()) is None:
                return None
            print(f"== GPU {gpu}: {stage.name}: {shlex.join(stage.command)}", flush=True)
            command = [*stage.command, "--gpu", str(gpu)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            self.running[stage.name] = process
            return stage, process

    def _next(self) -> Stage | None:
        """Take a stage that can begin from those that wait; wait for one; None where none is left."""
        while True:
            gone = {*self.failed, *self.left_out}
            lost = [name for name, stage in self.waiting.items() if gone & set(stage.needs)]
            for name in lost:
                self.left_out.append(name)
                del self.waiting[name]
            if not self.waiting:
                return None
            for name, stage in self.waiting.items():
                if not lost and all(need in self.finished or need not in self.known for need in stage.needs):
                    return self.waiting.pop(name)
            if not lost:
                self.changed.wait()

    def _end(self) -> None:
        """Let no stage begin, and end the running ones with all their processes."""
        with self.changed:
            self.waiting.clear()
            processes = list(self.running.values())
            self.changed.notify_all()
        for process in processes:
            signal_group(process, signal.SIGTERM)
        with contextlib.suppress(Interrupted, subprocess.TimeoutExpired):  # a second signal ends the patience
            for process in processes:
                process.wait(GRACE)
        for process in processes:
            signal_group(process, signal.SIGKILL)  # and what a stage has left behind


def signal_group(process: subprocess.Popen, number: int) -> None:
    """Send a signal to all processes of a group, if any is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on SIGINT, SIGTERM and SIGHUP, also where a shell had them ignored."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
