"""Columns of every published form become the row schema, or are refused in one short line."""

import base64
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, List
from published import BLUE, IMAGES, RED, TEXT

from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError

YES = {"answer": "yes", "answer_confidence": "maybe", "answer_id": 1}
NO = {"answer": "no", "answer_confidence": "yes", "answer_id": 2}


def save(folder: Path, **columns) -> Path:
    """A parquet file of two rows as other programs write it; `columns` replaces or adds, None takes away."""
    rows = {"question_id": [1, 2], "question": ["q", "r"], "answers": [["a"], ["b"]], "image": IMAGES} | columns
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in rows.items() if v is not None}), folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    ("published", "references"),
    [
        pytest.param(["a", "b"], [["a"], ["b"]], id="strings"),
        pytest.param([[YES, NO], [NO]], [["yes", "no"], ["no"]], id="VQAv2"),
        pytest.param([{"text": ["a", "b"], "answer_start": [1, 2]}] * 2, [["a", "b"]] * 2, id="SQuAD"),
        pytest.param([["", " ", "a"], ["\t"]], [["a"], []], id="blanks"),
        pytest.param([float("nan"), 2.0], [[], ["2"]], id="a blank in a CSV file of numbers"),
        pytest.param(['["a", "b"]', "[]"], [["a", "b"], []], id="JSON"),
        pytest.param(["['a', \"it's\"]", "stop"], [["a", "it's"], ["stop"]], id="one plain text among lists"),
        pytest.param(['["a", null, ["b"]]', "('c', 'd')"], [["a", "b"], ["c", "d"]], id="nested, a null, a tuple"),
        pytest.param(['["a\\ud83d"]', None], [["a?"], []], id="half a surrogate pair"),
        pytest.param(pa.array([[0.1, 2.0], [1.5]], pa.list_(pa.float32())), [["0.1", "2"], ["1.5"]], id="float32"),
        pytest.param(["[1.50, 2.0]", "[7]"], [["1.50", "2"], ["7"]], id="numbers"),
        pytest.param(["[sic] yes", "(1 of 2)"], [["[sic] yes"], ["(1 of 2)"]], id="brackets in a text"),
    ],
)
def test_references(tmp_path, published, references):
    assert load_rows(save(tmp_path / "data", answers=published))["answers"][:] == references


LISTS = ["['a' 'a']", "{'a', 'b'}", "['a', 'b", '"[\\"a\\", \\"b\\"]"', "<ArrowStringArray>\n['a']", "deque(['a'])"]


@pytest.mark.parametrize("cell", [*LISTS, "[1]"])  # [1] beside a text: a list or not?
def test_any_other_look_of_a_list_is_refused(tmp_path, cell):
    """Python reads numpy's ['a' 'a'] as ['aa'], which no right answer matches."""
    with pytest.raises(UserError, match="has the answers .*; expected"):
        load_rows(save(tmp_path / "data", answers=["stop", cell]))


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_texts_in_json_stay_what_they_are(tmp_path, suffix):
    """datasets would read 7, 0 and dates."""
    published = ["007", "-", "null", "1.50", "2020-01-01", None, {"answer": "a"}, [3, "007", "1e5"], []]
    rows = [{"question_id": i, "question": "q", "answers": answers} for i, answers in enumerate(published)]
    text = "\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows)
    (tmp_path / f"train.{suffix}").write_text(text)
    references = [["007"], ["-"], ["null"], ["1.50"], ["2020-01-01"], [], ["a"], ["3", "007", "1e5"], []]
    assert load_rows(tmp_path, need=("question_id", "answers"))["answers"][:] == references


def test_references_that_are_class_labels(tmp_path):
    features = Features({"question_id": TEXT, "answers": List(ClassLabel(names=["A", "B"]))})
    rows = datasets.Dataset.from_dict({"question_id": ["1", "2"], "answers": [[1, 0], [-1]]}, features=features)
    rows.save_to_disk(tmp_path)
    assert load_rows(tmp_path, need=("question_id", "answers"))["answers"][:] == [["B", "A"], []]


def test_a_csv_file_keeps_its_texts(tmp_path):
    (tmp_path / "1.jpg").write_bytes(RED)
    lines = ["1,None,None", "2,N/A,007", "3,cat,1.50", "4,nan,", '5,"a, b","[""x"", ""y""]"']
    text = "".join(f"{line},1.jpg\n" for line in ["question_id,question,answers", *lines]).replace("1.jpg", "image", 1)
    (tmp_path / "train.csv").write_text(text)
    rows = load_rows(tmp_path)
    assert rows["question_id"][:] == [1, 2, 3, 4, 5]
    assert rows["question"][:] == ["None", "N/A", "cat", "nan", "a, b"]
    assert rows["answers"][:] == [["None"], ["007"], ["1.50"], [], ["x", "y"]]


