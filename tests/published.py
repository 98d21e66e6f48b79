"""Every benchmark of the table as two rows with the published columns and types."""

import base64
import io
import json
from pathlib import Path

import datasets
from datasets import Features, List, Value
from PIL import Image

TEXT = Value("string")
IMAGE = datasets.Image()


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "JPEG")
    return buffer.getvalue()


RED, BLUE = jpeg("red"), jpeg("blue")
IMAGES = [{"bytes": RED, "path": "a.jpg"}, {"bytes": BLUE, "path": "b.jpg"}]


def table(features: dict, **columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=Features(features))


def textvqa() -> datasets.Dataset:
    return table(
        {
            "image_id": TEXT,
            "question_id": Value("int32"),
            "question": TEXT,
            "image": IMAGE,
            "answers": List(TEXT),
            "ocr_tokens": List(TEXT),
        },
        image_id=["i", "j"],
        question_id=[34602, 34603],
        question=["what is it?", "who?"],
        image=IMAGES,
        answers=[["nokia"] * 10, ["me"] * 10],
        ocr_tokens=[["NOKIA"], []],
    )


def docvqa(ids: tuple[str, str] = ("49153", "24580"), answers: tuple = (["0.28", "0.280"], ["x"])) -> datasets.Dataset:
    return table(
        {
            "questionId": TEXT,
            "question": TEXT,
            "question_types": List(TEXT),
            "image": IMAGE,
            "docId": Value("int64"),
            "answers": List(TEXT),
        },
        questionId=list(ids),
        question=["what is it?", "who?"],
        question_types=[["figure/diagram"], ["layout"]],
        image=IMAGES,
        docId=[14465, 1],
        answers=list(answers),
    )


def infovqa(ids: tuple[str, str] = ("98313", "98314"), answers: tuple = (["4"], ["5", "five"])) -> datasets.Dataset:
    return table(
        {"questionId": TEXT, "question": TEXT, "answers": List(TEXT), "image": IMAGE, "ocr": TEXT},
        questionId=list(ids),
        question=["what is it?", "who?"],
        answers=list(answers),
        image=IMAGES,
        ocr=["{}", "{}"],
    )


def stvqa() -> datasets.Dataset:
    return table(
        {"path": TEXT, "question": TEXT, "answer": List(TEXT), "image": IMAGE},
        path=["coco-text/a.jpg", "vizwiz/b.jpg"],
        question=["what is it?", "who?"],
        answer=[["a", "b"], ["c"]],
        image=IMAGES,
    )


def hrbench() -> datasets.Dataset:
    return table(
        dict.fromkeys(("question", "A", "B", "C", "D", "answer", "category", "cycle_category", "image"), TEXT)
        | {"index": Value("int64")},
        index=[0, 1],
        question=["What color is the bus?"] * 2,
        A=["red", "green"],
        B=["blue", "red"],
        C=["cannot tell", "blue"],
        D=["green", "cannot tell"],
        answer=["A", "B"],
        category=["single", "cross"],
        cycle_category=["0", "1"],
        image=[base64.b64encode(image).decode() for image in (RED, BLUE)],
    )


VSTAR_TEXT = (
    "What is the color of the cup?\n(A) red\n(B) blue\nAnswer with the option's letter from the given choices directly."
)


def write_vstar(folder: Path) -> None:
    for name, image, part in (("a.jpg", RED, "direct_attributes"), ("b.jpg", BLUE, "relative_position")):
        (folder / part).mkdir(parents=True)
        (folder / part / name).write_bytes(image)
        (folder / part / name).with_suffix(".json").write_text('{"options": ["the right one", "another"]}')
    rows = [
        {"image": "direct_attributes/a.jpg", "label": "B", "category": "direct_attributes", "question_id": "0"},
        {"image": "relative_position/b.jpg", "label": "A", "category": "relative_position", "question_id": "1"},
    ]
    lines = "".join(json.dumps({**row, "text": VSTAR_TEXT}) + "\n" for row in rows)
    (folder / "test_questions.jsonl").write_text(lines)


def write_docvqa(folder: Path) -> None:
    """A copy of the repository: two configurations on the card, and train files that the card does not name."""
    (folder / "DocVQA").mkdir(parents=True)
    (folder / "InfographicVQA").mkdir()
    docvqa().to_parquet(folder / "DocVQA/validation-00000-of-00001.parquet")
    docvqa(answers=(None, None)).to_parquet(folder / "DocVQA/test-00000-of-00001.parquet")
    docvqa(ids=("337", "338")).to_parquet(folder / "DocVQA/train-00000-of-00001.parquet")
    infovqa().to_parquet(folder / "InfographicVQA/validation-00000-of-00001.parquet")
    infovqa(ids=("337", "338")).to_parquet(folder / "InfographicVQA/train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: DocVQA\n  data_files:\n"
        "  - split: validation\n    path: DocVQA/validation-*\n  - split: test\n    path: DocVQA/test-*\n"
        "- config_name: InfographicVQA\n  data_files:\n  - split: validation\n    path: InfographicVQA/validation-*\n"
        "---\n"
    )


def write_copies(folder: Path) -> None:
    """A copy of each benchmark, in folders named as in `COPY_OF`."""
    textvqa().save_to_disk(folder / "textvqa")
    stvqa().save_to_disk(folder / "stvqa")
    datasets.DatasetDict(hrbench_4k=hrbench(), hrbench_8k=hrbench()).save_to_disk(folder / "hrbench")
    write_vstar(folder / "vstar")
    write_docvqa(folder / "docvqa")


COPY_OF = {
    "textvqa": "textvqa",
    "docvqa": "docvqa",
    "infovqa": "docvqa",
    "stvqa": "stvqa",
    "vstar": "vstar",
    "hrbench4k": "hrbench",
    "hrbench8k": "hrbench",
}
