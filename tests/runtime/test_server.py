"""A model behind a server: what is sent, what its replies mean, faults of every kind, the key."""

import argparse
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import openai
import pytest
from fake_server import CUT, HALF, KEY, LASTING, SILENCE, FakeServer, completion, error, open_url
from openai._base_client import httpx2
from PIL import Image

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage
from cropvlm.prompts import answerer_messages
from cropvlm.runtime import server as remote
from cropvlm.runtime.server import (
    Server,
    answer_rows,
    api_key,
    data_url,
    fit_longest_edge,
    read_completion,
    to_chats,
)
from cropvlm.runtime.server_arguments import base_url

pytestmark = pytest.mark.usefixtures("hurried")


class Source:
    """Rows with one prompt or more each, as `generate_final_answers.AnswerPrompts` makes them."""

    def __init__(self, rows: list[list[str]]):
        self.rows, self.image = rows, Image.new("RGB", (4, 4))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list:
        if self.rows[i] is None:
            raise UnreadableImage("unreadable image: nothing there")
        return [([{"role": "user", "content": [{"type": "text", "text": t}]}], []) for t in self.rows[i]]

    def image_sizes(self, i: int) -> list:
        return []


def begin(server: FakeServer, rows: Iterable, done=(), **options) -> Iterator:
    """The outcomes as they come. rows: the text of each one's prompt, or those of several."""
    options = {"base": server.url, "model": "m", "max_new_tokens": 7, "concurrency": 1, "timeout": 5} | options
    source = Source([[row] if isinstance(row, str) else row for row in rows])
    return answer_rows(Server(**options), source, lambda image: image, done)


def ask(server: FakeServer, rows: Iterable, done=(), **options) -> list:
    """All outcomes, in the order in which they came."""
    return list(begin(server, rows, done, **options))


def ask_in_vain(server: FakeServer, rows: Iterable, **options) -> tuple[list, str]:
    """The outcomes before the error that ends the run, and what the error says."""
    outcomes = []
    with pytest.raises(UserError) as raised:  # noqa: PT012
        for outcome in begin(server, rows, **options):
            outcomes.append(outcome)
    return outcomes, str(raised.value)


# What is sent


def test_the_request(server):
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "temperature": 0,
            "max_completion_tokens": 7,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]


def test_placeholders_become_data_urls_in_their_order():
    full, crop = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (2, 3), "blue")
    prompts = [(answerer_messages("what?", 1), [full]), (answerer_messages("what?", 2), [full, crop])]
    resized = []
    (base,), (cropvlm,) = to_chats(prompts, lambda image: resized.append(image) or image, "png")
    assert resized == [full, crop]  # the shared image once
    assert [part["type"] for part in cropvlm["content"]] == ["image_url", "image_url", "text"]
    assert base["content"] == [cropvlm["content"][0], cropvlm["content"][2]]
    assert base["content"][1]["text"] == "What?\nGive a very brief answer."
    sent = [open_url(part["image_url"]["url"]) for part in cropvlm["content"][:2]]
    assert sent == [full, crop]


def test_image_formats():
    image = Image.linear_gradient("L").convert("RGB")
    assert open_url(data_url(image, "png")) == image
    jpeg = open_url(data_url(image, "jpeg"))
    assert jpeg.size == image.size
    assert max(abs(a - b) for a, b in zip(jpeg.tobytes(), image.tobytes(), strict=True)) <= 3


@pytest.mark.parametrize(
    ("size", "longest_edge", "expected"),
    [
        ((1024, 768), 512, (512, 384)),
        ((300, 900), 512, (171, 512)),  # 300 * 512 / 900 = 170.7
        ((100, 50), 512, (512, 256)),  # smaller images grow, as SmolVLM's processor has it
        ((1, 1), 512, (512, 512)),
        ((5000, 1), 512, (512, 5)),  # a strip is first widened to 100:1, as for local models: 50 * 512 / 5000
        ((640, 480), None, (640, 480)),
        ((5000, 1), None, (5000, 50)),
    ],
)
def test_size_of_the_pictures_sent(size, longest_edge, expected):
    assert fit_longest_edge(Image.new("RGB", size), longest_edge).size == expected


# What replies mean


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (completion(" Coke.\n"), " Coke.\n"),
        (completion(""), ""),
        (completion(None), ""),
        (completion(None, refusal="I can't help with that."), ""),
        ({"choices": [{"message": {"refusal": "No."}}]}, ""),
        (completion("[1, 2]", reasoning_content="Let me see", tool_calls=None), "[1, 2]"),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"choices": [{"text": "of the old endpoint"}]}, None),
        ({"choices": [{"message": {"content": 7}}]}, None),
        ({"choices": [{"message": {}}]}, None),
        ({"object": "error", "message": "overloaded"}, None),
        ([], None),
        ("text", None),
    ],
)
def test_read_completion(body, text):
    assert read_completion(json.dumps(body)) == text


