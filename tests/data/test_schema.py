"""Columns of every published form become the row schema, or are refused in one short line."""

import base64
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, List, Value
from published import BLUE, IMAGES, RED, TEXT, hrbench, table, textvqa

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
        pytest.param([["a", "b"], ["c"]], [["a", "b"], ["c"]], id="lists"),
        pytest.param(["a", "b"], [["a"], ["b"]], id="strings"),
        pytest.param([3, 7], [["3"], ["7"]], id="integers"),
        pytest.param([3.0, 0.5], [["3"], ["0.5"]], id="floats"),
        pytest.param([[YES, NO], [NO]], [["yes", "no"], ["no"]], id="VQAv2"),
        pytest.param([YES, None], [["yes"], []], id="an object"),
        pytest.param([{"text": ["a", "b"], "answer_start": [1, 2]}] * 2, [["a", "b"]] * 2, id="SQuAD"),
        pytest.param([[["a"], ["b", "c"]], []], [["a", "b", "c"], []], id="nested lists"),
        pytest.param([None, None], [[], []], id="all null"),
        pytest.param([[None, "cat", None], [None]], [["cat"], []], id="nulls in lists"),
        pytest.param([["", " ", "a"], ["\t"]], [["a"], []], id="blanks"),
        pytest.param([["None", "N/A"], ["nan"]], [["None", "N/A"], ["nan"]], id="words that look like nulls"),
        pytest.param([[" a "], ["B"]], [[" a "], ["B"]], id="as they stand"),
        pytest.param([float("nan"), 2.0], [[], ["2"]], id="a blank in a CSV file of numbers"),
        pytest.param(['["a", "b"]', "[]"], [["a", "b"], []], id="JSON"),
        pytest.param(["['it\\'s', 'b']", None], [["it's", "b"], []], id="Python"),
        pytest.param(["['a', \"it's\"]", "stop"], [["a", "it's"], ["stop"]], id="one plain text among lists"),
        pytest.param(['["a", null, ["b"]]', "('c', 'd')"], [["a", "b"], ["c", "d"]], id="nested, a null, a tuple"),
        pytest.param(['{"answer": "yes"}', "[{'answer': 'no'}]"], [["yes"], ["no"]], id="objects"),
        pytest.param(["[1.50, 2.0]", "[7]"], [["1.50", "2"], ["7"]], id="numbers"),
        pytest.param(["[sic] yes", "exit [2]"], [["[sic] yes"], ["exit [2]"]], id="brackets in a text"),
        pytest.param(["(a)", "(1 of 2)"], [["(a)"], ["(1 of 2)"]], id="parentheses"),
    ],
)
def test_references(tmp_path, published, references):
    assert load_rows(save(tmp_path / "data", answers=published))["answers"][:] == references


@pytest.mark.parametrize(
    "cell",
    [
        "['a' 'a']",
        "['a'\n 'a']",
        "[a b]",
        "['a' 'b' ... 'c']",
        "[1 2]",
        "[0x10]",
        "[exit]",
        "array(['a'], dtype=object)",
    ]
    + [
        "{'text': array(['a'], dtype=object)}",
        "['a', nan]",
        "{'a', 'b'}",
        "<ArrowStringArray>\n['a']",
        '["a", "b]',
        "[1]",
    ],  # [1] beside a text: a list or not?
)
def test_any_other_look_of_a_list_is_refused(tmp_path, cell):
    """Of numpy's ['a' 'a'] Python makes ['aa'], which no right answer matches."""
    with pytest.raises(UserError, match="has the answers .*; expected"):
        load_rows(save(tmp_path / "data", answers=["stop", cell]))


def test_references_that_are_class_labels(tmp_path):
    features = Features({"question_id": TEXT, "answers": List(ClassLabel(names=["A", "B"])), "label": TEXT})
    rows = datasets.Dataset.from_dict(
        {"question_id": ["1", "2"], "answers": [[1, 0], [-1]], "label": ["", ""]}, features=features
    )
    rows.save_to_disk(tmp_path)
    assert load_rows(tmp_path, need=("question_id", "answers"))["answers"][:] == [["B", "A"], []]


@pytest.mark.parametrize(
    ("published", "problem"),
    [
        ([{"words": "a"}, {"words": "b"}], "row 0 has the answers {'words': 'a'}; expected strings, numbers"),
        ([[True], [False]], r"row 0 has the answers \[True\]"),
        ([[b"a"], []], r"row 0 has the answers \[b'a'\]"),
        ([[{"words": "x" * 10**6}], None], "row 0 has the answers .{97}[.]{3}; expected"),
    ],
    ids=["unknown object", "truth values", "bytes", "a long value"],
)
def test_references_in_an_unknown_form_are_refused(tmp_path, published, problem):
    with pytest.raises(UserError, match=problem) as error:
        load_rows(save(tmp_path / "data", answers=published))
    assert len(str(error.value)) < 400


