"""The report's script: what it writes, how it ends, and what it says of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pictures import png
from PIL import Image
from processes import REPO, call_script
from reporting_worlds import CLAIMS, FIGURE, NONE, SFT, judged, right, write_answers, write_boxes, write_rows

from cropvlm.errors import UserError
from cropvlm.runs.files import lock
from cropvlm.runs.predictions import meta_path
from reporting import tables
from reporting.claims_file import read_claims
from reporting.costs import _images, costs
from reporting.examples import examples
from reporting.plots import new_figure
from reporting.rates import measured_rates
from reporting.report import FILES, compare_files, summary, write


@pytest.fixture(autouse=True)
def world(answered):
    """Answers with claims on them."""
    claim = {"says": "SFT *helps* <b>", "score": SFT, "over": NONE}
    content = {"claims": [claim], "figures": [FIGURE | {"reported": 55, "margin": 1}]}
    Path("claims.yaml").write_text(CLAIMS + yaml.safe_dump(content))


def test_files_and_exit_code():
    made = judged()
    write(made, Path("out"), example_count=10)
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(FILES)
    content = json.loads(Path("out/report.json").read_text())
    assert [verdict["verdict"] for verdict in content["verdicts"]] == ["not reproduced", "reproduced"]
    assert [file["score"] for file in content["files"]] == pytest.approx([40, 60])
    assert content["pairs"][0]["difference"] == pytest.approx(20)
    text = Path("out/report.md").read_text()
    assert "| rows: small, no crop | 55.00 +- 1 | 40.00 | -15.00 |" in text
    assert "| SFT \\*helps\\* \\<b\\> | above 0 | 20.00 |" in text
    assert [cost["images_per_question"] for cost in map(costs, made.results)] == [1, 2]
    assert costs(made.results[0])["seconds_per_question"] == 0.02  # 2 s for 100 rows
    assert "gains" not in content  # nothing is said of controls without any
    assert "Where the gain" not in text
    assert made.exit_code == 3  # the figure is not reproduced
    assert "Every cropper was trained once" in text
    assert "- not reproduced: rows: small, no crop: 40.0, 95% interval" in summary(made)
    page = Path("out/report.html").read_text()
    assert page.count("<article") == 10
    assert "SFT *helps* &lt;b&gt;" in page


def test_two_files():
    made = compare_files(Path("p/sft_answers.json"), Path("p/none_answers.json"))
    write(made, Path("out"), example_count=5)
    assert made.exit_code == 0
    assert ", 40.00, 60.00, +20.00, [" in summary(made)
    text = Path("out/report.md").read_text()
    assert text.startswith("# sft_answers.json against none_answers.json")
    assert "| setting | B | A | difference |" in text
    # The other way round
    made = compare_files(Path("p/none_answers.json"), Path("p/sft_answers.json"))
    assert ", 60.00, 40.00, -20.00, [" in summary(made)
    write_answers(Path("p/few_answers.json"), right(10, 50), "rows", max_samples=50)
    with pytest.raises(UserError, match=r"few_answers.json and p/none_answers.json answer different questions"):
        compare_files(Path("p/few_answers.json"), Path("p/none_answers.json"))


def without(path: str, key: str, inner: str | None = None) -> None:
    """Remove a key from a meta file, or one within it, as an older version would have written it."""
    meta = json.loads(meta_path(path).read_text())
    meta[key] = {name: value for name, value in meta[key].items() if inner and name != inner}
    meta_path(path).write_text(json.dumps({name: value for name, value in meta.items() if value}))


def new_rows(**columns: list) -> None:
    shutil.rmtree("rows")
    write_rows(Path("rows"), **columns)


BAD = {
    "no folder": (lambda: Path("p").rename("gone"), "p is not a folder"),
    "no predictions": (lambda: [path.unlink() for path in Path("p").glob("*answers.json")], "p has no answer files"),
    "old meta file": (lambda: without("p/none_answers.json", "settings", "mode"), "version, it has no settings.mode"),
    "old box file": (lambda: without("p/sft_bbox.json", "models"), "sft_bbox.meta.json was written by another version"),
    "data set gone": (lambda: Path("rows").rename("moved"), "p/sft_answers.json cannot be scored: rows is neither"),
    "references gone": (lambda: new_rows(answers=[[]] * 100), "cannot be scored: none of the 100 rows has references"),
    "other ids": (lambda: new_rows(question_id=list(range(1, 101))), "p/sft_answers.json"),
    "claims that are a list": (lambda: Path("claims.yaml").write_text("[]"), "claims.yaml is not a claims file: it is"),
    "no claims": (lambda: Path("claims.yaml").unlink(), "cannot read claims.yaml"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(change, message):
    change()
    with pytest.raises(UserError) as raised:
        judged()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value).strip()


BAD_CLAIMS = {
    "no YAML": ("title: a test", "a: [", "is not YAML"),
    "a name": ("cropper: none\n  margin", "cropper: best\n  margin", "figures[0]: 'best' is not one"),
    "no bar": ("over:\n    answerer: small\n    cropper: none\n  says", "says", "lacks something to compare with"),
    "unknown key": ("title: a test", "title: a test\nmore: 1", "more"),
    "a key twice": ("title: a test", "title: a test\ntitle: b", "the key 'title' is given twice"),
    "a name for a name": ("title: a test", "title: '{name}'", "{name} is not under names"),
    "no rows": ("rows: 100", "rows: 0", "benchmarks.rows.rows"),
    "missing": ("title: small, ", "", "answerers.small.title"),
    "nan": ("reported: 55", "reported: .nan", "figures[0].reported"),
    "more than all": ("reported: 55", "reported: 155", "figures[0].reported"),
    "text for a number": ("reported: 55", "reported: '55'", "figures[0].reported"),
    "inf": ("margin: 1", "margin: .inf", "figures[0].margin"),
    "negative": ("margin: 1", "margin: -1", "figures[0].margin"),
    "both": ("margin: 1", "margin: 1\n  tolerance: 1", "has no margin, or a tolerance beside"),
    "metric": ("margin: 1", "metric: bleu\n  margin: 1", "figures[0].metric"),
    "bars": ("  says: SFT", "  at_least: 3\n  at_most: 2\n  says: SFT", "no score can meet it"),
    "a margin for all": ("margin: 1\n  reported: 55", "tolerance: 1\n  reported: 55\nmargin: 1", "a tolerance beside"),
    "no boxes": ("over:\n", "over:\n    need_threshold: 0\n", "a control or a threshold without a cropper"),
    "no ends of over_random": ("over:\n", "metric: over_random\n  over:\n", "expected score, over and of"),
    "trained on nothing": ("trained_on: rows", "training: x", "croppers.grpo.trained_on: None is not"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD_CLAIMS.values(), ids=BAD_CLAIMS)
def test_every_field_of_a_claims_file_is_checked(old, new, message):
    text = Path("claims.yaml").read_text()
    assert old in text
    Path("claims.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        read_claims("claims.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cropper_may_be_named_by_a_word_that_yaml_reads_as_a_switch():
    text = Path("claims.yaml").read_text().replace("  sft: {", "  true: {").replace("cropper: sft", "cropper: true")
    Path("claims.yaml").write_text(text)
    assert judged().verdicts[1].verdict == "reproduced"


def test_rows_without_references_move_no_other_row():
    """Row 0 has no references: costs and examples are of the rows that are scored."""
    first, other = ({"bytes": png(Image.new("RGB", size)), "path": None} for size in ((9, 9), (40, 20)))
    new_rows(answers=[[]] + [["yes"]] * 99, image=[first] + [other] * 99)
    texts = ["[0, 0, 1, 1]."] + ["[0, 0, 50, 50]."] * 99
    write_boxes(Path("p/grpo_bbox.json"), texts, "models/grpo", "rows")
    write_answers(Path("p/grpo_answers.json"), ["none"] + ["yes"] * 99, "rows", boxes=texts)
    made = compare_files(Path("p/grpo_answers.json"), Path("p/none_answers.json"))
    shown = examples(made.pairs[0], 100)
    assert {(example["box_text"], example["after"]) for example in shown} == {("[0, 0, 50, 50].", "yes")}
    assert {example["question_id"] for example in shown} == {str(i) for i in range(1, 100)}
    assert [image.size for image in _images(made.results[0], 0, crop=True)] == [(40, 20), (20, 10)]


def test_boxes_that_are_gone_are_no_fault(caplog):
    Path("p/sft_bbox.json").unlink()
    made = judged()
    assert [verdict.verdict for verdict in made.verdicts] == ["not reproduced", "not run"]
    assert "the box file that it was made with is not in the folder" in caplog.text
    write(made, Path("out"), 5)


def test_foreign_files_beside_predictions_are_passed_over(caplog):
    for name in ("._sft_bbox.json", "._sft_bbox.meta.json", "._none_answers.json", "._none_answers.meta.json"):
        (Path("p") / name).write_bytes(b"\0\5\x16\7Mac OS X")  # as macOS leaves them on other file systems
    Path("p/notes_bbox.json").write_text("[]")
    assert len(judged().results) == 2
    assert len(compare_files(Path("p/sft_answers.json"), Path("p/none_answers.json")).results) == 2
    assert measured_rates(Path("p"))
    assert caplog.messages.count("p/notes_bbox.json has no meta file; left out") == 2


def test_other_benchmarks_are_left_out_unread(caplog):
    write_answers(Path("p/other_answers.json"), right(5), "gone/elsewhere")
    assert len(judged().results) == 2
    assert "1 answer files of other benchmarks are left out" in caplog.text
    for name in ("none", "sft"):
        Path(f"p/{name}_answers.json").unlink()
    made = judged()
    write(made, Path("out"), 5)
    assert (made.exit_code, {verdict.verdict for verdict in made.verdicts}) == (0, {"not run"})


def test_text_that_is_long_has_no_utf8_or_breaks_a_table():
    texts = ["\ud800 | `a` </script>" + "x" * 50_000] * 100
    write_boxes(Path("p/grpo_bbox.json"), texts, "models/grpo", "rows")
    write_answers(Path("p/grpo_answers.json"), texts, "rows", boxes=texts)
    write(judged(), Path("out"), 100)
    write(compare_files(Path("p/grpo_answers.json"), Path("p/none_answers.json")), Path("out"), 100)
    assert Path("out/report.html").stat().st_size < 2_000_000  # shortened on the page
    assert tables.markdown_table([{"a": "c\nd|e"}]).splitlines()[-1] == "| c d\\|e |"


@pytest.mark.slow
def test_as_a_command(monkeypatch, capsys):
    flags = ["--predictions", "p", "--claims", "claims.yaml", "--examples", "3"]
    assert call_script(monkeypatch, "scripts/report.py", *flags) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "report: p/report.md, p/report.json, p/report.html"
    with lock(Path("p/_report_lock")):  # another process holds it
        call = [sys.executable, REPO / "scripts/report.py", *flags]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, "another run is writing here" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "flags",
    ["--predictions_file a", "--names x", "--examples 0", "--predictions p --predictions_file a --compare b"],
)
def test_a_mistake_in_the_flags_is_one_line(flags, monkeypatch, capsys):
    assert call_script(monkeypatch, "scripts/report.py", *flags.split()) == 2
    error = capsys.readouterr().err
    assert (error[:7], error.count("\n")) == ("error: ", 1)


def test_names_in_a_plot_are_plain_text():
    assert not new_figure(2, 1).suptitle("$5 or $x_y$").get_parse_math()
