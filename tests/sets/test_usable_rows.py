"""Rows that training can use: those left out are counted and named."""

import pytest
from datasets import Dataset

from cropvlm.errors import UserError
from cropvlm.sets.rows import with_boxes, with_references
from cropvlm.teacher import GrownBox


def test_rows_without_references_are_counted_by_source_and_named(caplog):
    ids, sources = ["a/1", "a/2", "b/1", "b/2", "b/3"], ["a", "a", "b", "b", "b"]
    answers = [["yes"], [], [], ["no"], []]
    rows = Dataset.from_dict({"question_id": ids, "source": sources, "answers": answers})
    assert with_references(rows)["question_id"][:] == ["a/1", "b/2"]
    assert "no references, left out of the GRPO part: {'a': 1, 'b': 2} (a/2, b/1, b/3)" in caplog.text


def test_no_references_at_all():
    rows = Dataset.from_dict({"question_id": [1], "source": ["a"], "answers": [[]]})
    with pytest.raises(UserError, match="none of the 1 rows for GRPO has references"):
        with_references(rows)


def test_rows_without_a_box_are_left_out_and_named(caplog):
    # Columns of an earlier run give way.
    rows = Dataset.from_dict({"question_id": [1, 2], "source": ["a", "a"], "bbox": [[0, 0, 1, 1]] * 2})
    box = GrownBox("box", (0, 0, 5, 5), (10, 10), 0.25, fifth=4, bbox_pct=(0, 0, 50, 50))
    # Half a surrogate pair, from a journal, could not be stored.
    boxed = with_boxes(rows, [{"error": "broken"}, {"teacher_response": "[0, 0, 5, 5] \ud83d \u00e9"}], [None, box])
    assert boxed.to_list() == [
        {"question_id": 2, "source": "a", "bbox": [0, 0, 50, 50], "teacher_response": "[0, 0, 5, 5] ? \u00e9"}
    ]
    assert "unreadable images or failed rows, left out of the SFT part: {'a': 1} (1)" in caplog.text