def test_a_csv_file_keeps_its_texts(tmp_path):
    (tmp_path / "1.jpg").write_bytes(RED)
    lines = ["1,None,None", "2,N/A,007", "3,cat,1.50", "4,nan,", '5,"a, b","[""x"", ""y""]"']
    text = "".join(f"{line},1.jpg\n" for line in ["question_id,question,answers", *lines]).replace("1.jpg", "image", 1)
    (tmp_path / "train.csv").write_text(text)
    rows = load_rows(tmp_path)
    assert rows["question_id"][:] == [1, 2, 3, 4, 5]
    assert rows["question"][:] == ["None", "N/A", "cat", "nan", "a, b"]
    assert rows["answers"][:] == [["None"], ["007"], ["1.50"], [], ["x", "y"]]


@pytest.mark.parametrize("kind", ["uint8", "uint64", "int16", "string", "large_string"])
def test_ids_of_every_type(tmp_path, kind):
    ids = {"uint8": [7, 3], "uint64": [2**63 + 5, 2**64 - 1], "int16": [-1, 3]}.get(kind, ["x7", "007"])
    assert load_rows(save(tmp_path / "data", question_id=pa.array(ids, kind)))["question_id"][:] == ids


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (None, "no question_id"),
        ([5, 5], "duplicate question_ids"),
        (["a", "a"], "duplicate question_ids"),
        ([5, None], "rows without a question_id"),
        ([None, None], "rows without a question_id"),
        ([5.0, float("nan")], "rows without a question_id"),
    ],
    ids=["none", "equal", "equal strings", "a null", "nulls", "a blank in a CSV file"],
)
@pytest.mark.parametrize("need", [("image", "question", "question_id"), ("question_id", "answers")])
def test_row_numbers_serve_as_ids(tmp_path, caplog, ids, reason, need):
    rows = load_rows(save(tmp_path / "data", question_id=ids), need=need)
    assert rows["question_id"][:] == [0, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/data has {reason}: the row numbers serve as ids"
    ]
    assert load_rows(save(tmp_path / "data", question_id=ids), max_samples=1)["question_id"][:] == [0]


def test_a_concatenated_mixture_gets_row_numbers(tmp_path):
    """The released recipe: four data sets in one, whose ids collide or are missing in some."""
    columns = ["image", "question", "answers"]
    both = [textvqa().select_columns([*columns, "question_id"]), textvqa().select_columns(columns)]
    datasets.concatenate_datasets([*both, both[0]]).save_to_disk(tmp_path)
    assert load_rows(tmp_path)["question_id"][:] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"question_id": [[1], [2]]}, r"row 0 has the question_id \[1\]; expected a string or an integer"),
        ({"question_id": [True, False]}, "row 0 has the question_id True"),
        ({"question_id": [1.5, 2.5]}, "row 0 has the question_id 1.5"),
        ({"question": ["q", None]}, "row 1 has the question None; expected a string"),
        ({"question": [["x" * 10**6]] * 2}, "row 0 has the question .{97}[.]{3}; expected"),
        ({"image": [1, 2]}, "expected images in the column image, not Value"),
        ({"image": [None, None]}, "none of the 2 images can be read"),
    ],
)
def test_columns_are_checked_before_they_are_used(tmp_path, columns, problem):
    with pytest.raises(UserError, match=problem) as error:
        load_rows(save(tmp_path / "data", **columns))
    assert len(str(error.value)) < 400


def test_ids_of_two_types(tmp_path):
    rows = [{"question_id": i, "question": "q", "answers": "a", "image": "a.jpg"} for i in (1, "two")]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match="question_id"):
        load_rows(tmp_path)


def letters(**change) -> datasets.Dataset:
    columns = {"index": [1, 2], "question": ["which?", "who?"], "A": ["red", "x"], "B": ["blue", "y"]}
    columns |= {"C": ["green", "z"], "D": ["black", "k"], "answer": ["A", "B"], "image": IMAGES}
    return datasets.Dataset.from_dict(columns | change)


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_an_option_that_is_missing_is_left_out(tmp_path, missing):
    letters(C=["green", missing], D=["black", missing]).save_to_disk(tmp_path)
    questions = load_rows(tmp_path)["question"][:]
    assert questions == ["which?\nA. red\nB. blue\nC. green\nD. black", "who?\nA. x\nB. y"]


def test_a_fifth_option(tmp_path):
    letters().add_column("E", ["grey", None]).save_to_disk(tmp_path)
    rows = load_rows(tmp_path)
    assert rows["question"][:] == [
        "which?\nA. red\nB. blue\nC. green\nD. black\nE. grey",
        "who?\nA. x\nB. y\nC. z\nD. k",
    ]
    assert "E" not in rows.column_names


