"""Verdicts, worked out by hand: what is reproduced, what is not, what is not comparable and what was not run."""

import re
from pathlib import Path

import pytest
from reporting_worlds import CLAIMS, FIGURE, GRPO, NONE, SFT, right, write_answers, write_boxes, write_rows

from cropvlm.errors import UserError

FIGURES = {
    # 95% of 1000 samples of 100 with a chance of 0.5 lie within 0.5 +- 1.96 * sqrt(0.25 / 100) = 40.2..59.8.
    "about 40..60 lies within 38..62": (50, {}, "reproduced"),
    "about 40..60 reaches beyond 45..55": (50, {"margin": 5}, "inconclusive"),
    "about 44..64 reaches beyond 62": (54, {}, "inconclusive"),
    "about 55..73 lies above 49..51": (64, {"margin": 1}, "not reproduced"),
    # 0.97^100 = 0.05: as many as 3% of other questions may be wrong.
    "all agree: 97..100 lies within 94..102": (100, {"reported": 98, "margin": 4}, "reproduced"),
    "all agree: 97..100 reaches beyond 98": (100, {"reported": 99, "margin": 1}, "inconclusive"),
    "at the tolerance of the score alone": (64, {"margin": None, "tolerance": 14}, "reproduced"),
    "just beyond the tolerance": (64, {"margin": None, "tolerance": 13.9}, "not reproduced"),
}


@pytest.mark.parametrize(("right_answers", "change", "verdict"), FIGURES.values(), ids=FIGURES)
def test_a_figure(world, right_answers, change, verdict):
    figure = {key: value for key, value in (FIGURE | change).items() if value is not None}
    (judged,) = world({"none": right_answers}, figures=[figure])
    assert judged.verdict == verdict
    assert ("on these questions alone" in judged.reason) == ("tolerance" in change and verdict == "reproduced")
    assert judged.ours == pytest.approx(right_answers)
    assert judged.difference == pytest.approx(right_answers - figure["reported"])
    assert judged.interval_95[0] - 1e-9 <= right_answers <= judged.interval_95[1] + 1e-9


def test_191_questions_decide_nothing_that_lies_6_points_apart(world):
    """On V* every score from 53.4 to 66.0 was once taken for the paper's 59.69."""
    write_rows(Path("rows"), 191)
    head = CLAIMS.replace("rows: 100", "rows: 191")
    for number in (102, 109, 114, 126):  # 53.4, 57.1, 59.7, 66.0 percent
        write_answers(Path("p/none_answers.json"), right(number, 191), "rows")
        (judged,) = world({}, head, figures=[FIGURE | {"reported": 59.69, "margin": 2}])
        assert judged.verdict == "inconclusive"
    # At 59.69 itself: half an interval of 7 over a margin of 2, squared, times 191 questions.
    write_answers(Path("p/none_answers.json"), right(114, 191), "rows")
    (judged,) = world({}, head, figures=[FIGURE | {"reported": 59.69, "margin": 2}])
    number = int(re.fullmatch(r"about (\d+) questions would decide; there are 191", judged.reason)[1])
    assert number == pytest.approx(191 * (7 / 2) ** 2, rel=0.1)


