"""Every benchmark of the table on a small copy with its published columns and types, and what is refused."""

import base64
from pathlib import Path

import datasets
import pytest
from published import BLUE, IMAGES, RED, hrbench, stvqa, table, textvqa, write_docvqa, write_vstar

from cropvlm.data.images import open_image
from cropvlm.data.rows import benchmark_for, load_rows
from cropvlm.errors import UserError

DOCVQA_TEST = "  - split: test\n    path: DocVQA/test-*\n"


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """Copies of the benchmarks, DocVQA and InfographicVQA in one, both sizes of HR-Bench in one."""
    folder = tmp_path_factory.mktemp("copies")
    textvqa().save_to_disk(folder / "textvqa")
    stvqa().save_to_disk(folder / "stvqa")
    datasets.DatasetDict(hrbench_4k=hrbench(), hrbench_8k=hrbench()).save_to_disk(folder / "hrbench")
    write_vstar(folder / "vstar")
    write_docvqa(folder / "docvqa")
    splits = {"train": textvqa(), "validation": textvqa().select([1, 0]), "test": textvqa().select([])}
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    return folder


HR_QUESTION = "What color is the bus?\nA. red\nB. blue\nC. cannot tell\nD. green"
EXPECTED = [
    # name, copy, ids, first question, first answers, columns that are kept
    ("textvqa", "textvqa", [34602, 34603], "what is it?", ["nokia"] * 10, {"image_id", "ocr_tokens"}),
    ("docvqa", "docvqa", ["49153", "24580"], "what is it?", ["0.28", "0.280"], {"docId", "question_types"}),
    ("infovqa", "docvqa", ["98313", "98314"], "what is it?", ["4"], {"ocr"}),
    ("stvqa", "stvqa", [0, 1], "what is it?", ["a", "b"], {"path"}),
    ("vstar", "vstar", ["0", "1"], "What is the color of the cup?\n(A) red\n(B) blue", ["B"], {"category"}),
    ("hrbench4k", "hrbench", [0, 1], HR_QUESTION, ["A"], {"category", "cycle_category"}),
    ("hrbench8k", "hrbench", [0, 1], HR_QUESTION, ["A"], {"category", "cycle_category"}),
]


@pytest.mark.parametrize(("name", "copy", "ids", "question", "answers", "kept"), EXPECTED)
def test_a_published_copy_comes_in_the_row_schema(copies, name, copy, ids, question, answers, kept):
    rows = load_rows(copies / copy, dataset=name)
    assert list(rows["question_id"]) == ids
    assert set(rows.column_names) == {"image", "question", "question_id", "answers"} | kept
    assert rows[0]["question"] == question
    assert rows[0]["answers"] == answers
    # The encoded bytes themselves, and no PIL image: nothing was decoded on the way.
    assert [row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes() for row in rows] == [RED, BLUE]
    assert open_image(rows[1]["image"]).size == (8, 6)


def test_a_copy_is_told_by_its_columns(copies):
    assert [benchmark_for(copies / name).name for name in ("textvqa", "stvqa", "vstar")] == [
        "textvqa",
        "stvqa",
        "vstar",
    ]
    assert benchmark_for(copies / "hrbench", split="hrbench_4k").name == "hrbench4k"
    assert benchmark_for(f"{copies}/docvqa:DocVQA", split="test").metric == "anls"
    assert list(load_rows(f"{copies}/docvqa:DocVQA", "test")["question_id"]) == ["49153", "24580"]
    # A benchmark in the schema's own columns:
    assert list(load_rows(copies / "textvqa", dataset="docvqa")["question_id"]) == [34602, 34603]
    assert benchmark_for(copies / "textvqa", "docvqa").metric == "anls"


def test_stvqa_with_published_ids_keeps_them(tmp_path):
    # lmms-lab/ST-VQA: a test split without answers
    table(question_id=["t1"], question=["q"], image=IMAGES[:1]).save_to_disk(tmp_path)
    rows = load_rows(tmp_path, dataset="stvqa")
    assert rows["question_id"][:] == ["t1"]
    assert "answers" not in rows.column_names


