"""Start and end of the scripts: flags, logging, exit code, and one line on stderr for a user's mistake."""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from processes import REPO

from cropvlm.errors import UnreadableImage, UserError, failure, listed
from cropvlm.runs import cli
from cropvlm.runs.cli import ArgumentParser, run, start_logging


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code


def raising(error: Exception):
    def main():
        raise error

    return main


def test_a_mistake_of_the_users_is_one_line_and_code_2(capsys):
    assert exit_code(raising(UserError("split 'tset' is not there;\n  there are:\n\ttest, train"))) == 2
    out, err = capsys.readouterr()
    assert err == "error: split 'tset' is not there; there are: test, train\n"
    assert out == ""


def run_code(code: str, *args: object, **options) -> subprocess.CompletedProcess:
    """A program in a process of its own. options: of `subprocess.run`, in place of captured streams."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": REPO, "text": True} | options
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], check=False, **options)


def test_whatever_a_library_raises_becomes_one_line_with_its_cause(caplog):
    cause = TypeError("of a loader\n\tin two lines")
    caplog.set_level("DEBUG", logger="cropvlm")
    with pytest.raises(UnreadableImage) as caught, failure("m: cannot be loaded", UnreadableImage):
        raise cause
    assert str(caught.value) == "m: cannot be loaded (of a loader in two lines)"
    assert caught.value.__cause__ is cause
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("error", [UserError("m: a mistake"), KeyboardInterrupt()], ids=repr)
def test_a_mistake_that_is_told_and_an_interrupt_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, failure("m: cannot be loaded", UnreadableImage):
        raise error
    assert caught.value is error


def test_a_wrong_flag_is_one_short_line_without_the_usage_block_and_the_value_of_a_key(capsys):
    flags = ["--api_key", "sk-1", "--hub_token=sk-1", "--" + "x" * 5000, "--colour", "red"]
    assert exit_code(lambda: ArgumentParser("A script.").parse_args(flags)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unrecognized arguments: --api_key *** --hub_token *** --xxx")
    assert said.endswith("xxx... --colour red; --help lists the flags\n")
    assert len(said) < 400


def test_every_copy_of_the_key_is_replaced_but_no_placeholder(monkeypatch):
    key = "sk-Proj_x9&Y/z+0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", f" {key}\n")
    assert cli.redact(f"the key {key} {key}{key}") == "the key *** ******"
    for text in ("", "Coke", "sk-Proj", key[:-1]):
        assert cli.redact(text) == text
    for placeholder in ("", "EMPTY", "1234"):
        monkeypatch.setenv("OPENAI_API_KEY", placeholder)
        assert cli.redact("EMPTY, none, token 1234 x") == "EMPTY, none, token 1234 x"


def test_the_key_is_shown_neither_in_an_error_nor_in_the_log(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123")
    monkeypatch.setattr(logging.root, "handlers", [])

    def main():
        start_logging(argparse.Namespace(verbose=True, model="sk-0123"))
        raise UserError("'sk-0123' is not a number") from ValueError("sk-0123")

    assert exit_code(main) == 2
    err = capsys.readouterr().err
    assert "sk-0123" not in err
    assert err.splitlines()[0] == "verbose=True model=***"
    assert err.splitlines()[-1] == "error: '***' is not a number"


def test_a_list_in_a_message_has_few_and_short_items():
    assert listed(["1", "'a'"]) == "1, 'a'"
    assert listed(list("abcd"), limit=3, separator="; ") == "a; b; c; ..."
    assert listed(["x" * 10**6], length=10) == "xxxxxxx..."


@pytest.mark.parametrize("length", [1, 100_000])  # written as Python ends, and before
def test_output_that_cannot_be_written_is_one_line(length):
    program = f"from cropvlm.runs.cli import run; run(lambda: print('x' * {length}))"
    reader, closed = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(closed, "w") as unread:
        for stdout, problem in ((full, "No space left on device; free space and"), (unread, "Broken pipe;")):
            done = run_code(program, stdout=stdout)
            assert (done.returncode, done.stderr) == (2, f"error: cannot write: {problem} run the same command again\n")


def test_a_run_goes_on_when_the_disk_of_its_log_is_full():
    program = "import sys; from cropvlm.runs.cli import run; run(lambda: sys.stderr.write('lost') and print('kept'))"
    with Path("/dev/full").open("w") as full:
        done = run_code(program, stderr=full)
    assert (done.returncode, done.stdout) == (0, "kept\n")


SHOWING = """
import sys, time
from cropvlm.runs.cli import run
def main():
    print("begun", flush=True)
    sys.stdin.read()  # until the terminal has gone
    for _ in range(3):
        print("shown", file=sys.stderr, flush=True)
        print("shown", flush=True)
    open(sys.argv[1], "w").write("done")