OVER = {"score": SFT, "over": NONE}
CLAIMS_BY_HAND = {
    "about 21..39 below the bar": ({"none": 30}, {"score": NONE, "at_most": 40}, 30, "reproduced"),
    "about 42..62": ({"none": 52}, {"score": NONE, "at_most": 40}, 52, "not reproduced"),
    "above the bar": ({"none": 52}, {"score": NONE, "at_least": 40}, 52, "reproduced"),
    # 10 of 100 differ: 10 +- 5.9.
    "4..16 above the bar": ({"none": 40, "sft": 50}, OVER | {"at_least": 3}, 10, "reproduced"),
    "4..16 holds the bar": ({"none": 40, "sft": 50}, OVER | {"at_least": 9}, 10, "inconclusive"),
    # 4 of 100 differ: a sample of 100 has none of them with a chance of 0.96^100 = 1.7%, below 2.5%.
    "interval above 0": ({"none": 0, "sft": 4}, OVER, 4, "reproduced"),
    # 3 of 100: 0.97^100 = 4.8%, so the interval's lower end is 0.
    "interval from 0": ({"none": 0, "sft": 3}, OVER, 3, "inconclusive"),
    # The same 46 are right in both; unpaired, the error of the difference would be 7.
    "paired by question": ({"none": 46, "sft": 50}, OVER, 4, "reproduced"),
    "the other way": ({"none": 9, "sft": 0}, OVER, -9, "not reproduced"),
    "equal in 100 alone": ({"none": 9, "sft": 9}, OVER | {"at_least": -1}, 0, "inconclusive"),
}


@pytest.mark.parametrize(("scores", "claim", "value", "verdict"), CLAIMS_BY_HAND.values(), ids=CLAIMS_BY_HAND)
def test_a_claim(world, scores, claim, value, verdict):
    (judged,) = world(scores, claims=[{"says": "it"} | claim])
    assert judged.verdict == verdict
    assert judged.ours == pytest.approx(value)
    assert judged.interval_95[0] <= value <= judged.interval_95[1]


def test_the_share_of_a_way(world):
    claim = {"says": "it", **OVER, "of": GRPO, "at_least": 50}
    (judged,) = world({"none": 40, "sft": 72, "grpo": 85}, claims=[claim])
    # (72 - 40) of (85 - 40) points. Of 45 questions 32 are on it: 71.1 +- 1.96 * sqrt(71.1 * 28.9 / 45) = 57.9..84.4.
    assert (judged.verdict, judged.ours) == ("reproduced", pytest.approx(100 * 32 / 45))
    assert judged.interval_95 == pytest.approx((57.9, 84.4), abs=2)


@pytest.mark.parametrize("scores", [(40, 50, 40), (40, 50, 41)])  # no way; one question, which a sample may lack
def test_the_share_of_no_way_is_not_comparable(world, scores):
    claim = {"says": "it", **OVER, "of": GRPO, "at_least": 70}
    (judged,) = world(dict(zip(("none", "sft", "grpo"), scores, strict=True)), claims=[claim])
    assert judged.verdict == "not comparable"
    assert "does not lie above 0" in judged.reason


@pytest.mark.parametrize(
    ("count", "columns"),
    [(50, {}), (100, {"question": ["else?"] * 100}), (100, {"answers": [["no"]] * 100})],
    ids=["fewer", "other questions", "other references"],
)
def test_nothing_is_paired_but_equal_questions(world, count, columns):
    texts = ["[0, 0, 50, 50]."] * count
    write_rows(Path("more/rows"), **columns)
    write_boxes(Path("p/sft_bbox.json"), texts, "models/sft", "more/rows")
    write_answers(Path("p/sft_answers.json"), right(30, count), "more/rows", boxes=texts, max_samples=count)
    (judged,) = world({"none": 10}, CLAIMS.replace("{rows: 100}", "{}"), claims=[{"says": "it"} | OVER])
    assert judged.verdict == "not comparable"
    assert "questions are compared, which are not the same" in judged.reason


def test_what_was_not_run_has_its_commands(world):
    claim = {"says": "it", "score": GRPO, "over": SFT}
    figure = FIGURE | {"cropper": "grpo"}
    judged = world({"none": 40, "sft": 50}, claims=[claim], figures=[figure])
    assert [verdict.verdict for verdict in judged] == ["not run"] * 2
    assert [verdict.reason for verdict in judged] == ["run rows: small, GRPO"] * 2


def test_fewer_rows_are_not_comparable_but_shown(world):
    write_answers(Path("p/none_answers.json"), right(50, 50), "rows", max_samples=50)
    (judged,) = world({}, figures=[FIGURE])
    assert (judged.verdict, judged.reason, judged.difference) == ("not comparable", "rows 50 instead of 100", 50)