def test_ids_of_every_type(tmp_path):
    for kind, ids in {"uint64": [2**63 + 5, 2**64 - 1], "int16": [-1, 3], "large_string": ["x7", "007"]}.items():
        assert load_rows(save(tmp_path / "data", question_id=pa.array(ids, kind)))["question_id"][:] == ids


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (None, "no question_id"),
        ([5, 5], "duplicate question_ids"),
        ([5, None], "rows without a question_id"),
        ([5.0, float("nan")], "rows without a question_id"),
    ],
)
def test_row_numbers_serve_as_ids(tmp_path, caplog, ids, reason):
    assert load_rows(save(tmp_path / "data", question_id=ids))["question_id"][:] == [0, 1]
    assert caplog.messages == [f"{tmp_path}/data has {reason}: the row numbers serve as ids"]
    assert load_rows(save(tmp_path / "data", question_id=ids), max_samples=1)["question_id"][:] == [0]


NO_IMAGE = "none of the 2 images can be read; the first is an .*"


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"question_id": [[1], [2]]}, r"row 0 has the question_id \[1\]; expected a string or an integer"),
        ({"question": ["q", None]}, "row 1 has the question None; expected a string"),
        ({"answers": [[{"words": "x" * 10**6}], None]}, "row 0 has the answers .{97}[.]{3}; expected"),
        ({"answers": [[True], [False]]}, r"row 0 has the answers \[True\]; expected strings"),
        ({"image": [1, 2]}, "expected images in the column image, not Value"),
        ({"image": ["https://a.io/1.jpg"] * 2}, f"{NO_IMAGE}'?https://a.io/1.jpg'? is a URL, which is not downloaded"),
        ({"image": [{"bytes": b"no image", "path": None}] * 2}, f"{NO_IMAGE}unknown format"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_columns_are_checked_before_they_are_used(tmp_path, columns, problem):
    with pytest.raises(UserError, match=problem) as error:
        load_rows(save(tmp_path / "data", **columns))
    assert len(str(error.value)) < 400


def letters(**change) -> datasets.Dataset:
    columns = {"index": [1, 2], "question": ["which?", "who?"], "A": ["red", "x"], "B": ["blue", "y"]}
    columns |= {"C": ["green", "z"], "D": ["black", "k"], "answer": ["A", "B"], "image": IMAGES}
    return datasets.Dataset.from_dict(columns | change)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"C": ["green", "  "], "D": ["black", None], "E": ["grey", "w"]}, "A. x\nB. y\nE. w"),
        ({"C": [3, 4], "D": ["black", "None"]}, "A. x\nB. y\nC. 4\nD. None"),  # a word for nothing is an option
    ],
)
def test_options(tmp_path, change, options):
    letters(**change).save_to_disk(tmp_path)
    rows = load_rows(tmp_path)
    assert rows["question"][1] == f"who?\n{options}"
    assert not {*"ABCDE"} & {*rows.column_names}


@pytest.mark.parametrize(("cycles", "ids"), [([], [0]), (["0", "1"], ["1_0"]), (["0", "0"], [0])])
def test_an_index_that_several_rows_share(tmp_path, cycles, ids):
    letters(index=[1, 1], **({"cycle_category": cycles} if cycles else {})).save_to_disk(tmp_path)
    assert load_rows(tmp_path, max_samples=1)["question_id"][:] == ids


PADDED = BLUE + b"\0"  # to a length that base64 pads


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.mark.parametrize(
    "text",
    [encoded(PADDED).rstrip("="), f"data:image/jpeg;base64,{encoded(PADDED)}", base64.encodebytes(PADDED).decode()],
    ids=["without padding", "data URL", "in lines"],
)
def test_base64_images_are_decoded(tmp_path, text):
    rows = load_rows(save(tmp_path / "data", image=["gr\u00fcn", text]))  # one readable image is enough
    assert [row["image"]["bytes"] for row in rows] == [b"", PADDED]
    assert isinstance(rows.features["image"], datasets.Image)


@pytest.mark.parametrize("form", ["text", "struct"])
def test_what_is_saved_holds_no_file_from_outside(tmp_path, form):
    (tmp_path / "mine.jpg").write_bytes(RED)
    for path in (str(tmp_path / "mine.jpg"), f"{tmp_path}/data/../mine.jpg"):
        images = [path, path] if form == "text" else [{"bytes": None, "path": path}, IMAGES[1]]
        data = save(tmp_path / "data", image=images)
        assert len(load_rows(data)) == 2
        with pytest.raises(UserError, match="row 0 names the image .*mine.jpg, which lies outside of the data set"):
            load_rows(data, to_save=True)
    (tmp_path / "data" / "own.jpg").write_bytes(RED)
    own = "own.jpg" if form == "text" else {"bytes": None, "path": str(tmp_path / "data" / "own.jpg")}
    rows = load_rows(save(tmp_path / "data", image=[own, own]), to_save=True)
    assert open_image(rows[0]["image"]).size == (8, 6)
