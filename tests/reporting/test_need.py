"""The curve of whether to crop, by hand, and in the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from reporting_worlds import BOXES, CLAIMS, NONE, SFT, judged, right, write_answers, write_boxes, write_rows

from cropvlm.runs.predictions import meta_path
from reporting import results
from reporting.claims_file import each_run
from reporting.gains import pairs
from reporting.need import NeedCurve
from reporting.report import compare_files, judge_folder, write

pytestmark = pytest.mark.usefixtures("answered")


def write_needs(needs: list[float]) -> None:
    records = json.loads(Path("p/sft_bbox.json").read_text())
    needed = [record | {"need": need} for record, need in zip(records, needs, strict=True)]
    Path("p/sft_bbox.json").write_text(json.dumps(needed))


def curve():
    (pair,) = pairs(results.read_folder("p"))
    return NeedCurve(pair)


def test_a_curve_by_hand():
    # Rows 50 to 99 ask for a crop, row 50 most: ten of the 20 that it would help.
    write_needs([99 - abs(i - 50) - 49.5 if i >= 50 else i - 50.0 for i in range(100)])
    decide, summary = curve().scores["decide"], curve().summary
    assert decide[[0, 5, 10, 50, 60, 100]].tolist() == pytest.approx([40, 45, 50, 50, 60, 60])
    assert curve().scores["oracle"][[10, 20, 100]].tolist() == pytest.approx([50, 60, 60])
    assert (summary["never"], summary["always"], summary["decides_itself"]) == pytest.approx((40, 60, 50))
    assert summary["crops_pct"] == 50
    assert (summary["precision"], summary["recall"]) == (1, 0.5)
    # From k = 60 on nothing is lost. At 59 one row is: 1 +- 1.96 points may be more than 1.
    assert summary["largest_saving_pct"] == 40
    assert summary["over_random"] == pytest.approx(0)  # half of all rows, half of those that gain
    random = np.linspace(40, 60, 101)
    assert summary["area_above_random"] == pytest.approx((decide - random).mean())


DECIDED = {"answerer": "small", "cropper": "sft", "need_threshold": "0"}  # a text, as a name is filled in
DECISIONS = {
    "against all crops": ({"score": DECIDED, "over": SFT, "at_least": -50}, 55 - 60),
    "against none": ({"score": DECIDED, "over": NONE}, 55 - 40),
    "crops": ({"metric": "crops", "score": DECIDED, "at_most": 75}, 15),
    "all crops": ({"metric": "crops", "score": SFT, "at_least": 75}, 100),
    "of the small": ({"metric": "crops", "score": DECIDED, "widths": [20, 32], "at_most": 75}, 20),
    "of the large": ({"metric": "crops", "score": DECIDED, "widths": [55, 82], "at_most": 75}, 10),
    # 15 of the 20 points with 15% of the crops, which at random make 3.
    "over random": ({"metric": "over_random", "score": DECIDED, "over": NONE, "of": SFT}, 12),
}


@pytest.mark.parametrize(("claim", "value"), DECISIONS.values(), ids=DECISIONS)
def test_claims_on_what_was_decided(claim, value):
    results._load_rows.cache_clear()
    write_rows(Path("rows"), true_bbox=[[10, 10, 30 if i < 50 else 70, 50] for i in range(100)])
    write_needs([1.0 if 40 <= i < 55 else -1.0 for i in range(100)])
    Path("claims.yaml").write_text(CLAIMS + yaml.safe_dump({"claims": [{"says": "so", **claim}]}))
    (verdict,) = judged().verdicts
    assert (verdict.ours, verdict.verdict) == (pytest.approx(value), "reproduced")
    (again,) = judge_folder(Path("p"), each_run(Path("claims.yaml"), seeds=2)).verdicts
    assert (again.ours, again.runs) == (verdict.ours, 1)  # nothing is trained


def edit_meta(path: str, part: str, **values) -> None:
    content = json.loads(meta_path(path).read_text())
    meta_path(path).write_text(json.dumps(content | {part: content.get(part, {}) | values}))


def lose_boxes() -> None:
    edit_meta("p/sft_answers.json", "boxes", cropper={"stage": "SFT"})
    Path("p/sft_bbox.json").unlink()


UNDECIDED = {
    "no needs": (lambda: write_needs([None] * 100), "not comparable", "lacks the need of some rows"),
    "no boxes": (lose_boxes, "not comparable", "is missing, which has the need"),
    "no base answers": (lambda: Path("p/none_answers.json").unlink(), "not run", "answers/small/none/rows"),
    "another dtype": (
        lambda: edit_meta("p/none_answers.json", "settings", dtype="torch.float16"),
        "not comparable",
        "not of the same questions and settings",
    ),
}


@pytest.mark.parametrize(("spoil", "verdict", "reason"), UNDECIDED.values(), ids=UNDECIDED)
def test_what_was_decided_needs_both_answers_and_the_needs(spoil, verdict, reason):
    write_needs([1.0] * 100)
    spoil()
    Path("claims.yaml").write_text(CLAIMS + yaml.safe_dump({"claims": [{"says": "so", "score": DECIDED, "over": SFT}]}))
    (found,) = judged().verdicts
    assert found.verdict == verdict
    assert reason in found.reason


def test_a_file_without_needs_has_no_curve_nor_one_made_at_a_threshold():
    assert judged().curves == []
    write_needs([1.0] * 100)
    settings = {"need_threshold": 0.0}
    write_answers(Path("p/sft_answers.json"), right(60), "rows", boxes=BOXES, settings=settings)
    assert judged().curves == []
    assert compare_files(Path("p/sft_answers.json"), Path("p/none_answers.json")).curves == []


def test_the_report_has_a_table_and_a_picture():
    write(judged(), Path("plain"), 5)
    assert "Whether to crop" not in Path("plain/report.html").read_text()
    assert "need" not in json.loads(Path("plain/report.json").read_text())
    learnt = {"need": {"answerer": "vlm", "longest_edge": 512}}
    write_boxes(Path("p/sft_bbox.json"), BOXES, "models/sft", "rows", learnt)
    write_needs([float(i - 39) for i in range(100)])
    write_answers(Path("p/half_answers.json"), right(50), "rows", boxes=BOXES, settings={"need_threshold": 9.0})
    made = judged()
    assert len(made.results) == 2  # not the answers at a threshold
    write(made, Path("out"), 5)
    text = Path("out/report.md").read_text()
    assert "| rows: small, SFT | 40.00 | 60.00 | 60.00 | 61.00 |" in text
    assert "| 1, 1.61, 2 images | 1.00 | vlm, 512 px |" in text  # no processor is here to count tokens
    (summary,) = json.loads(Path("out/report.json").read_text())["need"]
    assert (summary["recall"], summary["cost"]["cropper"]) == (1, 1)
    assert "<figcaption>Whether to crop: rows: small, SFT</figcaption>" in Path("out/report.html").read_text()