def test_options_that_are_numbers_or_words_for_nothing(tmp_path):
    letters(C=[3, 4], D=["None", "nan"]).save_to_disk(tmp_path)
    assert load_rows(tmp_path)["question"][0] == "which?\nA. red\nB. blue\nC. 3\nD. None"


def test_an_index_that_several_rows_share(tmp_path):
    letters(index=[1, 1]).save_to_disk(tmp_path / "alone")
    assert load_rows(tmp_path / "alone")["question_id"][:] == [0, 1]
    letters(index=[1, 1]).add_column("cycle_category", ["0", "1"]).save_to_disk(tmp_path / "cycles")
    assert load_rows(tmp_path / "cycles")["question_id"][:] == ["1_0", "1_1"]
    letters(index=[1, 1]).add_column("cycle_category", ["0", "0"]).save_to_disk(tmp_path / "equal")
    assert load_rows(tmp_path / "equal")["question_id"][:] == [0, 1]


@pytest.mark.parametrize("columns", [{"question": ["q", None]}, {"index": [[1], [2]]}])
def test_a_set_with_options_is_checked(tmp_path, columns):
    letters(**columns).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="row [01] has the question"):
        load_rows(tmp_path)


def test_a_null_text_of_vstar(tmp_path):
    table({"text": TEXT, "label": TEXT}, text=["q", None], label=["A", "B"]).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="row 1 has the question None"):
        load_rows(tmp_path, need=("question", "answers"))


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.mark.parametrize(
    "text",
    [
        encoded(BLUE),
        encoded(BLUE).rstrip("="),
        f"data:image/jpeg;base64,{encoded(BLUE)}",
        "\n".join(encoded(BLUE)[i : i + 76] for i in range(0, len(encoded(BLUE)), 76)),
    ],
    ids=["plain", "without padding", "data URL", "in lines"],
)
@pytest.mark.parametrize("to_save", [False, True])
def test_base64_images_are_decoded(tmp_path, text, to_save):
    rows = load_rows(save(tmp_path / "data", image=[None, text]), to_save=to_save)
    assert open_image(rows[1]["image"]).getpixel((0, 0)) == open_image(BLUE).getpixel((0, 0))
    assert [len(row["image"]["bytes"]) for row in rows] == [0, len(BLUE)]
    assert isinstance(rows.features["image"], datasets.Image) == to_save


@pytest.mark.parametrize("broken", ["abc", "gr\u00fcn", "x" * 10**6, None])
def test_a_broken_base64_image_is_empty_bytes(tmp_path, broken):
    hrbench().remove_columns("image").add_column("image", [broken, encoded(RED)]).save_to_disk(tmp_path)
    image = load_rows(tmp_path)[0]["image"]
    assert image["path"] is None
    with pytest.raises(ValueError, match="unreadable image"):
        open_image(image)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (["https://example.com/1.jpg"] * 2, "'?https://example.com/1.jpg'? is a URL, which is not downloaded"),
        (["gone.jpg", None], "no such file"),
        (["x" * 10**6] * 2, "File name too long: .*x[.]{3}"),
        (["a\0b", "."], "no such file"),
        ([{"bytes": b"no image", "path": None}] * 2, "unknown format"),
        ([{"bytes": None, "path": None}] * 2, "no bytes and no path"),
        ([{"bytes": RED[:200], "path": None}] * 2, "unreadable image"),
        ([b"", b"text"], "unreadable image"),
    ],
    ids=["URL", "no file", "a long text", "NUL and a folder", "text", "nothing", "cut off", "bytes"],
)
def test_no_readable_image_at_all_is_an_error(tmp_path, images, problem):
    with pytest.raises(UserError, match=f"none of the 2 images can be read; the first is an .*{problem}") as error:
        load_rows(save(tmp_path / "data", image=images))
    assert len(str(error.value)) < 400


def test_one_readable_image_is_enough(tmp_path):
    assert len(load_rows(save(tmp_path / "data", image=[{"bytes": b"no image", "path": None}, IMAGES[1]]))) == 2


def test_plain_bytes_are_images(tmp_path):
    assert open_image(load_rows(save(tmp_path / "data", image=[RED, BLUE]))[1]["image"]).size == (8, 6)


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


def test_a_pipe_in_the_place_of_an_image_is_not_read(tmp_path):
    data = save(tmp_path / "data", image=["pipe", "a.jpg"])
    os.mkfifo(data / "pipe")
    (data / "a.jpg").write_bytes(RED)
    rows = load_rows(data)
    with pytest.raises(ValueError, match="no such file: .*pipe"):
        open_image(rows[0]["image"])


def test_large_strings(tmp_path):
    texts = {"question": ["q", "r"], "answers": ["a", "b"]}
    columns = {name: pa.array(values, "large_string") for name, values in texts.items()}
    loaded = load_rows(save(tmp_path / "data", **columns))
    assert (loaded["question"][:], loaded["answers"][:]) == (["q", "r"], [["a"], ["b"]])
    assert loaded.features["question"] == Value("string")
