"""Mixtures: the release's four sources with their published columns, brought to one schema; shares, caps and halves."""

import pytest
from datasets import Dataset, Value
from published import RED

from cropvlm.errors import UserError
from cropvlm.sets import rows as mixture
from cropvlm.sets.flags import parse_source
from cropvlm.sets.rows import halve, with_boxes, with_references
from cropvlm.teacher import GrownBox, share_of

TEXT = Value("string")


def load_sources(entries: list[str], **options) -> list[Dataset]:
    return mixture.load_sources(list(map(parse_source, entries)), **options)


def test_the_four_published_schemas_become_one(hub_copies):
    sources = load_sources(["textvqa", "docvqa", "infovqa", "stvqa"])
    assert [len(rows) for rows in sources] == [40, 2, 2, 2]
    for rows in sources:
        assert rows.column_names == ["image", "question", "question_id", "answers", "source"]
        assert rows.features == sources[0].features
    assert [rows["question_id"][0] for rows in sources] == ["textvqa/34602", "docvqa/337", "infovqa/337", "stvqa/0"]
    assert [rows["source"][0] for rows in sources] == ["textvqa", "docvqa", "infovqa", "stvqa"]
    assert sources[3][0]["image"]["bytes"] == RED


def test_shares_and_caps(hub_copies):
    assert share_of(0.29, 100) == 29  # which floats make 28.999999999999996
    sources = load_sources(["textvqa=0.5", "docvqa=1", "stvqa=99"], max_samples=7)
    assert [len(rows) for rows in sources] == [3, 1, 2]  # int(7 * 0.5), 1, all there are
    assert sources[1]["question_id"][:] == ["docvqa/337"]  # the first ones


def test_two_folders_of_one_name(tmp_path):
    folders = [str(tmp_path / parent / "boxes") for parent in ("a", "b")]
    with pytest.raises(UserError, match=f"{folders[0]} and {folders[1]} are both called boxes.*; rename one"):
        load_sources(folders)


def test_a_source_holds_no_file_from_outside(tmp_path):
    (tmp_path / "mine.jpg").write_bytes(RED)
    (tmp_path / "data").mkdir()
    rows = {"question": ["q"], "image": [str(tmp_path / "mine.jpg")]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "data/train.parquet")
    with pytest.raises(UserError, match="lies outside of the data set"):
        load_sources([str(tmp_path / "data")])


def test_every_source_is_halved(hub_copies):
    sft, grpo = halve(load_sources(["textvqa=5", "docvqa", "infovqa"]))
    assert sft["source"][:] == ["textvqa"] * 2 + ["docvqa", "infovqa"]  # 5 // 2 and 2 // 2 rows first
    assert grpo["source"][:] == ["textvqa"] * 3 + ["docvqa", "infovqa"]
    assert grpo["question_id"][3] == "docvqa/338"
    with pytest.raises(UserError, match="docvqa has 1 rows; a share of 0.5 for SFT holds not even one"):
        halve(load_sources(["textvqa", "docvqa=1"]))


def test_rows_without_references_are_counted_by_source_and_named(caplog):
    ids, sources = ["a/1", "a/2", "b/1", "b/2", "b/3"], ["a", "a", "b", "b", "b"]
    rows = Dataset.from_dict({"question_id": ids, "source": sources, "answers": [["yes"], [], [], ["no"], []]})
    assert with_references(rows)["question_id"][:] == ["a/1", "b/2"]
    assert "no references, left out of the GRPO part: {'a': 1, 'b': 2} (a/2, b/1, b/3)" in caplog.text


def test_rows_without_a_box_are_left_out_and_named(caplog):
    # Columns of an earlier run give way.
    rows = Dataset.from_dict({"question_id": [1, 2], "source": ["a", "a"], "bbox": [[0, 0, 1, 1]] * 2})
    box = GrownBox("box", (0, 0, 5, 5), (10, 10), 0.25, fifth=4, bbox_pct=(0, 0, 50, 50))
    # Half a surrogate pair, from a journal, could not be stored.
    boxed = with_boxes(rows, [{"error": "broken"}, {"teacher_response": "[0, 0, 5, 5] \ud83d \u00e9"}], [None, box])
    expected = {"question_id": 2, "source": "a", "bbox": [0, 0, 50, 50], "teacher_response": "[0, 0, 5, 5] ? \u00e9"}
    assert boxed.to_list() == [expected]
    assert "unreadable images or failed rows, left out of the SFT part: {'a': 1} (1)" in caplog.text
