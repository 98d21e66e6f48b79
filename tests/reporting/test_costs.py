"""The image tokens of a question, counted in the prompts themselves."""

from pathlib import Path

import pytest
from huggingface_hub import constants
from reporting_worlds import write_answers, write_boxes, write_rows
from tiny_families import save_family

from reporting.costs import costs
from reporting.results import _load_rows, read_folder


@pytest.fixture
def cost(tmp_path, monkeypatch):
    """Image tokens of two answer files, without and with the crop, of 40x20 images."""
    monkeypatch.chdir(tmp_path)
    _load_rows.cache_clear()

    def cost(answerer: Path, longest_edge: int | None) -> list[float | None]:
        write_rows(Path("rows"), 3)
        settings = {"longest_edge": longest_edge, "min_pixels": None}
        boxes = ["[0, 0, 50, 100].", "[0, 0, 50, 50].", "nowhere"]
        write_boxes(Path("p/a_bbox.json"), boxes, "cropper", "rows")
        for name, of_answers in (("a", None), ("b", boxes)):
            path = Path(f"p/{name}_answers.json")
            write_answers(path, ["x"] * 3, "rows", str(answerer), of_answers, settings=dict(settings))
        return [costs(result)["image_tokens_per_question"] for result in read_folder("p")]

    return cost


def test_image_tokens_of_a_llava_are_those_of_its_prompts(cost, tiny_llava):
    # (64 / 8)^2 tokens an image; transformers estimates 784 / 1 from the published image size.
    assert cost(tiny_llava, None) == [64, 128]


def test_image_tokens_of_a_smolvlm(cost, tiny_smolvlm):
    assert cost(tiny_smolvlm, 64) == [16, 32]  # one tile of 64 px for an image: (64 / 8)^2 patches, 4 a token


def test_image_tokens_of_a_family_that_is_asked_prompt_by_prompt(cost, tmp_path):
    family = save_family("qwen3_vl", tmp_path / "qwen3")
    without, with_crop = cost(family, None)
    assert 0 < without < with_crop <= 2 * without


def test_image_tokens_without_the_processor_are_unknown_and_the_hub_is_not_asked(cost, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    assert cost(Path("gone"), 64) == [None, None]
