"""The scoring script: hand-worked scores, what it picks by itself, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from processes import REPO
from steps import read

import vqa_accuracy
from cropvlm.runs.predictions import write_predictions
from cropvlm.runs.provenance import hash_of

# Ten references each. VQA accuracy of a prediction that k of 10 agree with: over the 10 leave-one-out sets
# (k * min(3, k - 1) + (10 - k) * min(3, k)) / 30; so k = 2 gives (2 * 1 + 8 * 2) / 30 = 0.6, k = 0 gives 0, 4 gives 1.
VQA_ROWS = {
    "question_id": [1, 2, 3],
    "question": ["a?", "b?", "c?"],
    "answers": [["stop"] * 10, ["two cats"] * 2 + ["2 cats"] * 2 + ["cat"] * 6, ["The bus"] * 10],
}
VQA_PREDICTIONS = {1: "STOP", 2: "two cats", 3: "the bus"}


@pytest.fixture
def world(call):
    """Saves rows and a prediction file with its meta file."""

    def make(rows: dict, predictions: dict, name: str = "p.json", **meta) -> None:
        datasets.Dataset.from_dict(rows).save_to_disk("rows")
        records = [{"question_id": i, "answer": answer} for i, answer in predictions.items()]
        write_predictions(name, records, {"dataset_path": "rows", "split": None, **meta})

    return make


@pytest.fixture
def score(call, capsys):
    """Run the script as the command line does; returns exit code, lines on stdout and stderr."""

    def score(*flags: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        code = call(vqa_accuracy.main, "--predictions_file", "p.json", *flags)
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return score


def test_the_score_alone_is_the_last_line(world, score):
    world(VQA_ROWS, VQA_PREDICTIONS)
    # The paper's: 1 + 0.6 + 0 ("The bus" has a capital, the lower-cased prediction has not) = 1.6 of 3.
    code, lines, _ = score()
    assert code == 0
    assert lines[-1] == "53.3333"
    # Scores 100, 60, 0: deviation sqrt((46.67^2 + 6.67^2 + 53.33^2) / 2) = 50.33; / sqrt(3) = 29.06.
    summary = "VQA accuracy: 53.33 (standard error 29.06) over 3 questions"
    assert lines[:-1] == ["p.json on rows", summary, "empty answers: 0"]


def test_metrics(world, score):
    world(VQA_ROWS, VQA_PREDICTIONS)
    # "two cats" becomes "2 cats" on both sides: 4 of 10 agree; "the" is dropped: 1 + 1 + 1. ANLS: exact but for case.
    for metric, expected in {"vqa_official": "100.0000", "anls": "100.0000", "letter": "0.0000"}.items():
        assert score("--metric", metric)[1][-1] == expected


HR_ROWS = {
    "index": [0, 1, 2, 3],
    "question": ["a?"] * 4,
    **{letter: ["x"] * 4 for letter in "ABCD"},
    "answer": ["A", "B", "C", "D"],
    "category": ["single", "single", "cross", "single"],
    "cycle_category": ["0", "0", "0", "1"],
    "image": ["AAAA"] * 4,
}


def test_hrbench_is_the_mean_over_its_cycles(world, score):
    world(HR_ROWS, {0: "A", 1: "Blue", 2: "(c) the bus", 3: "The answer is D"}, "p.json")
    # Cycle 0: 2 of 3, cycle 1: 1 of 1; mean (66.67 + 100) / 2 = 83.33. Category single: cycle 0 has 1 of 2 with
    # weight 1/6 each, cycle 1 has 1 with weight 1/2: (1/6 + 1/2) / (1/6 + 1/6 + 1/2) = 80.
    code, lines, _ = score("--output", "out.json")
    assert (code, lines[-1]) == (0, "83.3333")
    assert lines[3:-1] == [
        "answers without an option letter: 1",
        "option accuracy: 83.33",
        "category cross: 100.00 (1 questions)",
        "category single: 80.00 (3 questions)",
        "cycle category 0: 66.67 (3 questions)",
        "cycle category 1: 100.00 (1 questions)",
    ]
    written = read("out.json")
    assert written["by_cycle_category"]["1"] == {"score": 100.0, "questions": 1}


def test_an_option_in_words_counts_for_the_option_metric(world, score):
    rows = HR_ROWS | {"A": ["red"] * 4, "B": ["blue"] * 4}
    world(rows, {0: "red", 1: "Blue.", 2: "C", 3: "x"})
    # Letters: C alone, cycle 0: 1 of 3, cycle 1: 0 of 1. Options: 3 of 3 and 0 of 1 ("x" is the text of C and of D).
    lines = score("--metric", "option")[1]
    assert [lines[1][:22], lines[4], lines[-1]] == ["option accuracy: 50.00", "letter accuracy: 16.67", "50.0000"]
    assert lines[3] == "answers without an option letter: 1"


def test_a_data_set_that_has_changed_since_is_refused(world, score):
    questions = hash_of(json.dumps([VQA_ROWS["question_id"], VQA_ROWS["question"]]))
    world(VQA_ROWS, VQA_PREDICTIONS, "old.json", settings={"questions": questions})
    world(VQA_ROWS, VQA_PREDICTIONS)
    compared, alone = ["--compare", "old.json"], ["--predictions_file", "old.json"]
    assert [score(*flags)[0] for flags in (compared, alone)] == [0, 0]
    world(VQA_ROWS | {"question": ["a?", "b?", "other?"]}, VQA_PREDICTIONS)
    for flags in (compared, alone):
        code, lines, error = score(*flags)
        assert (code, lines, error.count("\n")) == (2, [], 1)
        assert "questions" in error


def test_output_holds_everything(world, score):
    world(VQA_ROWS, VQA_PREDICTIONS, max_samples=None)
    assert score("--output", "new/out.json")[0] == 0
    written = read("new/out.json")
    assert written.pop("score") == pytest.approx(160 / 3)
    assert written.pop("standard_error") == pytest.approx(29.0593)
    source = {"predictions_file": "p.json", "dataset_path": "rows", "dataset": None, "split": None, "max_samples": None}
    assert written == source | {"metric": "vqa", "questions": 3, "without_references": [], "empty_answers": 0}


def test_compare_counts_and_bounds_the_paired_difference(world, score):
    n = 40
    rows = {"question_id": list(range(n)), "question": ["q?"] * n, "answers": [["yes"] * 10] * n}
    world(rows, {i: "yes" if i < 30 else "no" for i in range(n)})
    # The other is right on 10..31: 10 better, 2 worse, 28 equal; (30 - 22) / 40 = +20 points.
    others = [{"question_id": i, "answer": "yes" if 10 <= i < 32 else "no"} for i in reversed(range(n))]
    write_predictions("other.json", others, {})
    code, lines, _ = score("--compare", "other.json", "--output", "out.json")
    result = read("out.json")["compare"]
    assert (code, lines[-1], result["predictions_file"]) == (0, "75.0000", "other.json")
    assert (result["better"], result["worse"], result["equal"]) == (10, 2, 28)
    assert result["difference"] == pytest.approx(20)
    assert result["other_score"] == pytest.approx(55)
    # The bootstrap agrees with the normal interval: variance (10 + 2 - 40 * 0.2^2) / 39 = 0.2667, error 8.165 points.
    assert result["standard_error"] == pytest.approx(8.165, abs=1e-3)
    assert result["interval_95"] == pytest.approx([20 - 1.96 * 8.165, 20 + 1.96 * 8.165], abs=1.5)
    assert "against other.json (55.00): +20.00, 95% interval [" in lines[-2]
    assert lines[-2].endswith("; 10 better, 2 worse, 28 equal")
    assert score("--compare", "other.json")[1] == lines  # seeded


@pytest.mark.parametrize("output", ["other.json", "p.meta.json"])
def test_what_is_scored_is_not_overwritten(world, score, output):
    world(VQA_ROWS, VQA_PREDICTIONS)
    world(VQA_ROWS, VQA_PREDICTIONS, "other.json")
    before = Path(output).read_bytes()
    code, _, error = score("--compare", "other.json", "--output", f"./{output}")
    assert (code, error.count("\n")) == (2, 1)
    assert Path(output).read_bytes() == before


def test_rows_without_references_are_said_and_not_scored(world, score):
    rows = {"question_id": ["a", "b"], "question": ["q?"] * 2, "answers": [None, ["yes"] * 10]}
    world(rows, {"a": "what", "b": "yes"})
    code, lines, _ = score()
    assert (code, lines[-1]) == (0, "100.0000")
    assert "rows without references, not scored: 1 ('a')" in lines


def test_what_is_scored_comes_from_the_meta_file_unless_given(world, score):
    world(VQA_ROWS, {1: "stop", 2: "cat"}, max_samples=2)
    assert score()[1][-1] == "100.0000"
    assert score("--max_samples", "3")[0] == 2  # the third is missing
    world(VQA_ROWS, VQA_PREDICTIONS, dataset_path="splits", split="validation")
    saved = datasets.load_from_disk("rows")
    wrong = saved.map(lambda row: {"answers": ["nothing"] * 10})
    datasets.DatasetDict(test=wrong, validation=saved).save_to_disk("splits")
    assert score()[1][0] == "p.json on splits (split validation)"
    assert score()[1][-1] == "53.3333"
    assert score("--split", "test")[1][-1] == "0.0000"
    assert score("--dataset_path", "rows")[0] == 2  # that has no splits, and the meta file names one
    world({"question_id": ["7"], "question": ["a?"], "answers": [["bank"]]}, {"7": "banks"}, dataset="docvqa")
    assert score()[1][-1] == "80.0000"
    assert score("--dataset", "textvqa", "--dataset_path", "rows")[1][-1] == "0.0000"


def test_ids_that_do_not_fit_are_refused(world, score):
    world(VQA_ROWS, VQA_PREDICTIONS)
    records = read("p.json")
    Path("other.json").write_text(json.dumps([*records, records[0]]))
    code, lines, error = score("--compare", "other.json", "--output", "out.json")
    assert (code, lines, error.count("\n")) == (2, [], 1)
    assert "the question_ids of other.json are not those of the data set (1 duplicate: 1)" in error
    assert not Path("out.json").exists()


BOXES = "error: boxes.json holds boxes, by its meta file; expected answers\n"


@pytest.mark.parametrize(
    ("flags", "meta", "problem"),
    [
        (["--predictions_file", "gone.json"], {}, "cannot read gone.json"),
        (["--dataset_path", "unanswered"], {}, "has no column answers"),
        (["--predictions_file", "boxes.json"], {}, BOXES),
        (["--compare", "boxes.json"], {}, BOXES),
        ([], {"max_samples": True}, "p.meta.json: max_samples is"),
        ([], {"dataset_path": []}, "p.meta.json: dataset_path is"),
    ],
)
def test_bad_input_ends_with_one_line(world, score, flags, meta, problem):
    world(VQA_ROWS, VQA_PREDICTIONS, "boxes.json", models={"cropper": "m", "cropper_base": None})
    world(VQA_ROWS, VQA_PREDICTIONS, models={"answerer": "m"}, **meta)
    datasets.load_from_disk("rows").remove_columns("answers").save_to_disk("unanswered")
    code, lines, error = score(*flags)
    assert (code, lines) == (2, [])
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert problem in error


def test_without_a_meta_file_it_is_textvqa(world, score, monkeypatch):
    world(VQA_ROWS, VQA_PREDICTIONS)
    Path("p.meta.json").unlink()
    saved = datasets.load_from_disk("rows")
    sources = []
    monkeypatch.setattr(vqa_accuracy, "load_rows", lambda need, **source: [sources.append(source), saved][1])
    code, lines, _ = score()
    assert (code, lines[0]) == (0, "p.json on lmms-lab/textvqa")
    assert lines[-1] == "53.3333"
    assert sources == [{"dataset_path": "lmms-lab/textvqa", "dataset": None, "split": None, "max_samples": None}]


def test_as_a_command_without_torch_or_transformers(world):
    world(VQA_ROWS, VQA_PREDICTIONS)
    command = [sys.executable, "-X", "importtime", REPO / "vqa_accuracy.py", "--predictions_file", "p.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "53.3333"
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
