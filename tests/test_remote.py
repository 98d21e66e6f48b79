"""A model behind a server: what is sent, what replies mean, faults of every kind, the key, going on. Loopback only."""

import argparse
import base64
import io
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from datasets import load_from_disk
from openai import _base_client
from PIL import Image

import generate_final_answers
from cropvlm import remote
from cropvlm.cli import UserError, run
from cropvlm.crops import UnreadableImage
from cropvlm.predictions import build_meta, write_predictions
from cropvlm.prompts import answerer_messages
from cropvlm.remote import (
    Server,
    answer_rows,
    api_key,
    base_url,
    data_url,
    fit_longest_edge,
    read_completion,
    to_chats,
)

KEY = "sk-very-secret-0123456789"
SOON = {"retry-after-ms": "5"}  # the client waits as long as it is told to
CUT, HALF, SILENCE = "cut", "half", "silence"


def completion(content, **fields) -> dict:
    message = {"role": "assistant", "content": content, **fields}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def error(status: int, message: str, **fields) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"message": message, **fields}}).encode()


class FakeServer(ThreadingHTTPServer):
    """Answers each chat with `react(its text, how often it was asked)`, and remembers what it was asked.

    A reaction: text; a dict to send as JSON; (status, bytes); or a fault: CUT before the reply, cut HALF way, SILENCE.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.react = lambda text, times: f"Answer to {text}"
        self.bodies, self.keys, self.asked = [], [], Counter()
        self.lock, self.release, self.at_once = threading.Lock(), threading.Event(), [0, 0]  # now, most

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):  # clients that hang up are meant to
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"][-1]["text"]
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            server.asked[text] += 1
            times = server.asked[text]
            server.at_once[0] += 1
            server.at_once[1] = max(server.at_once)
        try:
            self.reply(server.react(text, times))
        finally:
            with server.lock:
                server.at_once[0] -= 1

    def reply(self, reaction):
        if reaction in (CUT, SILENCE):
            if reaction == SILENCE:
                self.server.release.wait(5)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        half, reaction = reaction == HALF, "cut off" if reaction == HALF else reaction
        reaction = completion(reaction) if isinstance(reaction, str) else reaction
        status, content = (200, json.dumps(reaction).encode()) if isinstance(reaction, dict) else reaction
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **SOON}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.release.set()
        fake.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Three retries with hardly a wait, the key set, no proxy, and an end to a test that hangs."""

    def stop(*_):
        raise TimeoutError("the test took more than a minute")

    for module, name, value in [
        (remote, "RETRIES", 3),
        (remote, "FIRST_DELAY", 0.01),
        (_base_client, "INITIAL_RETRY_DELAY", 0.01),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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


def open_url(url: str) -> Image.Image:
    head, encoded = url.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image.convert("RGB")


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
    outcomes = ask(server, ["a", "b", "c"], timeout=0.3)
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


LASTING = {
    "401": (error(401, f"Incorrect API key provided: {KEY}"), "refuses the key (401); set OPENAI_API_KEY"),
    "403": (error(403, "Not yours"), "refuses the key (403)"),
    "404": (error(404, "The model m does not exist"), "knows no m (error 404, 'The model m does not exist')"),
    "402": (error(402, "Insufficient credits"), "sends error 402, 'Insufficient credits'"),
    "429": (error(429, "Rate limit reached"), "still sends error 429, 'Rate limit reached' after 3 retries"),
    "500": ((500, b"<html>oops</html>"), "still sends error 500, '<html>oops</html>' after 3 retries"),
    "garbage": ((200, f"<html>{KEY}".encode()), "sends no chat completions but '<html>***'"),
    "cut": (CUT, "cannot be reached or cuts the connection"),
    "half": (HALF, "cannot be reached or cuts the connection"),
    "silence": (SILENCE, "sent nothing for 0.3 s, 4 times over"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_ends_the_run_after_what_is_done(server, name):
    fault, message = LASTING[name]
    server.react = lambda text, times: fault if text == "c" else f"Answer to {text}"
    outcomes, said = ask_in_vain(server, "abcde", timeout=0.3)
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
    assert {i: str(o) for i, o in outcomes.items() if isinstance(o, remote.Rejected)} == {
        0: "rejected by the server: error 400, 'image too small'",
        3: "rejected by the server: error 400, 'image too small'",
    }
    assert outcomes[1] == ["Answer to b"]


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
    "url", [f"https://user:{KEY}@host/v1", f"https://{KEY}@host/v1", f"https://host/v1?key={KEY}", "host:80", "", "/v1"]
)
def test_a_base_url_with_a_password_is_refused_unseen(url):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        base_url(url)
    assert KEY not in str(raised.value)


# The script


@pytest.fixture
def script(monkeypatch, tmp_path, server):
    """Run generate_final_answers.py in this process on the server; its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*flags) -> int:
        defaults = ["--api_base", server.url, "--api_model", "m", "--api_concurrency", 1, "--api_timeout", 5]
        monkeypatch.setattr(sys, "argv", [str(flag) for flag in ("generate_final_answers.py", *defaults, *flags)])
        with pytest.raises(SystemExit) as ended:
            run(generate_final_answers.main)
        return ended.value.code

    return call


@pytest.fixture
def boxes(tmp_path, tiny_world) -> Path:
    """A box file of the 12 test rows, 6 of them invalid, with its meta."""
    ids = load_from_disk(str(tiny_world))["test"]["question_id"]
    path = tmp_path / "predictions" / "world_bbox.json"
    records = [{"question_id": i, "answer": text} for i, text in zip(ids, ["[0, 0, 50, 25]", "no"] * 6, strict=True)]
    source = {"dataset_path": str(tiny_world), "split": "test", "max_samples": None}
    write_predictions(path, records, build_meta(**source, models={}, settings={}, counts={}))
    return path


def by_images(server: FakeServer) -> None:
    """Let the server answer with the question and the number and size of the pictures, so that none can be mixed up."""

    def react(text, times):
        content = server.bodies[-1]["messages"][0]["content"]  # one request at a time
        sizes = ["x".join(map(str, open_url(p["image_url"]["url"]).size)) for p in content[:-1]]
        return f"{text.splitlines()[0]} {' '.join(sizes)}."

    server.react = react


def read(path) -> list | dict:
    return json.loads(Path(path).read_text())


def test_the_script_writes_both_files(script, server, boxes, tiny_world):
    by_images(server)
    assert script("--bbox", boxes, "--longest_edge", 64) == 0
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
        records = read(f"predictions/world_{mode}_answers.json")
        assert [record["question_id"] for record in records] == list(rows["question_id"])
        assert [record["answer"] for record in records] == answers
        meta = read(f"predictions/world_{mode}_answers.meta.json")
        assert meta["models"] == {"answerer": "m"}
        assert (meta["settings"]["api_base"], meta["settings"]["longest_edge"]) == (server.url, 64)
        assert (meta["counts"]["rows"], meta["counts"]["empty_answers"]) == (12, 0)
    assert not list(Path().rglob("*.jsonl"))


def test_the_files_do_not_depend_on_concurrency(script, server, boxes):
    server.react = lambda text, times: time.sleep(len(text) % 5 / 100) or f"Answer to {text}"
    assert script("--bbox", boxes, "--modes", "base", "--name", "one") == 0
    assert script("--bbox", boxes, "--modes", "base", "--name", "eight", "--api_concurrency", 8) == 0
    one, eight = (Path(f"predictions/{name}_base_answers.json").read_bytes() for name in ("one", "eight"))
    assert one == eight


def test_an_ended_run_goes_on_to_the_same_files(script, server, boxes, capsys):
    server.react = lambda text, times: f"Answer to {text}"
    assert script("--bbox", boxes, "--modes", "base", "--name", "whole") == 0
    server.asked.clear()
    server.react = lambda text, times: f"Answer to {text}" if len(server.asked) <= 5 else error(401, f"not {KEY}")
    assert script("--bbox", boxes, "--modes", "base", "--name", "resumed") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {server.url} refuses the key (401); set OPENAI_API_KEY to one that may ask it"
    )
    assert not Path("predictions/resumed_base_answers.json").exists()
    (journal,) = Path().rglob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 5
    server.asked.clear()
    server.react = lambda text, times: f"Answer to {text}"
    assert script("--bbox", boxes, "--modes", "base", "--name", "resumed") == 0
    assert sum(server.asked.values()) == 12 - 5
    whole, resumed = (Path(f"predictions/{name}_base_answers.json").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_the_journal_of_another_model_is_refused(script, server, boxes, capsys):
    server.react = lambda text, times: "Coke" if len(server.asked) < 3 else error(404, "gone")
    assert script("--bbox", boxes) == 2
    for flags, said in {
        ("--api_model", "other"): "api_model 'm' there, 'other' here",
        ("--image_format", "jpeg"): "image_format 'png' there, 'jpeg' here",
        ("--longest_edge", 64): "longest_edge None there, 64 here",
    }.items():
        assert script("--bbox", boxes, *flags) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_refusals_are_counted(script, server, boxes):
    server.react = lambda text, times: completion(None, refusal="No.") if len(server.asked) % 3 == 0 else "Yes."
    assert script("--bbox", boxes, "--modes", "base") == 0
    answers = [record["answer"] for record in read("predictions/world_base_answers.json")]
    assert answers.count("") == read("predictions/world_base_answers.meta.json")["counts"]["empty_answers"] > 0


def test_a_rejected_row_has_an_empty_answer_and_exit_code_3(script, server, boxes, caplog):
    server.react = lambda text, times: error(400, "too long") if len(server.asked) == 4 else "Yes."
    assert script("--bbox", boxes, "--modes", "base") == 3
    answers = [record["answer"] for record in read("predictions/world_base_answers.json")]
    assert [i for i, answer in enumerate(answers) if not answer] == [3]
    counts = read("predictions/world_base_answers.meta.json")["counts"]
    assert (counts["failed"], counts["empty_answers"]) == (1, 0)
    assert "rejected by the server: error 400, 'too long'" in caplog.text


@pytest.mark.parametrize("fault", [None, *LASTING])
def test_the_key_is_written_nowhere(script, server, boxes, tmp_path, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    for logger in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger)
    if fault:
        reaction = LASTING[fault][0]
        server.react = lambda text, times: reaction if len(server.asked) > 2 else "Yes."
    expected = 2 if fault else 0
    assert script("--bbox", boxes, "--modes", "base", "--api_timeout", 0.3, "--verbose") == expected
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == (3 if fault else 4)  # two of the boxes, and the journal or the two of the answers
    captured = capfd.readouterr()
    for text in [caplog.text, captured.out, captured.err, *(path.read_text() for path in files)]:
        assert KEY not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_pixels", "9"], "--max_pixels goes with a local model"),
        (["--api_timeout", "0"], "--api_timeout 0.0"),
        (["--api_timeout", "nan"], "--api_timeout nan"),
        (["--api_concurrency", "0"], "'0' is no positive whole number"),
        (["--api_base", "localhost:8000"], "is no URL such as"),
        (["--image_format", "gif"], "invalid choice: 'gif'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, server, boxes, capsys, flags, message):
    assert script("--bbox", boxes, *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not server.bodies


def test_a_base_without_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate_final_answers.py", "--modes", "base", "--api_base", "http://a/v1"])
    with pytest.raises(SystemExit):
        run(generate_final_answers.main)
    assert "name the model there with --api_model" in capsys.readouterr().err
