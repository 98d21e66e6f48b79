"""The run of a generating script: what it generates, writes, keeps and removes, whenever it is killed."""

import itertools
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from kills import run_forked

import cropvlm.runs.run
from cropvlm.errors import UnreadableImage
from cropvlm.runs.journal import Journal
from cropvlm.runs.predictions import read_meta, read_predictions
from cropvlm.runs.run import Job, Output, Run

SOURCE = {"dataset_path": "d", "dataset": None, "split": None, "max_samples": None}


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch):
    """So that the meta files of two runs are the same."""
    monkeypatch.setattr(cropvlm.runs.run, "time", SimpleNamespace(monotonic=lambda: 0))


def prompts_of(name: str, rows: int) -> list[str]:
    """Prompts that are never looked at."""
    return [f"{name}{i}" for i in range(rows)]


def output(path: Path, left_out=(), **settings) -> Output:
    settings = {"model": "m"} | settings
    return Output(path, settings, SOURCE, {"model": "m"}, lambda records: {}, str.strip, left_out=left_out)


def make_jobs(folder: Path, **settings) -> list[Job]:
    """Two data sets of three rows each, the first with one file to write, the second with two."""
    return [
        Job([1, 2, "3"], prompts_of("first", 3), [output(folder / "first.json", **settings)]),
        Job([4, 5, 6], prompts_of("second", 3), [output(folder / f"second_{i}.json", **settings) for i in (1, 2)]),
    ]


class Generator:
    """A text per file for each row; while it `fails`, none for the second file of one row. Notes what it is asked."""

    def __init__(self, fails: bool = False, ends_after: int | None = None):
        self.fails, self.ends_after, self.asked = fails, ends_after, []

    def __call__(self, prompts, done):
        for i in range(len(prompts)):
            if i not in done:
                if len(self.asked) == self.ends_after:
                    raise KeyboardInterrupt
                prompt = prompts[i]
                self.asked.append(prompt)
                texts = [f" {prompt} "] if prompt.startswith("first") else [f" {prompt} ", f" {prompt} with crop "]
                yield i, [texts[0], ValueError("no room")] if prompt == "second1" and self.fails else texts


def do(folder: Path, generate=None, **settings) -> int:
    return Run(make_jobs(folder, **settings), generate or Generator()).finish()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


WRITTEN = [f"{name}.{end}" for name in ("first", "second_1", "second_2") for end in ("json", "meta.json")]


def test_a_run_writes_its_files_and_nothing_else(tmp_path):
    assert do(tmp_path) == 0
    assert sorted(files(tmp_path)) == WRITTEN
    answers = [(record["question_id"], record["answer"]) for record in read_predictions(tmp_path / "first.json")]
    assert answers == [(1, "first0"), (2, "first1"), ("3", "first2")]
    meta = read_meta(tmp_path / "second_2.json")
    assert (meta["settings"], meta["models"], meta["dataset_path"]) == ({"model": "m"}, {"model": "m"}, "d")


def test_a_file_of_empty_texts_is_a_warning(tmp_path, caplog):
    (job, _) = make_jobs(tmp_path)
    empty = ((i, [" "]) for i in range(3))
    assert Run([job], lambda prompts, done: empty).finish() == 0
    assert f"{tmp_path}/first.json: every text is empty" in caplog.text


def test_a_row_that_fails_is_named_and_asked_again_alone(tmp_path, caplog):
    assert do(tmp_path, Generator(fails=True)) == 3
    answers = [record["answer"] for record in read_predictions(tmp_path / "second_2.json")]
    assert answers == ["second0 with crop", "", "second2 with crop"]
    meta = read_meta(tmp_path / "second_2.json")
    assert meta["failed"] == [{"question_id": 5, "reason": "no room"}]
    assert meta["counts"] == {"rows": 3, "failed": 1, "seconds": 0}
    assert f"{tmp_path}/second_2.json: 1 failed: question_id 5: no room" in caplog.text
    again = Generator(fails=True)
    assert do(tmp_path, again) == 3
    assert again.asked == ["second1"]
    repaired = Generator()
    assert do(tmp_path, repaired) == 0
    assert repaired.asked == ["second1"]
    do(tmp_path / "undisturbed")
    assert files(tmp_path / "undisturbed").items() <= files(tmp_path).items()


