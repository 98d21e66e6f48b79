"""Verdicts, worked out by hand: what is reproduced, what is not, what is not comparable and what was not run."""

from pathlib import Path

import pytest
import yaml
from reporting_worlds import CLAIMS, right, write_answers, write_boxes, write_folder, write_rows

from cropvlm.errors import UserError
from cropvlm.runs import scoring
from reporting import results
from reporting.claims import read_claims
from reporting.report import judge_folder
from reporting.results import read_folder
from reporting.verdicts import judge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Work in a folder with 100 rows; returns a function that writes predictions and judges figures and claims."""
    monkeypatch.chdir(tmp_path)
    results._load_rows.cache_clear()  # which knows folders by their relative path
    monkeypatch.setattr(scoring, "RESAMPLES", 1000)
    write_rows(Path("rows"))

    def verdicts(scores: dict[str, int], **content: list[dict]):
        write_folder(Path("p"), scores)
        Path("claims.yaml").write_text(CLAIMS + yaml.safe_dump(content))
        claims = read_claims("claims.yaml")
        return judge(
            claims, read_folder("p"), lambda settings: "run " + ", ".join(setting.title for setting in settings)
        )

    return verdicts


FIGURE = {"benchmark": "rows", "answerer": "small", "cropper": "none", "reported": 50, "tolerance": 1}
NONE, SFT, GRPO = ({"answerer": "small", "cropper": name} for name in ("none", "sft", "grpo"))


@pytest.mark.parametrize(
    ("right_answers", "tolerance", "verdict"),
    [
        pytest.param(50, 1, "reproduced", id="equal"),
        # 95% of 1000 samples of 100 with a chance of 0.6 lie within 0.6 +- 1.96 * sqrt(0.24 / 100) = 50.4..69.6.
        pytest.param(58, 1, "reproduced", id="50 lies in the interval, about 48..68"),
        pytest.param(64, 1, "not reproduced", id="50 lies below the interval, about 55..73"),
        pytest.param(64, 14, "reproduced", id="at the tolerance"),
        pytest.param(64, 13.9, "not reproduced", id="just beyond the tolerance, and the interval"),
        pytest.param(36, 1, "not reproduced", id="50 lies above the interval, about 27..45"),
        pytest.param(100, 1, "not reproduced", id="all right: an interval of one point"),
    ],
)
def test_a_figure(world, right_answers, tolerance, verdict):
    (judged,) = world({"none": right_answers}, figures=[FIGURE | {"tolerance": tolerance}])
    assert judged.verdict == verdict
    assert judged.ours == pytest.approx(right_answers)
    assert judged.difference == pytest.approx(right_answers - 50)
    assert judged.interval_95[0] - 1e-9 <= right_answers <= judged.interval_95[1] + 1e-9


@pytest.mark.parametrize(
    ("scores", "claim", "value", "verdict"),
    [
        pytest.param({"none": 40}, {"score": NONE, "at_most": 40}, 40, "reproduced", id="at the bar"),
        pytest.param({"none": 41}, {"score": NONE, "at_most": 40}, 41, "not reproduced", id="above the bar"),
        pytest.param({"none": 85}, {"score": NONE, "at_least": 85}, 85, "reproduced", id="at the lower bar"),
        pytest.param({"none": 84}, {"score": NONE, "at_least": 85}, 84, "not reproduced", id="below the bar"),
        pytest.param(
            {"none": 40, "sft": 50}, {"score": SFT, "over": NONE, "at_least": 10}, 10, "reproduced", id="difference"
        ),
        pytest.param(
            {"none": 40, "sft": 49}, {"score": SFT, "over": NONE, "at_least": 10}, 9, "not reproduced", id="too small"
        ),
        # 4 of 100 differ: a sample of 100 has none of them with a chance of 0.96^100 = 1.7%, below 2.5%.
        pytest.param({"none": 0, "sft": 4}, {"score": SFT, "over": NONE}, 4, "reproduced", id="interval above 0"),
        # 3 of 100: 0.97^100 = 4.8%, so the interval's lower end is 0.
        pytest.param({"none": 0, "sft": 3}, {"score": SFT, "over": NONE}, 3, "not reproduced", id="interval from 0"),
        # The same 46 are right in both; unpaired, the error of the difference would be 7.
        pytest.param({"none": 46, "sft": 50}, {"score": SFT, "over": NONE}, 4, "reproduced", id="paired by question"),
        pytest.param({"none": 9, "sft": 0}, {"score": SFT, "over": NONE}, -9, "not reproduced", id="the other way"),
        # (72 - 40) of (85 - 40) points are 71.1%; 31 of 45 are 68.9%.
        pytest.param(
            {"none": 40, "sft": 72, "grpo": 85},
            {"score": SFT, "over": NONE, "of": GRPO, "at_least": 70},
            100 * 32 / 45,
            "reproduced",
            id="share of the way",
        ),
        pytest.param(
            {"none": 40, "sft": 71, "grpo": 85},
            {"score": SFT, "over": NONE, "of": GRPO, "at_least": 70},
            100 * 31 / 45,
            "not reproduced",
            id="too little of the way",
        ),
    ],
)
def test_a_claim(world, scores, claim, value, verdict):
    (judged,) = world(scores, claims=[{"says": "it"} | claim])
    assert judged.verdict == verdict
    assert judged.ours == pytest.approx(value)
    assert judged.interval_95[0] <= value <= judged.interval_95[1]


def test_no_way_to_go_is_not_comparable(world):
    claim = {"says": "it", "score": SFT, "over": NONE, "of": GRPO, "at_least": 70}
    (judged,) = world({"none": 40, "sft": 50, "grpo": 40}, claims=[claim])
    assert (judged.verdict, judged.reason) == ("not comparable", "its settings `of` and `over` score the same")


def test_what_was_not_run_has_its_commands(world):
    claim = {"says": "it", "score": GRPO, "over": SFT}
    figure = FIGURE | {"cropper": "grpo"}
    judged = world({"none": 40, "sft": 50}, claims=[claim], figures=[figure])
    assert [verdict.verdict for verdict in judged] == ["not run"] * 2
    assert [verdict.reason for verdict in judged] == ["run rows: small, GRPO"] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"settings": {"longest_edge": 32}}, "answerer's longest edge 32 instead of 64", id="answerer"),
        pytest.param({"settings": {"longest_edge": None}}, "answerer's longest edge None instead of 64", id="its own"),
        pytest.param({"max_samples": 50, "rows": 50}, "rows 50 instead of 100", id="rows"),
    ],
)
def test_another_size_is_not_comparable_and_says_which(world, change, reason):
    rows = change.pop("rows", 100)
    write_answers(Path("p/none_answers.json"), right(50, rows), "rows", **change)
    (judged,) = world({}, figures=[FIGURE])
    assert (judged.verdict, judged.reason) == ("not comparable", reason)
    assert judged.difference is not None  # shown all the same


def test_another_cropper_size_or_training_set_is_not_comparable(world):
    figure = FIGURE | {"cropper": "grpo"}
    texts = ["[0, 0, 50, 50]."] * 100
    write_boxes(Path("p/a_bbox.json"), texts, "models/other", "rows", longest_edge=32)
    write_answers(Path("p/a_answers.json"), right(50), "rows", boxes=texts)
    (judged,) = world({}, figures=[figure])
    assert judged.verdict == "not comparable"
    assert judged.reason == "cropper's longest edge 32 instead of 64; cropper trained on others instead of rows"
    # The right one is preferred if it exists.
    (judged,) = world({"grpo": 50}, figures=[figure])
    assert judged.verdict == "reproduced"


def test_a_mean_over_unknown_benchmarks_is_shown_and_never_judged(world):
    figure = FIGURE | {"benchmark": "mean"}
    (judged,) = world({"none": 50}, figures=[figure], unknown_mean="nobody says which")
    assert (judged.verdict, judged.reason, judged.difference) == ("not comparable", "nobody says which", 0)
    (judged,) = world({"none": 50}, figures=[figure])
    assert judged.verdict == "reproduced"


def test_refusals_are_empty_answers_in_percent(world):
    Path("p").mkdir()
    write_answers(Path("p/none_answers.json"), [""] * 16 + ["yes"] * 84, "rows")
    (judged,) = world({}, figures=[FIGURE | {"metric": "refusals", "reported": 16.23}])
    assert (judged.verdict, judged.ours) == ("reproduced", pytest.approx(16))


def test_two_files_for_one_setting_are_an_error_unless_they_are_equal(world):
    write_answers(Path("p/more/none_answers.json"), right(50), "rows")
    assert world({"none": 50}, figures=[FIGURE])[0].verdict == "reproduced"
    write_answers(Path("p/more/none_answers.json"), right(51), "rows")
    with pytest.raises(UserError, match=r"two files for one setting \(rows: small, no crop\): p/.*json and p/.*json"):
        world({"none": 50}, figures=[FIGURE])


# Right answers of a hundred with which each of the miniature's claims just holds.
AT_THE_BARS = {"no crop": 40, "true box": 85, "SFT": 50, "GRPO": 72, "unseen, GRPO": 4}
MINIATURE = ROOT / "scripts" / "claims" / "miniature.yaml"


def miniature_verdicts(right_answers: dict[str, int]) -> list[str]:
    croppers = {
        "true box": "column true_bbox of datasets/rows",
        "SFT": "models/rows_sft",
        "GRPO": "models/rows_grpo",
    }
    for name, model in croppers.items():
        texts = [f"[0, 0, 50, 50].{' ' * len(name)}"] * 100
        write_boxes(Path(f"p/{name}_bbox.json"), texts, model, "datasets/rows")
        answers = right(right_answers.get(name, 0))
        kind = {"dataset": "datasets/rows", "split": "test"}
        write_answers(Path(f"p/{name}_answers.json"), answers, answerer="miniature/models/smolvlm", boxes=texts, **kind)
    unseen = {"answerer": "miniature/models/llava", "settings": {"longest_edge": None}}
    answers = right(right_answers.get("unseen, GRPO", 0))
    write_answers(Path("p/unseen_answers.json"), answers, boxes=texts, **unseen, **kind)
    write_answers(Path("p/unseen_base_answers.json"), right(0), **unseen, **kind)
    answers = right(right_answers["no crop"])
    write_answers(Path("p/base_answers.json"), answers, answerer="miniature/models/smolvlm", **kind)
    report = judge_folder(Path("p"), Path("claims.yaml"), {"name": "rows"})
    return [verdict.verdict for verdict in report.verdicts]


@pytest.fixture
def miniature(world):
    """The miniature's claims on 100 rows."""
    import datasets

    rows = datasets.load_from_disk("rows")
    datasets.DatasetDict(test=rows).save_to_disk("datasets/rows")
    Path("claims.yaml").write_text(MINIATURE.read_text().replace("rows: 640", "rows: 100"))


def test_the_miniatures_claims_hold_at_their_bars(miniature):
    assert miniature_verdicts(AT_THE_BARS) == ["reproduced"] * 6


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        (0, {"no crop": 41}),
        (1, {"true box": 84}),
        (2, {"SFT": 49}),
        (3, {"SFT": 69}),  # 3 fewer than with GRPO
        (4, {"GRPO": 71}),  # 31 of 45 points are 69%
        (5, {"unseen, GRPO": 3}),
    ],
)
def test_a_claim_of_the_miniature_fails_just_below_its_bar(miniature, claim, changed):
    assert miniature_verdicts(AT_THE_BARS | changed)[claim] == "not reproduced"
