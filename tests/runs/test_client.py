"""One prompt asked of a server: what is tried again, what is reported, and the bounds of a reply."""

import json
import socket
import time
import zlib

import httpx2
import openai
import pytest
from fake_server import CUT, HALF, KEY, SILENCE, Source, ask, ask_in_vain, completion, drip, error, started

from cropvlm.errors import UserError
from cropvlm.runs import client
from cropvlm.runs.replies import NoAnswers
from cropvlm.runs.server import Server

pytestmark = pytest.mark.usefixtures("hurried")


# What replies mean


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


@pytest.mark.parametrize("fault", [error(429, "Rate limit reached"), (200, b"garbage")], ids=["429", "garbage"])
def test_waits_double_between_retries(server, monkeypatch, fault):
    times = []
    monkeypatch.setattr("fake_server.SOON", {})
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.1)
    server.react = lambda text, nth: times.append(time.monotonic()) or (fault if nth < 4 else "Coke")
    assert ask(server, ["a"]) == [(0, ["Coke"])]
    waits = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert len(waits) == 3
    # The official client takes up to a quarter off.
    assert all(wait >= least for wait, least in zip(waits, (0.075, 0.15, 0.3), strict=True))


@pytest.mark.parametrize(
    "label",
    [
        {"Content-Type": f"application/json; charset={name}"}
        for name in ("utf-16", "hex", "undefined", "idna", "punycode", "nonsense", "latin-1")
    ]
    + [{"Content-Encoding": "nonsense"}, {"Content-Type": ""}, {"Set-Cookie": "\xff;;=; expires=never"}],
    ids=str,
)
@pytest.mark.parametrize("status", [200, 400])
def test_labels_of_a_reply_do_not_matter(server, label, status):
    said = completion("caf\u00e9") if status == 200 else {"error": {"message": "caf\u00e9"}}
    body = json.dumps(said, ensure_ascii=False).encode()
    server.react = lambda text, times: (status, body, label) if text == "a" else "Coke"
    (_, (text,)), _ = sorted(ask(server, ["a", "b"]))
    assert text == "caf\u00e9" if status == 200 else str(text) == "the server sends error 400, 'caf\u00e9'"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Retry-After", value)
        for value in (
            *("0", "-5", "nan", "inf", "0.001", "\xb2\xb3", "soon", "", "\xff" * 9, "1e-400"),
            *("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 99 Dec 1999 23:59:59 GMT"),
        )
    ]
    + [("retry-after-ms", "nan"), ("retry-after-ms", "x")],
)
def test_a_wait_of_any_form_is_followed_by_another_try(server, monkeypatch, header, value):
    monkeypatch.setattr("fake_server.SOON", {header: value})
    server.react = lambda text, times: error(429, "slow down") if times < 3 else "Coke"
    assert ask(server, ["a"]) == [(0, ["Coke"])]


# Faults that stay


def test_the_time_limit_holds_for_the_whole_reply(server):
    server.react = lambda text, times: drip
    start = time.monotonic()
    ask_in_vain(server, "a", timeout=0.5)
    assert time.monotonic() - start < 4  # 4 times 0.5 s, and hardly a wait between them


def endless(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 2**20)


def packed(times: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(b" " * 2**20) for _ in range(times)), packer.flush()])


@pytest.mark.parametrize(
    "reply", [endless, (200, packed(1500), {"Content-Encoding": "gzip"})], ids=["endless", "1.5 GB in 1.5 MB"]
)
def test_a_reply_is_bounded_in_bytes(server, reply, monkeypatch):
    sizes = []
    read = client._read

    async def measured(response):
        try:
            return await read(response)
        finally:
            sizes.append(response.num_bytes_downloaded)

    monkeypatch.setattr(client, "_read", measured)
    server.react = lambda text, times: reply
    _, said = ask_in_vain(server, "a", timeout=60)
    assert "the reply is larger than 4 MiB" in said
    assert len(sizes) == 4
    assert max(sizes) < 6 * 2**20


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_reply_that_does_not_unpack_is_tried_again(server, encoding):
    fault = (200, b"not packed", {"Content-Encoding": encoding})
    server.react = lambda text, times: fault if times < 3 else "Coke"
    assert ask(server, ["a"]) == [(0, ["Coke"])]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, status):
    with started() as other:
        server.react = lambda text, times: (status, b"", {"Location": f"{other.url}/chat/completions?key={KEY}"})
        _, said = ask_in_vain(server, "a")
        assert f"redirects to another address (status {status}), which is not followed" in said
        assert other.url not in said
        assert not other.bodies


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    outcomes = Server(url, "m", 7).answer_rows(Source([["a"]]), lambda image: image)
    with pytest.raises(UserError, match="cannot be reached"):
        next(outcomes)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "wait", ["600", "600.5", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"], ids=lambda wait: wait[:9]
)
def test_a_wait_that_is_too_long_is_said(server, monkeypatch, status, wait):
    monkeypatch.setattr("fake_server.SOON", {"Retry-After": wait})
    server.react = lambda text, times: error(status, "later")
    _, said = ask_in_vain(server, "a")
    assert f"sends error {status}, 'later' and asks to wait (Retry-After: '{wait[:200]}')" in said
    assert "; finished rows are kept" in said
    assert server.asked["a"] == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", [{"retry-after-ms": "600000"}, {"retry-after-ms": "600000", "Retry-After": "1"}])
def test_a_wait_that_is_too_long_in_milliseconds(server, monkeypatch, status, wait):
    monkeypatch.setattr("fake_server.SOON", wait)
    server.react = lambda text, times: error(status, "later")
    _, said = ask_in_vain(server, "a")
    assert f"sends error {status}, 'later'" in said
    assert server.asked["a"] == 1


def test_a_server_that_cannot_be_reached_is_no_row_that_fails():
    def explain(cause: Exception) -> Exception:
        error = openai.APITimeoutError(httpx2.Request("POST", "http://127.0.0.1/v1"))
        error.__cause__ = cause
        return client.ChatClient("http://127.0.0.1/v1", "", "m", 7, 120).explain(error)

    assert "cannot be reached (ConnectTimeout)" in str(explain(httpx2.ConnectTimeout("")))
    assert isinstance(explain(httpx2.ConnectTimeout("")), NoAnswers)
    assert "no complete reply within 120 s" in str(explain(httpx2.ReadTimeout("")))


def test_what_the_client_itself_may_raise_is_a_fault_of_the_row(server, monkeypatch):
    def fail(*_, **__):
        raise IndexError(f"a label with {KEY}")

    monkeypatch.setattr(client.BoundedClient, "build_request", fail)
    _, said = ask_in_vain(server, "a")
    assert "does not answer: the client fails (IndexError: 'a label with ***')" in said