def test_many_rows_that_failed_are_asked_again_in_small_groups(tmp_path):
    """More than ten failures in a row would be the server's fault."""
    groups = []

    def fails(prompts, done):
        groups.append(len(prompts) - len(done))
        return ((i, [ValueError("y" * 1000)]) for i in range(len(prompts)) if i not in done and i < 25)

    job = Job(list(range(30)), prompts_of("", 30), [output(tmp_path / "p.json")])
    for _ in range(2):
        with pytest.raises(KeyError):
            Run([job], fails).finish()  # five have nothing yet
    assert groups == [30, 5, 10, 10, 5]


def test_an_unreadable_image_is_asked_for_again_once_it_has_changed(tmp_path):
    def job(*keys):
        return Job([1, 2], prompts_of("first", 2), [output(tmp_path / "p.json", images=hash(keys))], list(keys))

    def unreadable(prompts, done):
        for i, texts in Generator()(prompts, done):
            yield i, UnreadableImage("cut off") if i == 1 else texts

    assert Run([job(7, 8)], unreadable).finish() == 3
    assert Run([job(7, 8)], None).finish() == 3  # nothing to generate
    generate = Generator()
    assert Run([job(7, 9)], generate).finish() == 0
    assert generate.asked == ["first1"]


def test_a_finished_run_is_done_again_only_with_other_settings(tmp_path):
    do(tmp_path, size=1)
    before, generate = files(tmp_path), Generator()
    assert do(tmp_path, generate, size=1) == 0
    assert generate.asked == []
    assert files(tmp_path) == before
    assert do(tmp_path, generate, size=2) == 0
    assert len(generate.asked) == 6


def test_a_file_may_take_rows_from_the_first_one(tmp_path):
    first, other = output(tmp_path / "first.json"), output(tmp_path / "other.json")
    other.as_first = {2}
    job = Job([1, 2], prompts_of("p", 2), [first, other])
    Run([job], lambda prompts, done: [(0, ["a", "b"]), (1, ["c"])]).finish()
    assert [record["answer"] for record in read_predictions(first.path)] == ["a", "c"]
    assert [record["answer"] for record in read_predictions(other.path)] == ["b", "c"]


def test_a_file_may_leave_rows_out(tmp_path):
    def job():
        return Job(
            [4, 5, 6], prompts_of("first", 3), [output(tmp_path / "all.json"), output(tmp_path / "some.json", {5})]
        )

    def generate(prompts, done):
        return ((i, ["a"] if i == 1 else ["a", "b"]) for i in range(3) if i not in done)

    assert Run([job()], generate).finish() == 0
    assert [r["question_id"] for r in read_predictions(tmp_path / "some.json")] == [4, 6]
    assert read_meta(tmp_path / "some.json")["left_out"] == [5]
    assert Run([job()], None).finish() == 0


def test_what_another_process_has_left_is_taken_over(tmp_path):
    with Journal(tmp_path / "first.json.rank1", {"model": "m"}) as journal:
        journal.append([{"question_id": "3", "answer": "of the other"}])
    generate = Generator()
    assert do(tmp_path, generate) == 0
    assert generate.asked[:3] == ["first0", "first1", "second0"]
    assert read_predictions(tmp_path / "first.json")[2]["answer"] == "of the other"
    assert sorted(files(tmp_path)) == WRITTEN


def test_a_file_is_written_when_its_job_is_done_with_the_seconds_of_all_parts(tmp_path, monkeypatch):
    """Every look at the clock is a second later than the last."""
    monkeypatch.setattr(cropvlm.runs.run, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, Generator(ends_after=3))
    assert sorted(files(tmp_path)) == ["first.json", "first.json.journal.jsonl", "first.meta.json"]
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, Generator(ends_after=2))
    generate = Generator()
    assert do(tmp_path, generate) == 0
    assert generate.asked == ["second2"]
    assert [read_meta(tmp_path / f"{name}.json")["counts"]["seconds"] for name in ("first", "second_1")] == [3, 3]


def test_a_kill_at_any_event_ends_in_the_files_of_an_undisturbed_run(tmp_path):
    code, events = run_forked(lambda: do(tmp_path / "whole"))
    assert code == 0
    assert events > 30
    expected = files(tmp_path / "whole")
    for event in range(events):
        folder = tmp_path / f"killed{event:03d}"
        assert run_forked(lambda folder=folder: do(folder), event)[0] == -signal.SIGKILL
        left = files(folder) if folder.exists() else {}
        generate = Generator()
        assert do(folder, generate) == 0
        assert files(folder) == expected, event
        # What was in a journal or in a finished file is not generated again.
        if "first.json" in left or left.get("first.json.journal.jsonl", b"").count(b"\n") == 4:
            assert not any(prompt.startswith("first") for prompt in generate.asked), event
        if expected.keys() <= left.keys():
            assert generate.asked == [], event
