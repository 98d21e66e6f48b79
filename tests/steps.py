"""Shared by the tests of steps 4 to 6: models whose texts differ from row to row, box files, broken images."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Image, load_from_disk

from cropvlm.modeling import load_model, load_processor
from cropvlm.runs.predictions import build_meta, write_predictions

RECORDS = [
    {"question_id": 7, "answer": "stop"},
    {"question_id": "7", "answer": ""},
    {"question_id": "docvqa/é", "answer": 'Größe "1"\n\u2028 \ud800'},  # a lone surrogate: servers do send them
]


def load_lively(path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A tiny model whose random weights are large enough that its texts differ from row to row, and its processor."""
    model, processor = load_model(str(path), device="cpu"), load_processor(str(path))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2, generator=generator)
        parameter.data = parameter.data.to(dtype)
    return model.to(device), processor


def question_ids(world: Path) -> list:
    return list(load_from_disk(str(world))["test"]["question_id"])


def write_boxes(path: Path, world: Path, texts: list[str]) -> Path:
    """A box file of the test rows, with its meta."""
    records = [{"question_id": i, "answer": text} for i, text in zip(question_ids(world), texts, strict=False)]
    source = {"dataset_path": str(world), "split": "test", "max_samples": None}
    write_predictions(path, records, build_meta(source, models={}, settings={}, counts={}))
    return path


def save_with_broken_images(folder: Path, world: Path, broken: list[int]) -> Path:
    """The test rows, of which some have no image."""
    rows = list(load_from_disk(str(world))["test"].cast_column("image", Image(decode=False)))
    for i in broken:
        rows[i]["image"] = {"bytes": b"no image", "path": None}
    DatasetDict(test=Dataset.from_list(rows).cast_column("image", Image())).save_to_disk(str(folder))
    return folder


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def answers_of(path: str | Path) -> list[str]:
    return [record["answer"] for record in read(path)]