@pytest.mark.parametrize("body", ["", "<html>Bad gateway</html>", json.dumps(completion("Coke"))[:-9], "[" * 100_000])
def test_what_is_no_json_is_no_completion(body):
    assert read_completion(body) is None


def test_a_refusal_is_an_empty_answer(server):
    reactions = {
        "null": completion(None, refusal="I can't."),
        "empty": completion(""),
        "filtered": error(400, "The prompt was filtered", code="content_filter"),
        "policy": error(400, "Your request was rejected", code="content_policy_violation"),
    }
    server.react = lambda text, times: reactions[text]
    assert ask(server, list(reactions)) == [(i, [""]) for i in range(4)]
    assert set(server.asked.values()) == {1}  # nothing to try again


# Faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        error(429, "Rate limit reached"),
        error(500, "Internal server error"),
        (503, b"<html>overloaded</html>"),
        (200, b"garbage"),
        (200, b""),
        (200, b"\xff\xfe\x00"),
        (200, json.dumps(completion("cut off")).encode()[:40]),
        {"choices": []},
        CUT,
        HALF,
        SILENCE,
    ],
    ids=lambda fault: str(fault)[:30],
)
def test_a_passing_fault_is_tried_again(server, fault):
    server.react = lambda text, times: fault if times < 3 and text == "b" else f"Answer to {text}"
    outcomes = ask(server, ["a", "b", "c"], timeout=1 if fault == SILENCE else 60)
    assert outcomes == [(i, [f"Answer to {text}"]) for i, text in enumerate("abc")]
    assert server.asked == {"a": 1, "b": 3, "c": 1}


def test_waits_double_between_retries(server, monkeypatch):
    times = []
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.1)
    server.react = lambda text, nth: times.append(time.monotonic()) or ((200, b"garbage") if nth < 4 else "Coke")
    assert ask(server, ["a"]) == [(0, ["Coke"])]
    waits = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert len(waits) == 3
    assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


# Faults that stay


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_ends_the_run_after_what_is_done(server, name):
    fault, message = LASTING[name]
    server.react = lambda text, times: fault if text == "c" else f"Answer to {text}"
    outcomes, said = ask_in_vain(server, "abcde", timeout=1 if name == "silence" else 60)
    assert outcomes == [(0, ["Answer to a"]), (1, ["Answer to b"])]
    assert message in said
    assert "\n" not in said
    assert KEY not in said
    assert server.asked["c"] == (4 if name not in ("401", "403", "404", "402") else 1)
    assert not server.asked["d"]


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    outcomes = answer_rows(Server(url, "m", 7), Source([["a"]]), lambda image: image)
    with pytest.raises(UserError, match="cannot be reached"):
        next(outcomes)


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_too_long_is_said(server, monkeypatch, status):
    monkeypatch.setattr("fake_server.SOON", {"Retry-After": "600"})
    server.react = lambda text, times: error(status, "later")
    _, said = ask_in_vain(server, "a")
    assert f"sends error {status}, 'later' and asks to wait 600 s; what is done is kept" in said
    assert server.asked["a"] == 1


def test_a_timeout_of_the_connection_is_no_silence():
    request = httpx2.Request("POST", "http://127.0.0.1/v1")
    timeout = openai.APITimeoutError(request)
    timeout.__cause__ = httpx2.ConnectTimeout("")
    server = Server("http://127.0.0.1/v1", "m", 7)
    assert "cannot be reached (ConnectTimeout)" in str(remote._explain(server, timeout))
    timeout.__cause__ = httpx2.ReadTimeout("")
    assert "sent nothing for 120 s" in str(remote._explain(server, timeout))


def test_answers_under_way_are_kept_when_another_row_ends_the_run(server):
    gone = threading.Event()

    def react(text, times):
        if text == "b":
            gone.set()
            return error(401, "no")
        gone.wait(5)
        time.sleep(0.2)  # arrives after the 401 has been dealt with
        return f"Answer to {text}"

    server.react = react
    outcomes, said = ask_in_vain(server, "abcdef", concurrency=3)
    assert "(401)" in said
    assert sorted(outcomes) == [(0, ["Answer to a"]), (2, ["Answer to c"])]
    assert not server.asked["d"]


# Rows that the server rejects


def test_a_rejected_row_fails_alone(server):
    server.react = lambda text, times: error(400, "image too small") if text in "ad" else f"Answer to {text}"
    outcomes = dict(ask(server, list("abcd")))
    assert {i: str(o[0]) for i, o in outcomes.items() if isinstance(o[0], remote.Rejected)} == {
        0: "rejected by the server: error 400, 'image too small'",
        3: "rejected by the server: error 400, 'image too small'",
    }
    assert outcomes[1] == ["Answer to b"]


