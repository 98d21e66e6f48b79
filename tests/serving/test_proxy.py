"""The crop proxy: what it hands on, what it adds to the reply, batches of one moment, and what it refuses."""

import asyncio
import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from datasets import load_from_disk
from fake_server import error, open_url
from PIL import Image

from cropvlm.runs.server import data_url
from serving.proxy import Behind, build

ROOT = Path(__file__).resolve().parents[2]


class LeftHalf:
    """A cropper whose box is the left half, and of questions that begin with "no" nothing."""

    def __init__(self):
        self.asked = []

    def texts(self, images, questions) -> list[str]:
        self.asked.append(list(questions))
        time.sleep(0.05)
        return ["nothing" if question.startswith("no") else "[0, 0, 50, 100]." for question in questions]

    def count_tokens(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """The URL of an application on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def cropper() -> LeftHalf:
    return LeftHalf()


@pytest.fixture
def proxy(server, cropper) -> Iterator[str]:
    with listening(build(cropper, Behind(server.url, timeout=120))) as url:
        yield url


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(trust_env=False, timeout=120) as made:
        yield made


IMAGE = Image.effect_noise((40, 20), 60).convert("RGB")


def at(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


URL = at(data_url(IMAGE, "png"))


def body(text: str = "what?\nGive a very brief answer.", *images: dict) -> dict:
    content = [*(images or (URL,)), {"type": "text", "text": text}]
    return {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 7}


def test_the_crop_follows_the_image(server, cropper, proxy, client):
    other = at(data_url(Image.new("RGB", (3, 3)), "png"))
    reply = client.post(f"{proxy}/chat/completions", json=body("what?\nBriefly.", URL, other)).json()
    assert reply["choices"][0]["message"]["content"] == "Answer to what?\nBriefly."
    assert reply["cropvlm"] == {"bbox": [0, 0, 50, 100], "crop_tokens": len("[0, 0, 50, 100].")}
    full, crop, second, text = server.bodies[0]["messages"][0]["content"]
    assert (full, second, text["text"]) == (URL, other, "what?\nBriefly.")
    assert open_url(crop["image_url"]["url"]) == IMAGE.crop((0, 0, 20, 20))
    assert cropper.asked == [["what?"]]


def test_an_invalid_box_shows_the_image_again(server, proxy, client):
    reply = client.post(f"{proxy}/chat/completions", json=body("no idea")).json()
    assert reply["cropvlm"]["bbox"] is None
    full, crop, _ = server.bodies[0]["messages"][0]["content"]
    assert open_url(crop["image_url"]["url"]) == open_url(full["image_url"]["url"])


@pytest.mark.parametrize("way", ["off", "no image"])
def test_without_the_crop_a_request_is_handed_on_byte_for_byte(cropper, client, way):
    received = []

    async def upstream(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        received.append((raw, dict(scope["headers"])))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"choices":  []}'})

    chat = body() if way == "off" else {"messages": [{"role": "user", "content": "what?"}]}
    raw = json.dumps(chat, indent=3).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer key"}
    headers |= {"X-CropVLM": "off"} if way == "off" else {}
    with listening(upstream) as url, listening(build(cropper, Behind(url, timeout=120))) as proxy:
        reply = client.post(f"{proxy}/chat/completions", content=raw, headers=headers)
    assert reply.content == b'{"choices":  []}'
    assert received[0][0] == raw
    assert received[0][1][b"authorization"] == b"Bearer key"
    assert cropper.asked == []


def test_clients_at_once_get_their_own_answers_from_few_batches(proxy, cropper):
    async def ask_all() -> list[str]:
        async with httpx2.AsyncClient(trust_env=False, timeout=120) as client:
            replies = [client.post(f"{proxy}/chat/completions", json=body(f"what is {i}?")) for i in range(32)]
            done = [reply.json() for reply in await asyncio.gather(*replies)]
            return [reply["choices"][0]["message"]["content"] if "choices" in reply else reply for reply in done]

    assert asyncio.run(ask_all()) == [f"Answer to what is {i}?" for i in range(32)]
    assert sorted(sum(cropper.asked, [])) == sorted(f"what is {i}?" for i in range(32))
    assert len(cropper.asked) < 16


def test_an_error_behind_is_handed_on_with_its_status(server, proxy, client):
    server.react = lambda text, times: (*error(429, "Rate limit reached"), {"Retry-After": "7"})
    reply = client.post(f"{proxy}/chat/completions", json=body())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json() == {"error": {"message": "Rate limit reached"}}


def test_a_stream_is_passed_through(server, proxy, client):
    events = b'data: {"choices": [{"delta": {"content": "Co"}}]}\n\ndata: [DONE]\n\n'
    server.react = lambda text, times: (200, events, {"Content-Type": "text/event-stream"})
    reply = client.post(f"{proxy}/chat/completions", json=body() | {"stream": True})
    assert reply.content == events
    assert json.loads(reply.headers["x-cropvlm"])["bbox"] == [0, 0, 50, 100]


def test_nobody_behind(cropper, client):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with listening(build(cropper, Behind(url, timeout=120))) as proxy:
        assert client.post(f"{proxy}/chat/completions", json=body()).status_code == 502


@pytest.mark.parametrize(
    ("raw", "status", "said"),
    [
        (b"{", 400, "expected a chat"),
        (b"[]", 400, "expected a chat"),
        (json.dumps(body("a", {"type": "image_url", "image_url": {"url": "http://a/b.png"}})), 400, "not fetched"),
        (
            json.dumps(body("a", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})),
            400,
            "unread",
        ),
        (b" " * (21 << 20), 413, "at most 20 MB"),
    ],
    ids=["no json", "no chat", "address", "no image", "too large"],
)
def test_what_is_refused(server, proxy, client, raw, status, said):
    reply = client.post(f"{proxy}/chat/completions", content=raw)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert not server.bodies


def test_the_same_requests_as_the_scripts(server, proxy, tiny_world, tmp_path):
    """`generate_final_answers.py` without boxes, asking the proxy, sends what it sends itself with the boxes."""
    rows = load_from_disk(str(tiny_world))["test"]
    boxes = [{"question_id": i, "answer": "[0, 0, 50, 100]."} for i in rows["question_id"]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    data = ["--dataset_path", str(tiny_world), "--split", "test", "--api_model", "m", "--api_concurrency", "1"]
    command = [sys.executable, str(ROOT / "generate_final_answers.py"), *data, "--output_path", str(tmp_path)]
    calls = {
        "scripts": ["--bbox", str(tmp_path / "boxes.json"), "--modes", "cropvlm", "--api_base", server.url],
        "proxy": ["--modes", "base", "--api_base", proxy],
    }
    bodies = {}
    for name, flags in calls.items():
        server.bodies.clear()
        subprocess.run([*command, "--name", name, *flags], check=True, capture_output=True)
        bodies[name] = list(server.bodies)
    assert len(bodies["scripts"]) == 12
    assert bodies["proxy"] == bodies["scripts"]
    answers = [tmp_path / "scripts_cropvlm_answers.json", tmp_path / "proxy_base_answers.json"]
    assert answers[0].read_bytes() == answers[1].read_bytes()


def test_a_model_on_this_machine_answers(tiny_smolvlm, tiny_world, tmp_path, client):
    """Started as a user does; its answers are those of the scripts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    models = ["--model_path", tiny_smolvlm, "--longest_edge", "64", "--vqa_model_path", tiny_smolvlm]
    command = [sys.executable, "-m", "serving.proxy", *models, "--port", str(port), "--vqa_longest_edge", "64"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(httpx2.ConnectError):
                assert client.get(f"{url}/models").json()["data"][0]["id"] == str(tiny_smolvlm)
                break
            time.sleep(0.2)
        file = io.BytesIO()
        load_from_disk(str(tiny_world))["test"][0]["image"].save(file, "png")
        reply = client.post(f"{url}/chat/completions", json=body()).json()
        assert isinstance(reply["choices"][0]["message"]["content"], str)
        assert set(reply["cropvlm"]) == {"bbox", "crop_tokens"}
        assert client.post(f"{url}/chat/completions", json=body() | {"stream": True}).status_code == 400
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("flags", [[], ["--api_base", "http://a/v1", "--vqa_model_path", "m"]])
def test_one_thing_answers(flags):
    command = [sys.executable, "-m", "serving.proxy", "--model_path", "m", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "one of --api_base and --vqa_model_path" in done.stderr


@pytest.mark.slow
def test_before_transformers_serve(serve, cropper, tiny_smolvlm, tiny_world, tmp_path):
    """The answers are those of the scripts with the same boxes."""
    rows = load_from_disk(str(tiny_world))["test"]
    boxes = [{"question_id": i, "answer": "[0, 0, 50, 100]."} for i in rows["question_id"]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    data = ["--dataset_path", tiny_world, "--split", "test", "--api_model", tiny_smolvlm, "--max_new_tokens", "6"]
    command = [sys.executable, ROOT / "generate_final_answers.py", *data, "--name", "x", "--output_path", tmp_path]
    with listening(build(cropper, Behind(serve, timeout=120))) as url:
        calls = {
            "cropvlm": ["--bbox", tmp_path / "boxes.json", "--api_base", serve],
            "base": ["--api_base", url],
        }
        for mode, flags in calls.items():
            command = [
                sys.executable,
                ROOT / "generate_final_answers.py",
                *data,
                "--name",
                "x",
                "--modes",
                mode,
                *flags,
            ]
            subprocess.run([*map(str, command), "--output_path", str(tmp_path)], check=True, capture_output=True)
    answers = [tmp_path / f"x_{mode}_answers.json" for mode in calls]
    assert answers[0].read_bytes() == answers[1].read_bytes()