def test_splits(copies):
    assert list(load_rows(copies / "splits", "validation")["question_id"]) == [34603, 34602]
    assert list(load_rows(copies / "splits", default_split="train")["question_id"]) == [34602, 34603]
    assert list(load_rows(copies / "splits", dataset="textvqa")["question_id"]) == [34603, 34602]
    assert list(load_rows(copies / "textvqa", default_split="train")["question_id"]) == [34602, 34603]
    rows = load_rows(copies / "hrbench", "hrbench_4k", need=("question_id", "answers"))
    assert rows[0]["image"] == base64.b64encode(RED).decode()  # images are left alone where none are needed


@pytest.mark.parametrize("named", [False, True])
def test_training_rows_of_a_copy_whose_card_does_not_list_them(tmp_path, caplog, named):
    source = {"dataset_path": tmp_path, "dataset": "docvqa"} if named else {"dataset_path": f"{tmp_path}:DocVQA"}
    write_docvqa(tmp_path)
    assert load_rows(**source, default_split="train")["question_id"][:] == ["337", "338"]
    assert caplog.text == ""
    for file in tmp_path.glob("*/t*.parquet"):  # train and test
        file.unlink()
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text().replace(DOCVQA_TEST, ""))
    assert load_rows(**source, default_split="train")["question_id"][:] == ["49153", "24580"]
    assert "has no split train: its rows are of validation" in caplog.text


def test_a_saved_set_of_another_split_is_said(tmp_path, caplog):
    textvqa().to_parquet(tmp_path / "rows.parquet")
    alone = datasets.load_dataset("parquet", data_files={"validation": str(tmp_path / "rows.parquet")})["validation"]
    alone.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict(validation=textvqa()).save_to_disk(tmp_path / "dict")
    for name in ("alone", "dict"):
        load_rows(tmp_path / name, default_split="train")
        assert f"{tmp_path}/{name} has no split train: its rows are of validation" in caplog.text
    caplog.clear()
    load_rows(tmp_path / "dict", "validation", default_split="train")  # asked for
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("path", "arguments", "problem"),
    [
        ("FOLDER/nothing", {}, "no data set at .*nothing: no such folder"),
        ("FOLDER/textvqa", {"dataset": "imagenet"}, "unknown benchmark 'imagenet'; expected one of textvqa, "),
        ("FOLDER/textvqa", {"split": "train"}, "has no splits, but 'train' was asked for"),
        ("FOLDER/splits", {}, "has several splits; name one with --split: train, validation, test"),
        ("FOLDER/docvqa:x", {}, "has no configuration x: DocVQA, InfographicVQA"),
        ("FOLDER/docvqa", {"dataset": "docvqa", "split": "x"}, "has no split 'x'; there are: validation, test, train"),
        ("FOLDER/docvqa", {}, "has several configurations; choose one, as ID:NAME: DocVQA"),
        ("FOLDER/textvqa", {"need": ("image", "bbox")}, "has no column bbox; its columns are: image_id, "),
        ("nobody/nothing", {}, "nobody/nothing is neither a local folder nor available .*; expected a folder"),
        ("", {}, "the data set has an empty name"),
    ],
)
def test_what_is_refused(copies, path, arguments, problem):
    with pytest.raises(UserError, match=problem) as error:
        load_rows(path.replace("FOLDER", str(copies)), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"question": "Z\xf6e?", "question_id": 1, "image": "x.png"}\n', "not UTF-8.*0xf6"),
        ("a.csv", b"question,question_id,image\nZ\xf6e?,1,x.png\n", "can't decode byte 0xf6"),
        ("a.jsonl", b"", "has no rows"),
        ("state.json", b"nonsense", "is not a readable data set"),
        ("data-00000-of-00001.arrow", b"nonsense", "is not a readable data set"),
    ],
    ids=["jsonl", "csv", "empty", "state", "arrow"],
)
def test_files_that_cannot_be_read(tmp_path, name, content, problem):
    if content == b"nonsense":
        textvqa().save_to_disk(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        load_rows(tmp_path)
