"""The image tokens of a question, counted in the prompts themselves."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from reporting_worlds import write_answers, write_boxes, write_rows
from tiny_families import save_family

from reporting.costs import costs
from reporting.results import _load_rows, read_folder

BOXES = ["[0, 0, 50, 100].", "[0, 0, 50, 50].", "nowhere"]


@pytest.fixture
def cost(tmp_path, monkeypatch):
    """Image tokens of two answer files, without and with the crop, of 40x20 images."""
    monkeypatch.chdir(tmp_path)
    _load_rows.cache_clear()

    write_rows(Path("rows"), 3)

    def cost(answerer: Path, longest_edge: int | None) -> list[float | None]:
        settings = {"longest_edge": longest_edge, "min_pixels": None}
        write_boxes(Path("p/a_bbox.json"), BOXES, "cropper", "rows")
        for name, of_answers in (("a", None), ("b", BOXES)):
            path = Path(f"p/{name}_answers.json")
            write_answers(path, ["x"] * 3, "rows", str(answerer), of_answers, settings=dict(settings))
        return [costs(result)["image_tokens_per_question"] for result in read_folder("p")]

    return cost


def test_image_tokens_are_those_of_the_prompts(cost, tiny_llava, tiny_smolvlm, tmp_path):
    # (64 / 8)^2 tokens an image; transformers estimates 784 / 1 from the published image size.
    assert cost(tiny_llava, None) == [64, 128]
    assert cost(tiny_smolvlm, 64) == [16, 32]  # one tile of 64 px for an image: (64 / 8)^2 patches, 4 a token
    # Of a family that is asked prompt by prompt
    without, with_crop = cost(save_family("qwen3_vl", tmp_path / "qwen3"), None)
    assert 0 < without < with_crop <= 2 * without


def test_image_tokens_without_the_processor_are_unknown_and_the_hub_is_not_asked(cost, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    assert cost(Path("gone"), 64) == [None, None]


def test_image_tokens_of_a_control_are_those_of_what_it_shows(cost, tiny_smolvlm):
    cost(tiny_smolvlm, 64)
    records = json.loads(Path("p/a_bbox.json").read_text())
    needs = [record | {"need": need} for record, need in zip(records, (1, 1, -1), strict=True)]
    Path("p/a_bbox.json").write_text(json.dumps(needs))
    modes = {name: {"mode": name, "control": name} for name in ("crop_alone", "full_twice", "no_detail", "wider")}
    modes["threshold"] = {"mode": "cropvlm", "need_threshold": 0}
    sizes = {"longest_edge": 64, "min_pixels": None}
    for name, settings in modes.items():
        path = Path(f"p/{name}_answers.json")
        write_answers(path, ["x"] * 3, "rows", str(tiny_smolvlm), BOXES, settings=sizes | settings)
    tokens = {result.path.stem: costs(result)["image_tokens_per_question"] for result in read_folder("p")}
    # The last one shows no crop in one row of three: (32 + 32 + 16) / 3.
    expected = {"crop_alone": 16, "full_twice": 32, "no_detail": 32, "wider": 32, "threshold": 26.7}
    assert {name: tokens[f"{name}_answers"] for name in expected} == expected
