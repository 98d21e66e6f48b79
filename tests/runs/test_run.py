"""The run of a generating script: what it generates, writes, keeps and removes, whenever it is killed."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from cropvlm.runs.predictions import read_meta, read_predictions
from cropvlm.runs.run import DuplicateOutput, Job, Output, Run

SOURCE = {"dataset_path": "d", "dataset": None, "split": None, "max_samples": None}


class Prompts:
    """Rows whose prompts are never looked at."""

    def __init__(self, name: str, rows: int):
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> str:
        return f"{self.name}{i}"


def output(path: Path, **settings) -> Output:
    def count(records: list[dict], seconds: float) -> dict:
        return {"rows": len(records), "failed": sum("failed" in record for record in records)}

    return Output(path, {"model": "m"} | settings, SOURCE, {"model": "m"}, count, str.strip)


def make_jobs(folder: Path, **settings) -> list[Job]:
    """Two data sets of three rows each, the first with one file to write, the second with two."""
    return [
        Job([1, 2, "3"], Prompts("first", 3), [output(folder / "first.json", **settings)]),
        Job([4, 5, 6], Prompts("second", 3), [output(folder / f"second_{i}.json", **settings) for i in (1, 2)]),
    ]


def generate(prompts, done):
    """A text per file for each row, but for row 1 of the second data set, which fails."""
    for i in range(len(prompts)):
        if i not in done:
            prompt = prompts[i]
            texts = [f" {prompt} "] if prompt.startswith("first") else [f" {prompt} ", f" {prompt} with crop "]
            yield i, ValueError("unreadable") if prompt == "second1" else texts


def do(folder: Path, generate=generate, **settings) -> int:
    with Run(make_jobs(folder, **settings), generate) as run:
        for job in run.unfinished():
            run.write(job, run.generate(job))
    return run.exit_code


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_writes_its_files_and_nothing_else(tmp_path, caplog):
    assert do(tmp_path) == 3
    assert read_predictions(tmp_path / "first.json") == [
        {"question_id": 1, "answer": "first0"},
        {"question_id": 2, "answer": "first1"},
        {"question_id": "3", "answer": "first2"},
    ]
    assert [r["answer"] for r in read_predictions(tmp_path / "second_2.json")] == [
        "second0 with crop",
        "",
        "second2 with crop",
    ]
    meta = read_meta(tmp_path / "second_1.json")
    assert meta["failed"] == [{"question_id": 5, "reason": "unreadable"}]
    assert meta["counts"] == {"rows": 3, "failed": 1}
    assert (meta["settings"], meta["models"], meta["dataset_path"]) == ({"model": "m"}, {"model": "m"}, "d")
    assert sorted(files(tmp_path)) == [
        *(
            "first.json",
            "first.meta.json",
            "second_1.json",
            "second_1.meta.json",
            "second_2.json",
            "second_2.meta.json",
        ),
    ]
    assert f"{tmp_path}/second_2.json: 1 failed: question_id 5: unreadable" in caplog.text


def test_one_error_for_all_files_of_a_row_is_logged_once(tmp_path, caplog):
    do(tmp_path)
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("question_id")] == [
        "question_id 5: unreadable"
    ]


def test_failures_are_listed_in_short_and_kept_whole(tmp_path, caplog):
    def fails(prompts, done):
        return ((i, ValueError("y" * 1000)) for i in range(100))

    made = output(tmp_path / "p.json")
    with Run([Job(["x" * 1000, *range(99)], Prompts("", 100), [made])], fails) as run:
        run.write(run.jobs[0], run.generate(run.jobs[0]))
    assert run.exit_code == 3
    assert all(len(record.getMessage()) < 10_000 for record in caplog.records)
    assert "100 failed: question_id 'xxx" in caplog.text
    assert len(read_meta(tmp_path / "p.json")["failed"]) == 100


@pytest.mark.parametrize(
    "meta", [[], {"settings": ["model"]}, {"settings": None, "failed": None}, {"settings": {}, "failed": 3}], ids=str
)
def test_a_meta_file_of_another_form_is_not_of_this_run(meta, tmp_path):
    assert do(tmp_path) == 3
    made = output(tmp_path / "second_1.json")
    assert made.is_written()
    (tmp_path / "second_1.meta.json").write_text(json.dumps(meta))
    assert not made.is_written()
    assert made.failures == []


def test_a_file_is_written_when_its_job_is_done(tmp_path):
    def ends(prompts, done):
        if prompts.name == "second":
            raise KeyboardInterrupt
        yield from generate(prompts, done)

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, Unwrapped(ends))
    assert sorted(files(tmp_path)) == ["first.json", "first.json.journal.jsonl", "first.meta.json"]


class Unwrapped:
    """A generator that looks at the prompt source behind a process's share."""

    def __init__(self, generate):
        self.generate = generate

    def __call__(self, share, done):
        return self.generate(share.prompts, done)


