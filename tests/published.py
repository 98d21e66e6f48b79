"""Every benchmark of the table as two rows with the published columns and types."""

import base64
import io
import json
from pathlib import Path

import datasets
import yaml
from datasets import List, Value
from PIL import Image

TEXT = Value("string")


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "JPEG")
    return buffer.getvalue()


RED, BLUE = jpeg("red"), jpeg("blue")
IMAGES = [{"bytes": RED, "path": "a.jpg"}, {"bytes": BLUE, "path": "b.jpg"}]


def table(**columns: list) -> datasets.Dataset:
    """Rows of these columns; encoded images become an image column, missing answers lists."""
    types = {"image": datasets.Image()} if isinstance(columns["image"][0], dict) else {}
    types |= {"answers": List(TEXT)} if "answers" in columns else {}
    rows = datasets.Dataset.from_dict(columns)
    return rows.cast(datasets.Features(rows.features | types))


def textvqa() -> datasets.Dataset:
    return table(
        image_id=["i", "j"],
        question_id=[34602, 34603],
        question=["what is it?", "who?"],
        image=IMAGES,
        answers=[["nokia"] * 10, ["me"] * 10],
        ocr_tokens=[["NOKIA"], []],
    ).cast_column("question_id", Value("int32"))


def docvqa(ids: tuple[str, str] = ("49153", "24580"), answers: tuple = (["0.28", "0.280"], ["x"])) -> datasets.Dataset:
    return table(
        questionId=list(ids),
        question=["what is it?", "who?"],
        question_types=[["figure/diagram"], ["layout"]],
        image=IMAGES,
        docId=[14465, 1],
        answers=list(answers),
    )


def infovqa(ids: tuple[str, str] = ("98313", "98314"), answers: tuple = (["4"], ["5", "five"])) -> datasets.Dataset:
    question = ["what is it?", "who?"]
    return table(questionId=list(ids), question=question, answers=list(answers), image=IMAGES, ocr=["{}", "{}"])


def stvqa() -> datasets.Dataset:
    path = ["coco-text/a.jpg", "vizwiz/b.jpg"]
    return table(path=path, question=["what is it?", "who?"], answer=[["a", "b"], ["c"]], image=IMAGES)


def hrbench() -> datasets.Dataset:
    return table(
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


def write_repository(folder: Path, configs: dict[str, dict[str, tuple[str, datasets.Dataset]]]) -> None:
    """A repository as `push_to_hub` leaves it: parquet files, and a card that lists features, splits and their files.

    configs: configuration -> split -> (file, rows).
    """
    infos, listed = [], []
    for config, splits in configs.items():
        for file, rows in splits.values():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(folder / file)
        counts = [{"name": name, "num_examples": len(rows), "num_bytes": 10**13} for name, (_, rows) in splits.items()]
        features = next(iter(splits.values()))[1].features._to_yaml_list()
        infos.append({"config_name": config, "features": features, "splits": counts, "dataset_size": 10**13})
        files = [{"split": name, "path": file} for name, (file, _) in splits.items()]
        listed.append({"config_name": config, "data_files": files})
    card = yaml.safe_dump({"dataset_info": infos, "configs": listed}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{card}---\n")


def write_hub(folder: Path) -> dict[str, Path]:
    """Repositories of all benchmarks in their published layouts, by Hub id; TextVQA has 40 training rows."""
    ids = datasets.Dataset.from_dict({"question_id": range(34602, 34642)}).cast_column("question_id", Value("int32"))
    many = datasets.concatenate_datasets([textvqa()] * 20).remove_columns("question_id")
    textvqa_files = {
        "train": ("data/train-00000-of-00001.parquet", datasets.concatenate_datasets([many, ids], axis=1)),
        "validation": ("data/validation-00000-of-00001.parquet", textvqa()),
        "test": ("data/test-00000-of-00001.parquet", textvqa().select([1, 0])),
    }
    write_repository(folder / "textvqa", {"default": textvqa_files})
    hrbench_rows = {"4k": hrbench(), "8k": hrbench().select([1, 0])}
    hrbench_files = {f"hrbench_{size}": (f"hr_bench_{size}.parquet", rows) for size, rows in hrbench_rows.items()}
    write_repository(folder / "hrbench", {"hrbench_version_split": hrbench_files, "hrbench_all": hrbench_files})
    (folder / "stvqa" / "data").mkdir(parents=True)
    stvqa().to_parquet(folder / "stvqa/data/train-00000-of-00001.parquet")
    write_vstar(folder / "vstar")
    (folder / "vstar" / "direct_attributes" / "unnamed.jpg").write_bytes(RED)
    write_docvqa(folder / "docvqa")
    return {
        "lmms-lab/textvqa": folder / "textvqa",
        "lmms-lab/DocVQA": folder / "docvqa",
        "danjacobellis/stvqa_task1": folder / "stvqa",
        "craigwu/vstar_bench": folder / "vstar",
        "DreamMr/HR-Bench": folder / "hrbench",
    }
