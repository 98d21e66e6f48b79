"""Texts and errors read from a server's replies."""

import json

import pytest
from fake_server import KEY, completion

from cropvlm.runs.replies import CutOff, quote, read_completion

PARTS = [
    {"type": "thinking", "thinking": "hm", "text": "hm"},
    {"type": "text", "text": "Coca "},
    None,
    {"type": "text", "text": None},
    {"type": "refusal", "refusal": "no"},
    "cola",
]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (completion(" Coke.\n"), " Coke.\n"),
        (completion(""), ""),
        (completion(None), ""),
        (completion(None, refusal="I can't help with that."), ""),
        ({"choices": [{"message": {"refusal": "No."}}]}, ""),
        ({"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}, ""),  # without what is null
        ({"choices": [{"message": {}}]}, ""),
        (completion("[1, 2]", reasoning_content="Let me see", tool_calls=None), "[1, 2]"),
        (completion("<think>hm</think> Coke"), "<think>hm</think> Coke"),  # kept as it is; steps 5 and 6 leave it out
        (completion("\ud83d Coke"), "\ufffd Coke"),  # half a surrogate pair
        (completion("\ud83d\ude00 Coke"), "\U0001f600 Coke"),
        (completion(PARTS), "Coca cola"),
        (completion([]), ""),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"choices": [{"text": "of the old endpoint"}]}, None),
        ({"choices": [{"message": None}]}, None),
        ({"choices": [{"message": {"content": 7}}]}, None),
        ({"choices": [{"message": {"content": {"text": "Coke"}}}]}, None),
        ({"object": "error", "message": "overloaded"}, None),
        ([], None),
        ("text", None),
    ],
)
def test_read_completion(body, text):
    assert read_completion(json.dumps(body)) == text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>Bad gateway</html>",
        json.dumps(completion("Coke"))[:-9],
        "[" * 100_000,
        json.dumps(completion("Coke"))[:-1] + ', "x": ' + "9" * 5000 + "}",  # more digits than Python reads
    ],
    ids=lambda body: body[:20],
)
def test_what_is_not_json_is_not_a_completion(body):
    assert read_completion(body) is None


@pytest.mark.parametrize(
    "content", [None, "", " \n", [], "<think>The image shows", "<think>Red.</think>\n", [{"type": "x"}]]
)
def test_a_reply_cut_off_before_its_answer(content):
    body = completion(content, reasoning_content="The user asks")
    assert read_completion(json.dumps(body)) is not None
    body["choices"][0]["finish_reason"] = "length"
    with pytest.raises(CutOff):
        read_completion(json.dumps(body))


@pytest.mark.parametrize("content", ["Coca co", "<think>Red.</think> Coca co", "Red.</think> Coca co"])
def test_an_answer_that_is_cut_off_is_an_answer(content):
    body = completion(content)
    body["choices"][0]["finish_reason"] = "length"
    assert read_completion(json.dumps(body)) == content


def test_the_key_is_in_no_text(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for content in (f"The key is {KEY}.", ["The key ", f"is {KEY[:7]}", f"{KEY[7:]}."]):
        assert read_completion(json.dumps(completion(content))) == "The key is ***."


def test_quote(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert quote("\x1b[2J\nerror: \ud83d") == r"'\x1b[2J\nerror: \ud83d'"
    assert quote("x" * 190 + KEY) == repr("x" * 190 + "***")
    assert len(quote("x" * 1000)) == 202