def test_a_cropper_of_another_training_set_is_not_comparable(world):
    figure = FIGURE | {"cropper": "grpo"}
    (judged,) = world({"other": 50}, figures=[figure])
    assert (judged.verdict, judged.reason) == ("not comparable", "cropper trained on others instead of rows")
    (judged,) = world({"grpo": 50}, figures=[figure])  # beside it, the right one is preferred
    assert judged.verdict == "reproduced"


def test_equal_boxes_are_those_of_each_of_their_croppers(world):
    texts = ["[0, 0, 100, 100]."] * 100
    for name in ("sft", "grpo"):
        write_boxes(Path(f"p/{name}_bbox.json"), texts, f"models/{name}", "rows")
        write_answers(Path(f"p/{name}_answers.json"), right(50), "rows", boxes=texts)
    judged = world({}, figures=[FIGURE | {"cropper": "grpo"}, FIGURE | {"cropper": "sft"}])
    assert [verdict.verdict for verdict in judged] == ["reproduced"] * 2


@pytest.mark.parametrize("metric", ["score", "refusals"])
def test_rows_that_failed_are_named_and_are_no_refusals(world, metric):
    failed = [{"question_id": i, "reason": "the server was down"} for i in range(16)]
    write_answers(Path("p/none_answers.json"), [""] * 20 + ["yes"] * 80, "rows", failed=failed)
    (judged,) = world({}, figures=[FIGURE | {"metric": metric, "reported": 4}])
    assert (judged.verdict, judged.reason) == ("not comparable", "16 rows failed (0, 1, 2, ...)")
    assert judged.ours == pytest.approx(4 if metric == "refusals" else 80)


def test_a_mean_over_unknown_benchmarks_is_never_judged(world):
    figure = FIGURE | {"benchmark": "mean"}
    (judged,) = world({"none": 50}, figures=[figure], unknown_mean="nobody says which")
    assert (judged.verdict, judged.reason, judged.difference) == ("not comparable", "nobody says which", 0)
    (judged,) = world({"none": 50}, figures=[figure])
    assert judged.verdict == "reproduced"
    (judged,) = world({"none": 50}, figures=[figure | {"cropper": "sft"}], unknown_mean="nobody says which")
    assert (judged.verdict, judged.reason) == ("not comparable", "nobody says which")
    assert judged.ours is None  # not run either


@pytest.mark.parametrize(("benchmark", "share"), [("rows", 16), ("hrbench4k", 30)])
def test_refusals_are_empty_answers_and_those_that_name_no_option(world, benchmark, share):
    if benchmark == "hrbench4k":
        columns = {letter: ["x"] * 100 for letter in "ABCD"} | {"index": list(range(100)), "answer": ["A"] * 100}
        write_rows(Path("rows"), **columns, category=["single"] * 100, cycle_category=["0"] * 100)
    answers = [""] * 16 + ["cannot say"] * 14 + ["A"] * 70
    write_answers(Path("p/none_answers.json"), answers, "rows", dataset=None if benchmark == "rows" else benchmark)
    figure = FIGURE | {"metric": "refusals", "reported": share, "benchmark": benchmark}
    (judged,) = world({}, CLAIMS.replace("  rows: {rows: 100}", f"  {benchmark}: {{rows: 100}}"), figures=[figure])
    assert (judged.verdict, judged.ours) == ("reproduced", pytest.approx(share))


def test_two_files_for_one_setting_are_an_error_unless_they_are_equal(world):
    write_answers(Path("p/more/none_answers.json"), right(50), "rows")
    assert world({"none": 50}, figures=[FIGURE])[0].verdict == "reproduced"
    write_answers(Path("p/more/none_answers.json"), right(51), "rows")
    with pytest.raises(UserError, match=r"two files for one setting \(rows: small, no crop\): p/.*json and p/.*json"):
        world({"none": 50}, figures=[FIGURE])