run(main)
"""


def test_a_run_goes_on_when_its_terminal_has_gone(tmp_path):
    """Started with nohup or in a session of its own, as a cluster's job is, it gets no signal, but writing fails."""
    ours, theirs = os.openpty()
    call = [sys.executable, "-c", SHOWING, str(tmp_path / "file")]
    process = subprocess.Popen(
        call, cwd=REPO, start_new_session=True, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert os.read(ours, 5) == b"begun"
    os.close(ours)
    process.communicate()
    assert (process.returncode, (tmp_path / "file").read_text()) == (0, "done")


def test_an_error_of_a_proxy_or_certificate_names_its_variable(monkeypatch, capsys):
    def main():
        with failure("m: not available on the Hub"):
            httpx2.Client()

    monkeypatch.setenv("SSL_CERT_FILE", __file__)  # there, so not the reason
    monkeypatch.setenv("all_proxy", "socks://a:1")
    assert exit_code(main) == 2
    assert capsys.readouterr().err.endswith("; check the environment's all_proxy\n")


def test_a_notebooks_backend_of_plots_does_no_harm(monkeypatch):
    code = "from cropvlm.runs.cli import run; run(lambda: __import__('matplotlib.figure') and None)"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    assert run_code(code, env=environment).returncode == 0


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug")])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        run(raising(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("flag_type", "good", "bad"),
    [
        (cli.nonempty, {" a b ": " a b "}, ["", " "]),
        (cli.file_name, {"a.b": "a.b"}, ["", "a/b"]),
        (cli.positive, {"1": 1, "007": 7}, ["", "0", "1.5", "one", "9" * 5000]),
        (cli.workers, {"0": 0}, ["-1", "100000"]),
        (cli.port, {"80": 80}, ["0", "65536"]),
        (cli.pixels, {"2": 2}, ["1", "16385", "nan"]),
        (cli.batch_size, {"auto": "auto", "8": 8}, ["", "0", "Auto"]),
        (cli.seconds, {"0.5": 0.5}, ["0", "nan", "1e400", "two"]),
        (cli.factor, {"45": 45.0}, ["0"]),
        (cli.fraction, {"1": 1.0, "0.5": 0.5}, ["0", "1.01"]),
    ],
)
def test_flag_types(flag_type, good, bad):
    for text, value in good.items():
        assert flag_type(text) == value
        assert type(flag_type(text)) is type(value)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected") as error:
            flag_type(text)
        assert len(str(error.value)) < 200


@pytest.fixture
def logged():
    """Loggers as they were, afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "cropvlm", "miniature", "__main__")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_the_log_is_this_projects_own(logged, caplog):
    start_logging(argparse.Namespace(verbose=False, gpu=0))
    assert caplog.messages == ["verbose=False gpu=0"]
    for name in ("httpx", "huggingface_hub.utils._http", "openai", "transformers.trainer", "cropvlm.data.rows"):
        logging.getLogger(name).info("HTTP Request: GET %s", name)
        logging.getLogger(name).warning("warning of %s", name)
    assert [text for text in caplog.messages if text.startswith("HTTP")] == ["HTTP Request: GET cropvlm.data.rows"]
    assert len([text for text in caplog.messages if text.startswith("warning")]) == 4  # not the Hub client's retries


def test_an_accent_on_a_terminal_that_only_knows_ascii():
    program = "import sys; from cropvlm.runs.cli import run; run(lambda: print('é') or print('no é', file=sys.stderr))"
    done = run_code(program, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\n", "no \\xe9\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's own way is kept")
def test_worker_processes_are_forked_where_python_would_not():
    """Rows are made by functions within functions, which cannot be pickled; forkserver is Python 3.14's default."""
    program = "import multiprocessing as mp; from cropvlm.runs.cli import run; mp.set_start_method('forkserver'); "
    done = run_code(program + "run(lambda: print(mp.get_start_method()))")
    assert (done.stdout, done.stderr, done.returncode) == ("fork\n", "", 0)


# What takes seconds to import, so that --help and a mistake in the flags would wait for it.
SLOW_TO_IMPORT = {"torch", "transformers", "datasets", "accelerate", "peft", "trl", "openai", "pandas"}
PARSE = f"""
import runpy, sys
script, *flags = sys.argv = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    print(ended.code, *sorted({SLOW_TO_IMPORT} & sys.modules.keys()))
"""
BBOX = ("generate_bbox.py", "--model_path", "m")


@pytest.mark.parametrize(
    "command",
    [
        (*BBOX, "--dataset", "textvqa", "docvqa", "--output", "one.json"),
        ("generate_final_answers.py", "--help"),
        ("generate_final_answers.py", "--modes", "base", "--bbox", "no_such_file.json"),
        ("create_dataset.py", "--growth", "1", "2", "3", "4", "nan"),
        ("vqa_accuracy.py", "--metric", "bleu"),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_come_before_slow_imports(command, tmp_path):
    done = run_code(PARSE, REPO / command[0], *command[1:], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)})
    assert done.stdout.splitlines()[-1] == ("0" if "--help" in command else "2")
    assert done.stderr.count("\n") == ("--help" not in command) or "no_such_file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_module_in_place_of_the_library_is_one_line(tmp_path):
    (tmp_path / "datasets.py").touch()
    paths = f"{tmp_path}{os.pathsep}{REPO}"
    done = run_code(PARSE, REPO / BBOX[0], *BBOX[1:], env=os.environ | {"PYTHONPATH": paths})
    assert (done.stdout.split()[0], done.stderr.count("\n")) == ("2", 1)
    assert f"{tmp_path}/datasets.py hides the library" in done.stderr
