"""generate_bbox.py with a cropper behind a server: its file and its meta, clashing flags."""

import pytest
from datasets import load_from_disk
from fake_server import open_url
from steps import answers_of, read

import generate_bbox
from cropvlm.prompts import OUTLINE

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture
def script(call, tiny_world):
    """Run generate_bbox.py in this process on 12 rows; its exit code."""
    return lambda *flags: call(generate_bbox.main, "--dataset_path", tiny_world, "--split", "test", *flags)


def test_the_server_writes_the_boxes(script, server, tiny_world):
    asked = ["--api_base", server.url, "--api_model", "models/merged", "--api_concurrency", 1]
    server.react = lambda text, times: f" [0, 0, {10 + server.asked.total()}, 50]."
    assert script(*asked) == 0
    rows = load_from_disk(str(tiny_world))["test"]
    assert answers_of("predictions/miniature_bbox.json") == [f" [0, 0, {11 + i}, 50]." for i in range(12)]
    for row, body in zip(rows, server.bodies, strict=True):
        (message,) = body["messages"]
        image, text = message["content"]
        assert text["text"] == f"{row['question'].capitalize()}\n{OUTLINE}"
        assert open_url(image["image_url"]["url"]).size == row["image"].size
        assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("models/merged", 0, 32)
    meta = read("predictions/miniature_bbox.meta.json")
    assert meta["models"] == {"cropper": "models/merged", "server": server.url, "replied": ["m"]}
    assert (meta["settings"]["api_model"], meta["settings"]["longest_edge"]) == ("models/merged", None)
    assert (meta["counts"]["rows"], meta["counts"]["invalid_boxes"], meta["counts"]["failed"]) == (12, 0, 0)
    server.bodies.clear()
    assert script(*asked, "--longest_edge", 64, "--name", "small") == 0
    assert {max(open_url(body["messages"][0]["content"][0]["image_url"]["url"]).size) for body in server.bodies} == {64}
    assert read("predictions/small_bbox.meta.json")["settings"]["longest_edge"] == 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model_path names the cropper, or --api_model one behind a server"),
        (["--api_model", "m", "--model_path", "models/grpo_512"], "--model_path: for a model on this machine"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, server, tmp_path, capsys, flags, message):
    assert script(*flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not server.bodies
    assert list(tmp_path.iterdir()) == []
