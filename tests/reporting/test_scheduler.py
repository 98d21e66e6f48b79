"""The driver of stages: order, GPUs, failures, and signals."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import REPO, stopped

from reporting import scheduler
from reporting.plan import Stage
from reporting.scheduler import Scheduler


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*stages: Stage, gpus: tuple[int, ...] = (0,)) -> Scheduler:
    """A scheduler of these stages that has run."""
    driver = Scheduler({stage.name: stage for stage in stages}, list(gpus))
    driver.run()
    return driver


NOTING = """if True:
    import pathlib, sys
    _, name, code, _, gpu = sys.argv
    pathlib.Path(name).touch()
    open("log", "a").write(f"{name} {gpu} ")
    sys.exit(int(code))
"""


def made(name: str, code: int = 0, needs: tuple[str, ...] = ()) -> Stage:
    """A stage that notes its name and its GPU, and leaves a file."""
    return Stage(name, ("-c", NOTING, name, str(code)), (Path(name),), needs)


def test_a_failed_stage_is_named_and_the_others_go_on():
    Path("done").touch()
    stages = [made("done"), made("a", 1), made("b", needs=("a",)), made("c", needs=("b",)), made("d", 3, ("done",))]
    driver = run(*stages, gpus=(4,))
    assert Path("log").read_text() == "a 4 d 4 "  # 3 is complete, with failures named
    assert (driver.failed, driver.left_out) == (["a"], ["b", "c"])


def test_every_gpu_runs_one_stage_at_a_time_and_a_failure_stops_no_other():
    program = """if True:
        import os, pathlib, sys, time
        name, gpu = sys.argv[1], sys.argv[-1]
        os.close(os.open(f"busy{gpu}", os.O_CREAT | os.O_EXCL))  # fails where another one has this GPU
        time.sleep(0.2)
        os.remove(f"busy{gpu}")
        pathlib.Path("gpus").open("a").write(gpu)
        sys.exit(1) if name == "b" else pathlib.Path(name).touch()
    """
    needs = {"e": ("b",)}
    driver = run(*(Stage(n, ("-c", program, n), (Path(n),), needs.get(n, ())) for n in "abcdef"), gpus=(0, 1, 2))
    assert (driver.failed, driver.left_out) == (["b"], ["e"])
    assert set(Path("gpus").read_text()) == {"0", "1", "2"}
    assert all(Path(name).exists() for name in "acdf")


STUBBORN = """if True:
    import os, pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    pathlib.Path("pids.part").write_text(f"{os.getpid()} {child.pid}")
    os.rename("pids.part", "pids")
    time.sleep(1000)
"""


def test_a_stage_that_heeds_no_signal_is_killed_with_its_children(monkeypatch):
    monkeypatch.setattr(scheduler, "GRACE", 0.2)

    def interrupt() -> None:
        wait_for(Path("pids"))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(signal.SIGTERM)
    stages = Stage("a", ("-c", STUBBORN), (Path("a"),)), made("b", needs=("a",))
    driver = Scheduler({stage.name: stage for stage in stages}, [0])
    assert (driver.run(), driver.interrupted) == (128 + signal.SIGTERM, ["a"])
    assert_gone(Path("pids"))
    assert not Path("log").exists()  # b never began
    assert signal.getsignal(signal.SIGTERM) == before


# Step 1 of a world without models: it works until it is ended, or finishes at once where a file says so.
FAKE_STEP = """if True:
    import os, pathlib, subprocess, sys, time
    output = sys.argv[sys.argv.index("--output_path") + 1]
    with pathlib.Path("begun").open("a") as file:
        file.write(output + chr(10))
    if not pathlib.Path("quick").exists():
        child = subprocess.Popen(["sleep", "1000"])
        pathlib.Path(output + ".part").write_text(f"{os.getpid()} {child.pid}")
        os.rename(output + ".part", output + ".pids")
        time.sleep(1000)
    for part in ("_sft", "_grpo"):
        pathlib.Path(output + part).mkdir()
