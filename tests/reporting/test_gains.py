"""Where a gain comes from: its parts, stolen answers, and why the crop made a question worse."""

import json
from pathlib import Path

import pytest
from reporting_worlds import BOXES, judged, right, write_answers, write_rows

from reporting import results
from reporting.gains import Pair, pairs
from reporting.report import write

pytestmark = pytest.mark.usefixtures("answered")


def write_control(name: str, answers: list[str], boxes: list[str] = BOXES, **meta) -> None:
    settings = {"mode": name, "control": name}
    write_answers(Path(f"p/{name}_answers.json"), answers, "rows", boxes=boxes, settings=settings, **meta)


def made_pairs(folder: Path = Path("p")) -> list[Pair]:
    found = results.read_folder(folder)
    return pairs([r for r in found if not r.control], [r for r in found if r.control])


def test_the_parts_of_a_gain_by_hand():
    for name, number in {"full_twice": 42, "no_detail": 45, "elsewhere": 41, "centre": 50}.items():
        write_control(name, right(number))
    write_control("wider", right(99), boxes=["[0, 0, 9, 9]."] * 100)  # of another cropper's boxes
    (pair,) = made_pairs()
    assert {part: compared["difference"] for part, compared in pair.parts.items()} == pytest.approx(
        {
            "gain": 60 - 40,
            "tokens of one more image": 42 - 40,
            "position": 45 - 42,
            "detail": 60 - 45,
            "place": 60 - 41,
            "crop over centre": 60 - 50,
        }
    )
    low, high = pair.parts["detail"]["interval_95"]
    assert 7 < low < 15 < high < 23  # 15 of 100 differ: 15 +- 1.96 * 3.6


def test_rows_that_the_partner_leaves_out_are_left_out_of_the_crop_too():
    write_control("partner", right(30, 50), left_out=list(range(50, 100)), counts={"rows": 50, "seconds": 1})
    (pair,) = made_pairs()
    compared = pair.parts["crop over partner"]
    assert (compared["difference"], compared["other_score"], compared["questions"]) == (100 - 60, 60, 50)


def test_stolen_answers_by_hand(tmp_path):
    results._load_rows.cache_clear()
    write_rows(tmp_path / "few", 4, answers=[["a"], ["b"], ["b"], ["d"]])  # partners: 1, 2, 3, 0
    for name, answers in {"none": "abbd", "sft": "abbd", "partner": "bbbx"}.items():
        settings = {"mode": "partner", "control": "partner"} if name == "partner" else {}
        boxes = None if name == "none" else BOXES[:4]
        write_answers(tmp_path / f"q/{name}_answers.json", list(answers), str(tmp_path / "few"), boxes=boxes,
                      settings=settings)  # fmt: skip
    (pair,) = made_pairs(tmp_path / "q")
    # Row 0 says its partner's b. Row 1 says b, which is its own as well; 2 its own; 3 neither d nor a.
    assert pair.stolen == 25


def answers(*wrong: int) -> list[str]:
    return ["no" if i in wrong else "yes" for i in range(100)]


@pytest.mark.parametrize(
    ("controls", "causes"),
    [
        # Right without the crop and wrong with it: rows 0 to 3.
        ({"wider": (1, 2, 3), "full_twice": (0, 2, 3)}, ["too tight", "wrong place", "misled", "misled"]),
        ({"wider": (), "full_twice": ()}, ["too tight"] * 4),
        ({"full_twice": (0, 1, 2)}, ["unexplained"] * 3 + ["wrong place"]),
    ],
)
def test_why_rows_became_worse(controls, causes):
    write_answers(Path("p/none_answers.json"), answers(), "rows")
    write_answers(Path("p/sft_answers.json"), answers(0, 1, 2, 3), "rows", boxes=BOXES)
    for name, wrong in controls.items():
        write_control(name, answers(*wrong))
    (pair,) = made_pairs()
    assert pair.causes == causes + [None] * 96
    assert list(pair.parts)[:2] == ["gain", "tokens of one more image"]
    assert "detail" not in pair.parts  # its control was not run


def test_the_report_has_a_table_and_a_filter_for_each_cause():
    write_answers(Path("p/none_answers.json"), answers(50), "rows")
    write_answers(Path("p/sft_answers.json"), answers(0, 1, 2), "rows", boxes=BOXES)
    for name, wrong in {"full_twice": (0, 1), "wider": (0, 2)}.items():
        write_control(name, answers(*wrong))
    made = judged()
    assert len(made.results) == 2  # controls are neither results of their own nor bases of a pair
    assert len(made.pairs) == 1
    write(made, Path("out"), example_count=100)
    text = Path("out/report.md").read_text()
    assert "| rows: small, SFT | gain | -2.00 | " in text
    assert "| rows: small, SFT | made worse: misled |  |  | 1 |" in text
    (gain,) = json.loads(Path("out/report.json").read_text())["gains"]
    assert gain["made_worse"] == {"too tight": 1, "wrong place": 1, "misled": 1, "unexplained": 0}
    page = Path("out/report.html").read_text()
    for cause in ("too tight", "wrong place", "misled"):
        assert f'data-filter="{cause}"' in page
        assert page.count(f'data-cause="{cause}"') == 1
    assert 'data-filter="unexplained"' not in page
