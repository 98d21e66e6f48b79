"""The cropper as one object: what generate_bbox.py writes, and crops of the box."""

import torch
from datasets import load_from_disk
from PIL import Image
from steps import answers_of

import generate_bbox
from cropvlm import Cropper
from cropvlm.boxes import parse_bbox


def test_its_texts_are_those_of_the_script(tiny_smolvlm, tiny_world, call):
    """In float32 on the CPU, in batches of other rows."""
    cropper = Cropper(str(tiny_smolvlm), longest_edge=64, device="cpu", dtype=torch.float32)
    flags = ["--model_path", tiny_smolvlm, "--dataset_path", tiny_world, "--split", "test", "--longest_edge", 64]
    assert call(generate_bbox.main, *flags, "--gpu", -1, "--output", "boxes.json") == 0
    rows = load_from_disk(str(tiny_world))["test"]
    texts = cropper.texts(rows["image"], rows["question"])
    assert texts == answers_of("boxes.json")
    assert cropper.boxes(rows["image"][:2], rows["question"][:2]) == [parse_bbox(text) for text in texts[:2]]


def test_views_are_the_image_and_its_crop(monkeypatch):
    written = {"left": "[0, 0, 50, 100].", "nothing": "somewhere", "none": "Not needed."}
    monkeypatch.setattr(Cropper, "__init__", lambda self: None)
    monkeypatch.setattr(Cropper, "texts", lambda self, images, questions: [written[q] for q in questions])
    image = Image.new("RGB", (20, 10))
    full, crop = Cropper().views(image, "left")
    assert full is image
    assert crop.size == (10, 10)
    assert Cropper().views(image, "nothing") == [image, image]
    assert Cropper().views(image, "none") == [image]
    assert Cropper().crops([image], ["none"]) == [image]
    assert Cropper().boxes([image] * 2, ["left", "nothing"]) == [(0, 0, 50, 100), None]
