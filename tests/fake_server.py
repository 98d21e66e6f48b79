"""A server on loopback that speaks as much of the OpenAI API as it needs to, with every fault that one may have."""

import base64
import contextlib
import io
import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from cropvlm.errors import UnreadableImage, UserError
from cropvlm.runs.server import Server

KEY = "sk-very-secret-0123456789"
SOON = {"retry-after-ms": "5"}  # the client waits as long as it is told to
CUT, HALF, SILENCE = "cut", "half", "silence"


def completion(content, **fields) -> dict:
    message = {"role": "assistant", "content": content, **fields}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def error(status: int, message: str, **fields) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"message": message, **fields}}).encode()


def open_url(url: str) -> Image.Image:
    head, encoded = url.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image.convert("RGB")


class FakeServer(ThreadingHTTPServer):
    """Answers each chat with `react(its text, how often it was asked)`, and remembers what it was asked.

    A reaction: text; a dict to send as JSON; (status, bytes) or (status, bytes, headers); or a fault: CUT before the
    reply, cut HALF way, SILENCE.
    """

    daemon_threads = True
    request_queue_size = 64  # clients that connect at once

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.react = lambda text, times: f"Answer to {text}"
        self.raw, self.bodies, self.keys, self.asked = [], [], [], Counter()
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
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        text = body["messages"][0]["content"][-1]["text"]
        with server.lock:
            server.raw.append(raw)
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
        status, content, *more = (200, json.dumps(reaction).encode()) if isinstance(reaction, dict) else reaction
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(content), **SOON, **dict(*more)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.connection.shutdown(socket.SHUT_RDWR)


# Faults that end the run, and what is said of them
FATAL = {
    "401": (error(401, f"Incorrect key: {KEY}"), "'Incorrect key: ***'; set OPENAI_API_KEY"),
    "404": (error(404, "The model m does not exist"), "'The model m does not exist'; no such model"),
    "402": (error(402, "Insufficient credits"), "sends error 402, 'Insufficient credits'; finished rows are kept"),
    "429": (error(429, "Rate limit reached"), "sends error 429, 'Rate limit reached'; finished rows are kept"),
    "redirect": ((307, b"", {"Location": "http://localhost:9/"}), "redirects are not followed"),
}
# Faults of one row, unless the server answers no other, and what is said of them
OF_A_ROW = {
    "400": (error(400, f"{KEY} is too small"), "the server sends error 400, '*** is too small'"),
    "500": ((500, b"<html>oops</html>"), "the server sends error 500, '<html>oops</html>'"),
    "html": ((200, f"<html>{KEY}".encode(), {"Content-Type": "text/html"}), "not a chat completion: '<html>***'"),
    "no choices": ({"choices": []}, "the reply is not a chat completion"),
    "cut": (CUT, "no reply that can be read"),
    "silence": (SILENCE, "no reply within 0.5 s in 4 attempts; raise --api_timeout"),
    "length": (
        {"choices": [{"message": {}, "finish_reason": "length"}]},
        "cut off before it held an answer; raise --max",
    ),
}
LASTING = FATAL | OF_A_ROW


@contextlib.contextmanager
def started() -> Iterator[FakeServer]:
    """A server that listens, and is gone afterwards."""
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            fake.release.set()
            fake.shutdown()
            thread.join()


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
    return Server(**options).answer_rows(source, lambda image: image, done)


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


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """An end to what hangs: TimeoutError."""

    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