def test_a_run_that_ended_is_done_anew_and_one_that_did_not_goes_on(tmp_path):
    asked = []

    def counted(prompts, done):
        asked.append((prompts.name, list(done)))
        for i, texts in generate(prompts, done):
            if len(asked) == 2 and i == 1:
                raise KeyboardInterrupt
            yield i, texts

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, Unwrapped(counted))
    assert do(tmp_path, Unwrapped(counted)) == 3
    assert do(tmp_path, Unwrapped(counted)) == 3
    assert asked == [("first", []), ("second", []), ("second", [0]), ("first", []), ("second", [])]


def killed_at(event: int, folder: Path) -> bool:
    """Do the jobs in a child process; whether SIGKILL ended it, at its so many-th file-system event in `folder`."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(name, args):
            nonlocal seen
            if args and isinstance(args[0], (str, bytes, os.PathLike)) and str(folder) in os.fsdecode(args[0]):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        code = do(folder)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (signal.SIGKILL, 3 << 8)
    return status == signal.SIGKILL


def test_a_kill_at_any_event_ends_in_the_files_of_an_undisturbed_run(tmp_path):
    whole = tmp_path / "whole"
    do(whole)
    expected, event, killed_while_removing = files(whole), 0, 0
    while True:
        event += 1
        folder = tmp_path / f"killed{event:03d}"
        if not killed_at(event, folder):
            break
        left = files(folder) if folder.exists() else {}
        kept = {
            name: [json.loads(line)["question_id"] for line in content.splitlines()[1:]]
            for name, content in left.items()
            if name.endswith(".jsonl")
        }
        generated = []

        def counted(prompts, done, generated=generated):
            for i, texts in generate(prompts, done):
                generated.append(prompts[i])
                yield i, texts

        assert do(folder, counted) == 3
        assert files(folder) == expected, event
        # What was in the journals is not generated again; nor anything, if all files were there and a journal was left.
        if kept:
            complete = expected.keys() <= left.keys()
            known = 3 if complete or kept.get("first.json.journal.jsonl", []) == [1, 2, "3"] else 0
            assert len([g for g in generated if g.startswith("first")]) <= 3 - known, event
            assert not (complete and generated), event
            killed_while_removing += complete and "first.json.journal.jsonl" not in kept
    assert event > 30
    assert killed_while_removing >= 2


def test_settings_that_differ_are_rejected(tmp_path):
    def ends(prompts, done):
        yield 0, [" a "]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, ends, size=64)
    with pytest.raises(ValueError, match="size 64 there, 128 here"):
        do(tmp_path, size=128)


@pytest.mark.parametrize("line", ['{"question_id": 1}', '{"question_id": 1, "answer": null}', '{"question_id": true}'])
def test_journal_lines_that_are_not_records_are_named(tmp_path, line):
    def ends(prompts, done):
        yield 0, [" a "]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, ends)
    with (tmp_path / "first.json.journal.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match="line 3 of .*first.json.journal.jsonl is not readable; delete"):
        do(tmp_path)


def test_one_file_for_two_jobs_is_refused(tmp_path):
    jobs = [Job([1], Prompts("a", 1), [output(tmp_path / "a.json")]) for _ in range(2)]
    with pytest.raises(DuplicateOutput, match="a.json would be written 2 times"):
        Run(jobs, generate)


def test_a_second_run_in_the_same_place_is_refused_and_the_first_goes_on(tmp_path):
    """A lock belongs to a process: the second run is another one."""
    with Run(make_jobs(tmp_path), generate) as run:
        child = os.fork()
        if child == 0:
            try:
                do(tmp_path)
            except ValueError as error:
                os._exit(7 if "another run is writing here" in str(error) else 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 7 << 8
        for job in run.unfinished():
            run.write(job, run.generate(job))
    assert len(files(tmp_path)) == 6


def test_a_file_may_leave_rows_out(tmp_path):
    """The other file of the job has them; a row has as many texts as there are files with it."""
    short, whole = output(tmp_path / "short.json"), output(tmp_path / "whole.json")
    short.left_out = [2]
    job = Job([1, 2, 3], Prompts("p", 3), [whole, short])
    with Run([job], lambda prompts, done: [(0, ["a", "b"]), (1, ["c"]), (2, ValueError("unreadable"))]) as run:
        run.write(job, run.generate(job))
    assert [record["question_id"] for record in read_predictions(whole.path)] == [1, 2, 3]
    assert read_predictions(short.path) == [{"question_id": 1, "answer": "b"}, {"question_id": 3, "answer": ""}]
    assert read_meta(short.path)["left_out"] == [2]
    assert "left_out" not in read_meta(whole.path)
    assert [row["question_id"] for row in short.failures] == [3]
