"""create_dataset.py: the teacher here and behind a server."""

import json

from fake_server import open_url
from made_sets import content

from cropvlm import modeling


def test_attention_reaches_the_model_and_the_journal(script, tmp_path, monkeypatch):
    def load_model(path, **options):
        asked_for.append(options["attn_implementation"])
        return load(path, **options)

    asked_for, load = [], modeling.load_model
    monkeypatch.setattr(modeling, "load_model", load_model)
    assert script("--max_samples", "2") == 0
    assert script("--max_samples", "4", "--attn_implementation", "eager") == 2  # of a journal without
    assert script("--max_samples", "2", "--attn_implementation", "eager", "--output_path", f"{tmp_path}/eager") == 0
    assert asked_for == [None, "eager"]


def test_a_server_is_the_teacher(script, tmp_path, server, hurried):
    def lower_right_quarter(*_) -> str:
        width, height = sizes()[-1]
        return json.dumps({"bbox_2d": [width // 2, height // 2, width, height]})

    def sizes() -> list:
        return [open_url(body["messages"][0]["content"][0]["image_url"]["url"]).size for body in server.bodies]

    server.react = lower_right_quarter
    flags = ["--api_base", server.url, "--api_model", "qwen", "--api_concurrency", "1"]
    flags += ["--max_pixels", "100000", "--max_samples", "6", "--growth", "1", "1", "1", "1", "1"]
    assert script(*flags) == 0
    assert len(sizes()) == 3
    # The server gets images that Qwen2.5-VL's resizing keeps, and its boxes are read in their pixels.
    assert all(width % 28 == height % 28 == 0 and width * height <= 100000 for width, height in sizes())
    assert [row["bbox"] for row in content(tmp_path / "made_sft")] == [[50, 50, 100, 100]] * 3
    assert "Teacher: qwen, greedy" in (tmp_path / "made_sft/README.md").read_text()