"""
CLAIMS = """
title: two training sets
source: made up
benchmarks: {rows: {path: rows}}
data:
  one: {sources: [rows], output: one}
  two: {sources: [rows], output: two}
answerers: {small: {title: small, model: vlm}}
croppers:
  a: {title: a, stage: SFT, model: models/a, trained_on: one, training: --max_steps 1}
  b: {title: b, stage: SFT, model: models/b, trained_on: two, training: --max_steps 1}
also:
  - {answerer: small, cropper: a}
  - {answerer: small, cropper: b}
"""


DRIVER = [sys.executable, str(REPO / "scripts/reproduce.py"), "0", "1", "--claims", "claims.yaml", "--only", "data/*"]


@pytest.fixture
def driver(tmp_path):
    """A function that starts a driver of two stages, with a signal ignored, and waits until both work."""
    (tmp_path / "create_dataset.py").write_text(FAKE_STEP)
    (tmp_path / "claims.yaml").write_text(CLAIMS)

    def start(ignored: int) -> subprocess.Popen:
        ignoring = lambda: signal.signal(ignored, signal.SIG_IGN)  # noqa: E731
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(DRIVER, cwd=tmp_path, preexec_fn=ignoring, **pipes)
        for name in ("one", "two"):
            wait_for(tmp_path / f"{name}.pids")
        return process

    return start


@pytest.mark.slow
# A shell ignores the first in the background; queues warn with the others.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 3), (signal.SIGUSR2, 3)])
def test_a_signal_ends_all_stages_and_the_next_run_goes_on(tmp_path, driver, number, code):
    process = driver(ignored=signal.SIGINT)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == "interrupted while running data/one, data/two; run the same command again to continue\n"
    for name in ("one", "two"):
        assert_gone(tmp_path / f"{name}.pids")
    (tmp_path / "quick").touch()
    again = subprocess.run(DRIVER, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert sorted((tmp_path / "begun").read_text().split()) == ["one", "one", "two", "two"]
    assert all((tmp_path / f"{name}_sft").exists() for name in ("one", "two"))
    assert again.returncode == 2  # nothing to report on
    assert again.stderr.count("\n") == 1


def test_under_nohup_a_hang_up_ends_nothing_and_stages_end_with_a_driver_that_is_killed(tmp_path, driver):
    process = driver(ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()
    process.wait()
    for name in ("one", "two"):
        assert_gone(tmp_path / f"{name}.pids", first=True)
        os.killpg(int((tmp_path / f"{name}.pids").read_text().split()[0]), signal.SIGKILL)  # the child of our own step


@pytest.mark.slow
def test_a_full_disk_ends_stages_that_are_named(tmp_path, driver):
    """The limit on the size of files stands in for it: nothing can be written here, nor to the log."""
    with Path("/dev/full").open("w") as log:
        nothing = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # noqa: E731
        streams = {"stdout": log, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(DRIVER, cwd=tmp_path, preexec_fn=nothing, timeout=120, check=False, **streams)
    assert done.returncode == 3
    assert "failed: data/one, data/two\n" in done.stderr


def test_a_stage_that_cannot_start_is_named_and_nothing_waits_for_it(monkeypatch, capsys):
    real, calls = subprocess.Popen, []

    def fails_once(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", fails_once)
    driver = run(made("a"), made("b", needs=("a",)), made("c"), gpus=(0, 1))
    assert (driver.failed, driver.left_out, driver.finished) == (["a"], ["b"], {"c"})
    assert "a cannot start: Resource temporarily unavailable" in capsys.readouterr().out


def test_what_a_stage_that_runs_again_is_needed_for_runs_again():
    Path("b").touch()  # older than a
    driver = run(made("a"), made("b", needs=("a",)), Stage("c", ("-c", "pass"), (Path("c"),)))
    assert Path("log").read_text() == "a 0 b 0 "
    assert driver.failed == ["c"]  # it ended well, without its files


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def assert_gone(note: Path, first: bool = False) -> None:
    """None of the processes that a file lists (or its first) runs any more."""
    assert stopped([int(pid) for pid in note.read_text().split()[: 1 if first else None]])
