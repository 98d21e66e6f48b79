"""generate_final_answers.py with a remote answerer: its files, resuming, the key; and transformers serve end to end."""

import logging
from pathlib import Path

import pytest
from datasets import load_from_disk
from fake_server import KEY, LASTING, OF_A_ROW, completion, error, open_url
from PIL import Image
from steps import answers_of, read, write_boxes

import generate_final_answers
from cropvlm.runs.server import fit_longest_edge

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture
def script(call, server):
    """Run generate_final_answers.py in this process on the server; its exit code."""
    defaults = ["--api_base", server.url, "--api_model", "m", "--api_concurrency", 1, "--longest_edge", 64]
    return lambda *flags: call(generate_final_answers.main, *defaults, *flags)


@pytest.fixture
def boxes(tmp_path, tiny_world) -> Path:
    """A box file of the 12 test rows, 6 of them invalid, with its meta."""
    return write_boxes(tmp_path / "predictions" / "world_bbox.json", tiny_world, ["[0, 0, 50, 25]", "no"] * 6)


def test_the_script_writes_both_files(script, server, boxes, tiny_world):
    """The server answers with the question and the number and size of the pictures, so that none can be mixed up."""

    def react(text, times):
        content = server.bodies[-1]["messages"][0]["content"]  # one request at a time
        sizes = ["x".join(map(str, open_url(p["image_url"]["url"]).size)) for p in content[:-1]]
        return f"{text.splitlines()[0]} {' '.join(sizes)}."

    server.react = react
    assert script("--bbox", boxes) == 0
    rows = load_from_disk(str(tiny_world))["test"]
    expected = {"base": [], "cropvlm": []}
    for i, row in enumerate(rows):
        width, height = row["image"].size
        full = "x".join(map(str, fit_longest_edge(row["image"], 64).size))
        crop_image = Image.new("RGB", (-(-width // 2), -(-height // 4)))  # every pixel that the box touches
        crop = full if i % 2 else "x".join(map(str, fit_longest_edge(crop_image, 64).size))
        expected["base"].append(f"{row['question'].capitalize()} {full}")
        expected["cropvlm"].append(f"{row['question'].capitalize()} {full} {crop}")
    for mode, answers in expected.items():
        assert answers_of(f"predictions/world_{mode}_answers.json") == answers
        meta = read(f"predictions/world_{mode}_answers.meta.json")
        assert meta["models"] == {"answerer": "m", "server": server.url, "replied": ["m"]}
        assert (meta["settings"]["api_model"], meta["settings"]["longest_edge"]) == ("m", 64)
        assert (meta["counts"]["rows"], meta["counts"]["empty_answers"]) == (12, 0)
    assert not list(Path().rglob("*.jsonl"))


def test_an_ended_run_goes_on_with_the_same_settings_only(script, server, boxes, capsys):
    server.react = lambda text, times: "Coke." if server.asked.total() <= 5 else error(404, "gone")
    flags = ["--bbox", boxes, "--modes", "base"]
    assert script(*flags) == 2
    for changed, said in {
        ("--api_model", "other"): "api_model 'm' there, 'other' here",
        ("--image_format", "jpeg"): "image_format 'png' there, 'jpeg' here",
        ("--longest_edge", 32): "longest_edge 64 there, 32 here",
    }.items():
        assert script(*flags, *changed) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    server.asked.clear()
    server.react = lambda text, times: "Pepsi."
    assert script(*flags) == 0
    assert answers_of("predictions/world_base_answers.json") == ["Coke"] * 5 + ["Pepsi"] * 7
    assert server.asked.total() == 7


def test_a_rejected_row_or_crop_has_an_empty_answer_and_exit_code_3(script, server, boxes):
    """Base and cropvlm of a row are asked one after the other: the crop of row 1 is rejected, row 3's base refused."""
    replies = {4: error(400, "too small"), 7: completion(None, refusal="No.")}
    server.react = lambda text, times: replies.get(server.asked.total(), "Yes.")
    assert script("--bbox", boxes) == 3
    answers = {mode: answers_of(f"predictions/world_{mode}_answers.json") for mode in ("base", "cropvlm")}
    assert answers == {"base": ["Yes"] * 3 + [""] + ["Yes"] * 8, "cropvlm": ["Yes", "", *["Yes"] * 10]}
    counts = [read(f"predictions/world_{mode}_answers.meta.json")["counts"] for mode in answers]
    assert [(count["failed"], count["empty_answers"]) for count in counts] == [(0, 1), (1, 0)]


@pytest.mark.parametrize("fault", [None, "401", "400", "html"])
def test_the_key_is_written_nowhere(script, server, boxes, tmp_path, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    for logger in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger)
    if fault:
        reaction = LASTING[fault][0]
        server.react = lambda text, times: reaction if len(server.asked) > 2 else "Yes."
    expected = 0 if fault is None else 3 if fault in OF_A_ROW else 2
    flags = ["--modes", "base", "--max_samples", 5, "--api_timeout", 0.5, "--verbose"]
    assert script("--bbox", boxes, *flags) == expected
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == {0: 4, 2: 3, 3: 5}[expected]  # two of the boxes, two of the answers or the journal, or all
    captured = capfd.readouterr()
    for text in [caplog.text, captured.out, captured.err, *(path.read_text() for path in files)]:
        assert KEY not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_pixels", "9"], "--max_pixels: for a model on this machine; leave it out beside --api_model"),
        (["--api_base", "localhost:8000"], "expected a URL such as"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, server, boxes, capsys, flags, message):
    assert script("--bbox", boxes, *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not server.bodies


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smolvlm", "llava"])
def test_transformers_serve_gives_the_answers_of_the_local_path(serve, lively, family, boxes, call):
    calls = {
        "local": ["--vqa_model_path", lively[family], "--gpu", "-1"],
        "remote": ["--api_base", serve, "--api_model", lively[family], "--api_concurrency", "3"],
    }
    for name, flags in calls.items():
        assert call(generate_final_answers.main, "--bbox", boxes, "--name", name, "--max_new_tokens", 6, *flags) == 0
    for mode in ("base", "cropvlm"):
        local, remote = (answers_of(f"predictions/{name}_{mode}_answers.json") for name in calls)
        assert remote == local
        assert len(set(local)) > 6
