"""A model behind a server: what is sent, what its replies mean, faults of every kind, the key."""

import json
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator

import httpx2
import openai
import pytest
from fake_server import CUT, FATAL, HALF, KEY, OF_A_ROW, SILENCE, FakeServer, completion, drip, error, open_url
from PIL import Image

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage
from cropvlm.prompts import answerer_messages
from cropvlm.runtime import client
from cropvlm.runtime import server as remote
from cropvlm.runtime.replies import CutOff, NoAnswers, Rejected, TimedOut
from cropvlm.runtime.server import Server, answer_rows, api_key, data_url, fit_longest_edge, to_chats

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
    assert text == "caf\u00e9" if status == 200 else str(text) == "rejected by the server: error 400, 'caf\u00e9'"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Retry-After", value)
        for value in ("0", "-5", "nan", "0.001", "\xb2\xb3", "soon", "", "Fri, 31 Dec 1999 23:59:59 GMT", "1e-400")
    ]
    + [("retry-after-ms", "nan"), ("retry-after-ms", "x")],
)
def test_a_wait_of_any_form_is_followed_by_another_try(server, monkeypatch, header, value):
    monkeypatch.setattr("fake_server.SOON", {header: value})
    server.react = lambda text, times: error(429, "slow down") if times < 3 else "Coke"
    assert ask(server, ["a"]) == [(0, ["Coke"])]


# Faults that stay


@pytest.mark.parametrize("name", FATAL)
def test_a_fault_of_the_server_ends_the_run_after_what_is_done(server, name):
    fault, message = FATAL[name]
    server.react = lambda text, times: fault if text == "c" else f"Answer to {text}"
    outcomes, said = ask_in_vain(server, "abcde", timeout=60)
    assert outcomes == [(0, ["Answer to a"]), (1, ["Answer to b"])]
    assert message in said
    assert "\n" not in said
    assert KEY not in said
    assert server.asked["c"] == (4 if name == "429" else 1)
    assert not server.asked["d"]


@pytest.mark.parametrize("name", OF_A_ROW)
@pytest.mark.parametrize("row", ["a", "c", "e"])
def test_a_fault_of_a_row_leaves_the_others_alone(server, name, row):
    fault, message = OF_A_ROW[name]
    server.react = lambda text, times: fault if text == row else f"Answer to {text}"
    outcomes = dict(ask(server, "abcde", timeout=0.5 if name in ("silence", "drip") else 60))
    failure = outcomes.pop("abcde".index(row))[0]
    assert message in str(failure)
    assert KEY not in str(failure)
    assert type(failure) is {"silence": TimedOut, "drip": TimedOut, "length": CutOff}.get(name, Rejected)
    assert outcomes == {i: [f"Answer to {text}"] for i, text in enumerate("abcde") if text != row}
    assert server.asked[row] == (1 if name in ("403", "400", "length") else 4)


@pytest.mark.parametrize("name", sorted(OF_A_ROW.keys() - {"length"}))
def test_a_fault_of_every_row_ends_the_run(server, name):
    fault, message = OF_A_ROW[name]
    server.react = lambda text, times: fault
    outcomes, said = ask_in_vain(server, "ab", concurrency=2, timeout=0.5 if name in ("silence", "drip") else 60)
    assert outcomes == []
    assert f"{server.url} does not answer" in said
    assert message in said


