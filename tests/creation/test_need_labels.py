"""create_dataset.py --label_need: by what the reward model loses without the crop, and what SFT makes of it."""

import json
import shutil
from argparse import Namespace

import pytest
from datasets import Value
from made_sets import content
from processes import REPO

from cropvlm.crops import crop_bbox
from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError
from cropvlm.likelihood import answer_log_likelihood
from cropvlm.metrics import most_common_answer
from cropvlm.modeling import load_model, load_processor
from cropvlm.sets import need_labels
from cropvlm.trainers.training_data import prompt_completion_rows

READER = REPO / "miniature" / "models" / "smolvlm"
FLAGS = ["--label_need", "--reward_model", READER, "--reward_longest_edge", "64", "--gpu", "-1"]


@pytest.fixture
def counted(monkeypatch) -> list:
    """Fills with the rows whose gap is computed."""
    computed, loss_gaps = [], need_labels.loss_gaps

    def counting(reward, rows, indices):
        for outcome in loss_gaps(reward, rows, indices):
            computed.append(outcome[0])
            yield outcome

    monkeypatch.setattr(need_labels, "loss_gaps", counting)
    return computed


def test_gaps_and_labels(script, asked, counted, tmp_path):
    assert script("--output_path", str(tmp_path / "plain")) == 0
    shutil.copy(tmp_path / "plain.journal.jsonl", tmp_path / "made.journal.jsonl")
    asked.clear()
    assert script(*FLAGS) == 0
    assert asked == []  # the journal has the teacher's responses
    rows = load_rows(str(tmp_path / "made_sft"))
    assert len(rows) == 12
    model, processor = load_model(str(READER), device="cpu"), load_processor(str(READER), 64)
    for row in rows.select(range(3)):
        full = open_image(row["image"])
        images, answer = [[full, crop_bbox(full, row["bbox"])], [full]], most_common_answer(row["answers"])
        scores = answer_log_likelihood(model, processor, images, [row["question"]] * 2, [answer] * 2)
        assert row["loss_gap"] == pytest.approx(float(scores[0] - scores[1]), abs=1e-4)
    assert [row["needed"] for row in rows] == [gap >= 0.5 for gap in rows["loss_gap"]]
    report = json.loads((tmp_path / "made_sft" / "teacher_report.json").read_text())["need"]
    assert report["needed"] == sum(rows["needed"])
    assert report["needed"] + report["not_needed"] == sum(report["rows_by_gap"]) == 12
    assert "Need of a crop" in (tmp_path / "made_sft" / "README.md").read_text()
    # Without the flag, nothing of it is there.
    labels = [{name: row[name] for name in ("loss_gap", "needed")} for row in rows]
    plain = content(tmp_path / "plain_sft")
    assert content(tmp_path / "made_sft") == [row | label for row, label in zip(plain, labels, strict=True)]
    assert "need" not in json.loads((tmp_path / "plain_sft" / "teacher_report.json").read_text())
    assert "Need of" not in (tmp_path / "plain_sft" / "README.md").read_text()


def test_another_threshold_computes_no_gap_again_and_an_interrupted_run_goes_on(script, asked, counted, tmp_path):
    assert script(*FLAGS) == 0
    gaps = load_rows(str(tmp_path / "made_sft"))["loss_gap"][:]
    middle = sorted(gaps)[6]
    assert script(*FLAGS, "--need_threshold", str(middle)) == 0
    assert sorted(counted) == list(range(12))
    assert sum(load_rows(str(tmp_path / "made_sft"))["needed"]) == 6
    # Rows that the journal lacks, and those whose box has changed.
    journal = tmp_path / "made_need.journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:9]))  # settings and 8 rows
    shutil.rmtree(tmp_path / "made_sft")
    counted.clear()
    assert script(*FLAGS) == 0
    assert counted == [8, 9, 10, 11]
    assert load_rows(str(tmp_path / "made_sft"))["loss_gap"][:] == gaps
    counted.clear()
    assert script(*FLAGS, "--growth", "1", "1", "1", "1", "1") == 0
    assert 0 < len(counted) <= 12


def test_sft_learns_where_no_crop_is_needed(tiny_smolvlm, boxed_world):
    rows, processor = load_rows(str(boxed_world)), load_processor(str(tiny_smolvlm))
    labelled = rows.add_column("needed", [i % 2 == 0 for i in range(len(rows))])
    plain, taught = ([row["completion"] for row in prompt_completion_rows(r, processor)] for r in (rows, labelled))
    assert taught[::2] == plain[::2]
    assert set(taught[1::2]) == {" Not needed.<end_of_utterance>"}
    missing = rows.add_column("needed", [None] * len(rows), feature=Value("bool"))
    assert [row["completion"] for row in prompt_completion_rows(missing, processor)] == plain
    with pytest.raises(UserError, match="the column needed holds 'False'; expected true or false"):
        prompt_completion_rows(rows.add_column("needed", ["False"] * len(rows)), processor)


def test_a_gap_is_of_the_image_and_the_references_that_it_was_computed_from(boxed_world, counted, tmp_path):
    """A row without references has none: it counts as needed."""
    rows = load_rows(str(boxed_world)).select([0, 2, 4])  # of three images
    rows = rows.remove_columns("answers").add_column("answers", [*rows["answers"][:2], []])
    flags = {"reward_model": str(READER), "reward_longest_edge": 64, "gpu": -1, "need_threshold": 1000}
    args = Namespace(output_path=tmp_path / "made", **flags)
    labelled, report = need_labels.label_need(rows, args)
    assert labelled["needed"][:] == [False, False, True]
    assert (labelled["loss_gap"][2], report["without_references"]) == (None, 1)
    computed = len(counted)
    swapped = rows.remove_columns("image").add_column("image", rows["image"][::-1], feature=rows.features["image"])
    need_labels.label_need(swapped, args)
    answers = [*swapped["answers"]]
    answers[1] = ["else"]
    need_labels.label_need(swapped.remove_columns("answers").add_column("answers", answers), args)
    assert counted[computed:] == [0, 1]