def test_a_rejected_prompt_leaves_the_others_of_its_row_alone(server):
    server.react = lambda text, times: error(400, "too small") if text == "b crop" else f"Answer to {text}"
    outcomes = dict(ask(server, [[f"{row} base", f"{row} crop"] for row in "abc"]))
    assert outcomes[0] == ["Answer to a base", "Answer to a crop"]
    assert outcomes[1][0] == "Answer to b base"
    assert str(outcomes[1][1]) == "rejected by the server: error 400, 'too small'"
    assert outcomes[2] == ["Answer to c base", "Answer to c crop"]


def test_prompts_that_are_rejected_in_every_row_end_the_run(server):
    server.react = lambda text, times: error(400, "one image only") if "crop" in text else "Coke"
    outcomes, said = ask_in_vain(server, [[f"{row} base", f"{row} crop"] for row in range(30)])
    assert "answers no row any more: rejected by the server: error 400, 'one image only'" in said
    assert outcomes == []
    assert sum(server.asked.values()) == 2 * 11


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_call_that_is_rejected_for_every_row_ends_the_run(server, status):
    server.react = lambda text, times: error(status, "Unsupported parameter: temperature")
    with pytest.raises(UserError, match="answers no row any more: .*Unsupported parameter"):
        ask(server, ["a", "b"])
    with pytest.raises(UserError, match="answers no row any more"):
        ask(server, list("abcdefghijklmnopqrstuvwxyz"))
    assert sum(server.asked.values()) == 2 + 11


def test_rejections_without_end_are_not_taken_for_the_rows_fault(server):
    server.react = lambda text, times: "Coke" if text == "0" else error(400, "Your credit is used up")
    outcomes, said = ask_in_vain(server, map(str, range(30)))
    assert "answers no row any more: rejected by the server: error 400, 'Your credit is used up'" in said
    assert outcomes == [(0, ["Coke"])]  # the others may be asked again
    assert sum(server.asked.values()) == 1 + 11


# Many at a time


def test_at_most_so_many_requests_at_a_time(server):
    server.react = lambda text, times: time.sleep(0.05) or f"Answer to {text}"
    outcomes = ask(server, [[f"{i} base", f"{i} crop"] for i in range(9)], concurrency=3)
    assert dict(outcomes) == {i: [f"Answer to {i} base", f"Answer to {i} crop"] for i in range(9)}
    assert server.at_once == [0, 3]


def test_a_slow_row_does_not_hold_up_the_others(server):
    others = threading.Event()

    def react(text, times):
        if text == "a":
            others.wait(5)
        elif text == "f":
            others.set()
        return f"Answer to {text}"

    server.react = react
    outcomes = ask(server, list("abcdef"), concurrency=2)
    assert [i for i, _ in outcomes][-1] == 0 or outcomes[-2][0] == 0
    assert sorted(outcomes) == [(i, [f"Answer to {text}"]) for i, text in enumerate("abcdef")]


def test_rows_done_are_left_out_and_unreadable_images_reported(server):
    outcomes = dict(ask(server, ["a", "b", None, "d"], done=[1]))
    assert sorted(outcomes) == [0, 2, 3]
    assert isinstance(outcomes[2], UnreadableImage)
    assert not server.asked["b"]


def test_stopping_early_leaves_no_request_behind(server):
    server.react = lambda text, times: SILENCE if text == "b" else f"Answer to {text}"
    outcomes = begin(server, "abc", concurrency=2, timeout=100)
    start = time.monotonic()
    assert next(outcomes) == (0, ["Answer to a"])
    outcomes.close()
    assert time.monotonic() - start < 3  # not the 5 s of silence
    assert not server.asked["c"]


# The key


def test_no_key_is_needed_but_by_openai(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        ask(server, ["a"], base=remote.OPENAI)


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-a\nb"])
def test_a_key_that_cannot_be_one_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="characters that no key has") as raised:
        api_key()
    assert key not in str(raised.value)


def test_white_space_around_a_key_does_no_harm(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    ask(server, ["a"])
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        f"https://user:{KEY}@[bad/v1",
        f"user:{KEY}@host/v1",
        "host:80",
        "",
        "/v1",
        "http://localhost:abc/v1",
        "http://localhost:99999/v1",
        "http://local\x00host/v1",
        "http://local\nhost/v1",
        "http://local host/v1",
        "http://xn--\u00e9/v1",
    ],
    ids=ascii,
)
def test_a_base_url_with_a_password_is_refused_unseen(url):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        base_url(url)
    assert KEY not in str(raised.value)