def test_replies_that_hold_no_answer_end_no_run(server):
    server.react = lambda text, times: OF_A_ROW["length"][0]
    assert [type(texts[0]) for _, texts in ask(server, map(str, range(30)))] == [CutOff] * 30


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
    from fake_server import started

    with started() as other:
        server.react = lambda text, times: (status, b"", {"Location": f"{other.url}/chat/completions?key={KEY}"})
        _, said = ask_in_vain(server, "a")
        assert f"redirects to another address (status {status}), which is not followed" in said
        assert other.url not in said
        assert not other.bodies


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    outcomes = answer_rows(Server(url, "m", 7), Source([["a"]]), lambda image: image)
    with pytest.raises(UserError, match="cannot be reached"):
        next(outcomes)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        ({"Retry-After": "600"}, "600"),
        ({"Retry-After": "600.5"}, "600"),
        ({"Retry-After": "9" * 5000}, "inf"),
        ({"Retry-After": "inf"}, "inf"),
        ({"retry-after-ms": "600000"}, "600"),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, ""),
    ],
)
def test_a_wait_that_is_too_long_is_said(server, monkeypatch, status, wait, seconds):
    monkeypatch.setattr("fake_server.SOON", wait)
    server.react = lambda text, times: error(status, "later")
    _, said = ask_in_vain(server, "a")
    assert f"sends error {status}, 'later' and asks to wait {seconds}" in said
    assert "; finished rows are kept" in said
    assert server.asked["a"] == 1


def test_a_server_that_cannot_be_reached_is_no_row_that_fails():
    def explain(cause: Exception) -> Exception:
        error = openai.APITimeoutError(httpx2.Request("POST", "http://127.0.0.1/v1"))
        error.__cause__ = cause
        return client.ChatClient("http://127.0.0.1/v1", "", "m", 7, 120).explain(error)

    assert "cannot be reached (ConnectTimeout)" in str(explain(httpx2.ConnectTimeout("")))
    assert isinstance(explain(httpx2.ConnectTimeout("")), NoAnswers)
    assert "no complete reply within 120 s" in str(explain(httpx2.ReadTimeout("")))


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
    assert "error 401" in said
    assert sorted(outcomes) == [(0, ["Answer to a"]), (2, ["Answer to c"])]
    assert not server.asked["d"]


# Rows that the server rejects


def test_a_rejected_row_fails_alone(server):
    server.react = lambda text, times: error(400, "image too small") if text in "ad" else f"Answer to {text}"
    outcomes = dict(ask(server, list("abcd")))
    assert {i: str(o[0]) for i, o in outcomes.items() if isinstance(o[0], Rejected)} == {
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
    assert "does not answer: rejected by the server: error 400, 'one image only'" in said
    assert outcomes == []
    assert sum(server.asked.values()) == 2 * 11


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_call_that_is_rejected_for_every_row_ends_the_run(server, status):
    server.react = lambda text, times: error(status, "Unsupported parameter: temperature")
    with pytest.raises(UserError, match="does not answer: .*Unsupported parameter"):
        ask(server, ["a", "b"])
    with pytest.raises(UserError, match="does not answer"):
        ask(server, list("abcdefghijklmnopqrstuvwxyz"))
    assert sum(server.asked.values()) == 2 + 11


def test_rejections_without_end_are_not_taken_for_the_rows_fault(server):
    server.react = lambda text, times: "Coke" if text == "0" else error(400, "Your credit is used up")
    outcomes, said = ask_in_vain(server, map(str, range(30)))
    assert "does not answer: rejected by the server: error 400, 'Your credit is used up'" in said
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


# Images that cannot be sent


@pytest.mark.parametrize(
    "error", [OSError("broken"), MemoryError(), ValueError("x" * 1000), SyntaxError("a tEXt chunk")]
)
def test_a_row_whose_image_cannot_be_sent_fails_alone(server, error):
    class Images(Source):
        def __getitem__(self, i: int) -> list:
            if i == 1:
                raise error
            return super().__getitem__(i)

    options = Server(base=server.url, model="m", max_new_tokens=7, concurrency=1)
    outcomes = dict(answer_rows(options, Images([["a"], ["b"], ["c"]]), lambda image: image))
    assert isinstance(outcomes[1], UnreadableImage)
    assert type(error).__name__ in str(outcomes[1])
    assert len(str(outcomes[1])) < 150
    assert (outcomes[0], outcomes[2]) == (["Answer to a"], ["Answer to c"])


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
