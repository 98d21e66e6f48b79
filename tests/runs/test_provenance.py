"""Identity of models and data: it changes with what they hold and with nothing else."""

import base64
import json
import shutil

import pytest
import torch
from datasets import Dataset, Image
from huggingface_hub import constants
from pictures import png
from PIL import Image as Picture

from cropvlm.data import load_rows
from cropvlm.models.revisions import split_revision
from cropvlm.runs.provenance import (
    RECORD,
    describe_model,
    differences,
    file_checksum,
    model_checksum,
    peak_memory,
    row_keys,
    rows_checksum,
)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_model_counts_by_its_files(tmp_path, name):
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    (one / "model.safetensors").write_text("x")
    before = model_checksum(str(one))
    (one / "boxes.json.journal.jsonl").write_text("x")
    shutil.copytree(one, copy)
    assert model_checksum(str(one)) == model_checksum(str(copy)) == before
    (copy / name).write_text("another")
    assert model_checksum(str(copy)) != before


def test_an_adapter_includes_its_base(tmp_path):
    base, other, adapter = (tmp_path / name for name in ("base", "other", "adapter"))
    for folder in (base, other, adapter):
        folder.mkdir()
    (base / "model.safetensors").write_text("x")
    (other / "model.safetensors").write_text("y")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_checksum(str(adapter))
    assert model_checksum(str(adapter), str(other)) != before
    (base / "model.safetensors").write_text("z")
    assert model_checksum(str(adapter)) != before


def test_a_hub_id_counts_by_its_commit(tmp_path, monkeypatch):
    """Offline as here by the cached one; tests/test_hub.py asks a Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name, commit = "HuggingFaceTB/SmolVLM-256M-Instruct", "7e3e67edbbed1bf9888184d9df282b700a323964"
    assert model_checksum(name) is None
    cached = tmp_path / "models--HuggingFaceTB--SmolVLM-256M-Instruct"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "refs" / "v1").write_text("1a2b" * 10)
    assert model_checksum(name) == commit
    assert model_checksum(f"{name}@v1") == "1a2b" * 10
    assert model_checksum(f"{name}@other") is None
    assert model_checksum(None) is None
    assert model_checksum("./missing") is model_checksum("a/folder/that/moved") is None


def test_revisions():
    assert split_revision("owner/name@v1.0") == ("owner/name", "v1.0")
    assert split_revision("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert split_revision("/data/sets@home/vqa") == ("/data/sets@home/vqa", None)


def test_the_record_of_a_training_describes_its_weights_and_no_others(tmp_path):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_text("x")
    record = {"training": {"stage": "GRPO", "rows": 3}, "files": {weights.name: file_checksum(weights)}}
    (tmp_path / RECORD).write_text(json.dumps(record))
    described = describe_model(str(tmp_path))
    assert described == {"checksum": model_checksum(str(tmp_path)), "stage": "GRPO", "rows": 3}
    (tmp_path / "merged").mkdir()
    assert describe_model(str(tmp_path / "merged"))["stage"] == "GRPO"
    weights.write_text("others")
    assert describe_model(str(tmp_path)) == {"checksum": model_checksum(str(tmp_path))}


def write_lines(folder, colour, answer="a", name="{}.png"):
    """A folder of JSON lines whose images are files of their own."""
    folder.mkdir(exist_ok=True)
    with (folder / "train.jsonl").open("w") as file:
        for i in range(3):
            (folder / name.format(i)).write_bytes(png(Picture.new("RGB", (30 + i, 30), colour)))
            row = {"image": name.format(i), "question": f"q{i}", "question_id": i, "answers": [answer]}
            file.write(json.dumps(row) + "\n")
    return load_rows(str(folder))


def test_rows_count_by_their_images_wherever_these_are(tmp_path):
    by_path = write_lines(tmp_path / "a", "red")
    keys, whole = row_keys(by_path), rows_checksum(by_path)
    moved = write_lines(tmp_path / "b", "red", name="picture{}.png")
    columns = {"question_id": [0, 1, 2], "question": ["q0", "q1", "q2"], "answers": [["a"]] * 3}
    files = [png(Picture.new("RGB", (30 + i, 30), "red")) for i in range(3)]
    embedded = {"image": [{"bytes": file, "path": None} for file in files]}
    Dataset.from_dict(columns | embedded).cast_column("image", Image()).save_to_disk(tmp_path / "c")
    texts = {"image": [base64.b64encode(file).decode() for file in files]}
    Dataset.from_dict(columns | texts).save_to_disk(tmp_path / "d")
    for rows in (moved, *(load_rows(str(tmp_path / name)) for name in "cd")):
        assert (row_keys(rows), rows_checksum(rows)) == (keys, whole)
    answered = write_lines(tmp_path / "a", "red", "b")
    assert row_keys(answered) == keys
    assert rows_checksum(answered) != whole
    assert rows_checksum(by_path.add_column("ocr_tokens", ["x"] * 3)) == whole  # which no training reads
    moved = by_path.add_column("bbox", [[0, 0, 9, 9]] * 3)
    assert whole not in [rows_checksum(rows) for rows in (moved, by_path.select([1, 0, 2]), by_path.select([0, 1]))]
    labelled = [rows_checksum(rows.add_column("needed", [needed] * len(rows))) for needed in (True, False)]
    assert len({*labelled, whole}) == 3
    assert not set(row_keys(write_lines(tmp_path / "a", "blue"))) & set(keys)


def test_differences_are_told_and_a_path_counts_by_what_it_holds():
    held = {"model_path": "a", "model_files": 7}
    assert differences(held | {"size": 64}, {"model_path": "b", "model_files": 7}) == ["size 64 there, None here"]
    assert differences({"model_path": "a"}, {"model_path": "b"}) == ["model_path 'a' there, 'b' here"]
    assert differences(held, held | {"model_files": 8}) == ["model_files 7 there, 8 here"]


def test_the_peak_memory_is_that_of_a_gpu_in_use(monkeypatch):
    assert peak_memory() == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 << 29)
    assert peak_memory() == {"peak_memory_gib": 1.5}
