"""Means over cycles, standard errors by question, the paired bootstrap: worked out by hand."""

import datasets
import numpy as np
import pytest

from cropvlm.errors import UserError
from cropvlm.runs import scoring


def test_every_row_with_references_is_scored():
    answers = [["yes"] * 10, ["no"] * 10, [], ["no"] * 10]
    rows = datasets.Dataset.from_dict({"question_id": list("abcd"), "answers": answers})
    scored = scoring.ScoredRows(rows, ["Yes", "yes", "yes", "<think>yes?</think>\nno."], "vqa")
    assert scored.scores.tolist() == [100, 0, 100]
    assert (scored.indices, scored.without_references) == ([0, 1, 3], ["c"])
    assert scoring.final_answer(" nokia.") == " nokia."  # unchanged without reasoning
    with pytest.raises(UserError, match="none of the 1 rows has references"):
        scoring.ScoredRows(rows.select([2]), ["yes"], "vqa")


def test_every_cycle_weighs_the_same():
    assert scoring.cycle_weights(None, 4).tolist() == [0.25] * 4
    assert scoring.cycle_weights(["0", "0", "0", 1], 4) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_cycles_of_a_question_share_a_key():
    questions = ["What?\nA. red\nB. blue", "What?\nA. blue\nB. red", "Who?\nA. red\nB. blue"]
    rows = datasets.Dataset.from_dict({"question": questions, "cycle_category": ["0", "1", "0"]})
    first, second, third = scoring.question_keys(rows)
    assert first == second != third
    assert scoring.question_keys(rows.remove_columns("cycle_category")) == ["0", "1", "2"]


def test_standard_error_by_hand():
    # 100, 60, 0: mean 53.33, squared deviations 46.67^2 + 6.67^2 + 53.33^2 = 5066.7; sqrt(/ 2) = 50.33; / sqrt(3)
    values, weights = np.array([100.0, 60, 0]), np.full(3, 1 / 3)
    assert scoring.standard_error(values, weights, ["a", "b", "c"]) == pytest.approx(29.06, abs=0.01)
    assert scoring.standard_error(values, weights, ["a", "a", "a"]) is None


def test_rows_of_one_question_count_once():
    # Ten questions of which six are right, each in four rows that agree: 100 * sqrt(0.6 * 0.4 / 9) = 16.33.
    values = np.repeat([100.0] * 6 + [0.0] * 4, 4)
    questions = [str(i // 4) for i in range(40)]
    weights = np.full(40, 1 / 40)
    assert scoring.standard_error(values, weights, questions) == pytest.approx(16.33, abs=0.01)
    # 3 of 10 questions differ. Ten draws with a chance of 0.3: 2.8% of them hold none, 4.7% six or more.
    compared = scoring.compare(values, np.repeat([100.0] * 3 + [0.0] * 7, 4), weights, questions)
    assert compared["interval_95"] == pytest.approx([0, 60])
