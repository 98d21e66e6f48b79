"""The crop proxy: what it hands on, what it adds to the reply, batches of one moment, and what it refuses."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import openai
import pytest
import uvicorn
from datasets import load_from_disk
from fake_server import KEY, error, open_url
from PIL import Image

import generate_final_answers
from cropvlm.crops import full_and_crop
from cropvlm.generation import generate_texts
from cropvlm.modeling import load_model, load_processor
from cropvlm.prompts import answerer_prompt
from cropvlm.runs.server import data_url
from serving.proxy import Behind, Local, build, main


class Cropper:
    """Writes a box of as many percent of the width as the first number in the question, else the left half."""

    def __init__(self):
        self.asked = []

    def texts(self, images, questions) -> list[str]:
        self.asked.append(list(questions))
        time.sleep(0.05)
        return [self.text(question) for question in questions]

    @staticmethod
    def text(question: str) -> str:
        if question in ("Not needed.", "nothing"):
            return question
        number = re.search(r"\d+", question)
        return f"[0, 0, {number[0] if number else 50}, 100]."


@contextlib.contextmanager
def listening(behind, cropper=None, **options) -> Iterator[str]:
    """The URL of a proxy on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(build(cropper or Cropper(), behind, **options), log_level="error"))
        thread = threading.Thread(target=server.run, args=[[taken]])
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def cropper() -> Cropper:
    return Cropper()


@pytest.fixture
def proxy(server, cropper) -> Iterator[str]:
    with listening(Behind(server.url, timeout=120), cropper) as url:
        yield url


def post(url: str, **request) -> httpx2.Response:
    return httpx2.post(f"{url}/chat/completions", trust_env=False, timeout=120, **request)


def post_together(url: str, texts: list[str]) -> list[httpx2.Response]:
    """The replies to chats that are sent at once."""

    async def ask_all() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(trust_env=False, timeout=120) as client:
            return await asyncio.gather(*(client.post(f"{url}/chat/completions", json=body(text)) for text in texts))

    return asyncio.run(ask_all())


def shown(image: Image.Image) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(image, "png")}}


IMAGE = Image.effect_noise((100, 20), 60).convert("RGB")
PART = shown(IMAGE)


def body(text: str = "what?\nGive a very brief answer.", *parts: dict) -> dict:
    content = [*(parts or (PART,)), {"type": "text", "text": text}]
    return {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 7}


def test_the_crop_follows_the_first_image_of_the_last_turn(server, cropper, proxy):
    other, chat = shown(Image.new("RGB", (3, 3))), body("what?\nBriefly.", PART, shown(Image.new("RGB", (3, 3))))
    chat["messages"] += [{"role": "assistant", "content": "eh?"}, *body("which?\nBriefly.", PART, other)["messages"]]
    reply = post(proxy, json=chat).json()
    assert reply["choices"][0]["message"]["content"] == "Answer to what?\nBriefly."
    assert reply["cropvlm"] == {"bbox": [0, 0, 50, 100], "crop_tokens": None}
    sent = server.bodies[0]["messages"]
    assert sent[:2] == chat["messages"][:2]
    full, crop, second, text = sent[2]["content"]
    assert (full, second, text["text"]) == (PART, other, "which?\nBriefly.")
    assert open_url(crop["image_url"]["url"]) == IMAGE.crop((0, 0, 50, 20))
    assert cropper.asked == [["which?"]]


def test_the_cropper_may_be_asked_the_whole_text(server, cropper):
    with listening(Behind(server.url, timeout=120), cropper, question_from="whole", image_format="jpeg") as url:
        post(url, json=body())
    assert cropper.asked == [["what?\nGive a very brief answer."]]
    assert server.bodies[0]["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;")


@pytest.mark.parametrize(("written", "images", "tokens"), [("nothing", 2, None), ("Not needed.", 1, 0)])
def test_without_a_box_the_answerer_sees_what_the_scripts_show(server, proxy, written, images, tokens):
    reply = post(proxy, json=body(written)).json()
    assert reply["cropvlm"] == {"bbox": None, "crop_tokens": tokens}
    sent = [open_url(part["image_url"]["url"]) for part in server.bodies[0]["messages"][0]["content"][:-1]]
    assert sent == full_and_crop(IMAGE, written) == [IMAGE] * images


@pytest.mark.parametrize(("headers", "parts"), [({"X-CropVLM": "off"}, [PART]), ({}, [{"type": "text", "text": "a"}])])
def test_without_the_crop_a_request_is_handed_on_byte_for_byte(server, cropper, proxy, headers, parts):
    server.react = lambda text, times: (200, b'{"choices":  []}')
    raw = json.dumps(body("what?", *parts), indent=3).encode()
    reply = post(proxy, content=raw, headers={"Authorization": f"Bearer {KEY}"} | headers)
    assert reply.content == b'{"choices":  []}'
    assert (server.raw, server.keys, cropper.asked) == ([raw], [f"Bearer {KEY}"], [])


def test_clients_at_once_get_their_own_boxes_and_answers_from_few_batches(server, proxy, cropper):
    texts = [f"what is {i}?" for i in range(1, 33)]
    replies = [reply.json() for reply in post_together(proxy, texts)]
    assert [reply["choices"][0]["message"]["content"] for reply in replies] == [f"Answer to {text}" for text in texts]
    assert [reply["cropvlm"]["bbox"] for reply in replies] == [[0, 0, i, 100] for i in range(1, 33)]
    for chat in server.bodies:
        _, crop, text = chat["messages"][0]["content"]
        assert text["text"] == f"what is {open_url(crop['image_url']['url']).width}?"  # 100 px wide: a pixel a percent
    assert len(cropper.asked) < 16


def test_a_request_that_fails_fails_alone(server):
    class Picky(Cropper):
        def texts(self, images, questions):
            if "bad" in questions:
                raise ValueError("too long")
            return super().texts(images, questions)

    with listening(Behind(server.url, timeout=120), Picky()) as url:
        assert [reply.status_code for reply in post_together(url, ["good", "bad", "good"])] == [200, 400, 200]


def test_replies_behind_are_handed_on(server, proxy):
    """An error with its status and when to try again, a stream piece by piece; nobody there is a 502."""
    server.react = lambda text, times: (*error(429, "Rate limit reached"), {"Retry-After": "7"})
    reply = post(proxy, json=body())
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json() == {"error": {"message": "Rate limit reached"}}

    events = b'data: {"choices": [{"delta": {"content": "Co"}}]}\n\ndata: [DONE]\n\n'
    server.react = lambda text, times: (200, events, {"Content-Type": "text/event-stream"})
    reply = post(proxy, json=body() | {"stream": True})
    assert reply.content == events
    assert json.loads(reply.headers["x-cropvlm"])["bbox"] == [0, 0, 50, 100]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with listening(Behind(nobody, timeout=120)) as url:
        assert post(url, json=body()).status_code == 502


REFUSED = {
    "no json": (b"{", 400, "expected a chat"),
    "address": (body("a", {"type": "image_url", "image_url": {"url": "http://a/b.png"}}), 400, "not fetched"),
    "no image": (body("a", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), 400, "unread"),
    "too large": (b" " * (21 << 20), 413, "at most 20 MB"),
}


@pytest.mark.parametrize(("request_body", "status", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(server, proxy, request_body, status, said):
    raw = request_body if isinstance(request_body, bytes) else json.dumps(request_body)
    reply = post(proxy, content=raw)
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]
    assert not server.bodies


@pytest.fixture
def answers(call, tmp_path, tiny_world):
    """Run step 5 on the test rows, with the boxes of `Cropper` or, for a proxy, with none; the file that it writes."""
    rows = load_from_disk(str(tiny_world))["test"]
    boxes = [{"question_id": row["question_id"], "answer": Cropper.text(row["question"])} for row in rows]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))

    def answers(mode: str, url: str, *flags: object) -> bytes:
        source = ["--dataset_path", tiny_world, "--split", "test", "--output_path", tmp_path, "--name", "x"]
        source += ["--bbox", tmp_path / "boxes.json"] if mode == "cropvlm" else []
        assert call(generate_final_answers.main, *source, "--modes", mode, "--api_base", url, *flags) == 0
        return (tmp_path / f"x_{mode}_answers.json").read_bytes()

    return answers


def test_the_same_requests_as_the_scripts(server, proxy, answers):
    """`generate_final_answers.py` without boxes, asking the proxy, sends what it sends itself with the boxes."""
    flags = ["--api_model", "m", "--api_concurrency", 1]
    assert answers("cropvlm", server.url, *flags) == answers("base", proxy, *flags)
    assert len(server.bodies) == 24
    assert server.bodies[:12] == server.bodies[12:]


@pytest.fixture(scope="module")
def local(tiny_smolvlm) -> Iterator[str]:
    """The URL of a proxy that answers itself."""
    model, processor = load_model(str(tiny_smolvlm), device="cpu"), load_processor(str(tiny_smolvlm), 64)
    with listening(Local("tiny", model, processor)) as url:
        yield url


def test_a_model_on_this_machine_answers_as_in_the_scripts(local, tiny_smolvlm, tiny_world):
    """To the official client, several at once, whole and as a stream."""
    rows = load_from_disk(str(tiny_world))["test"].select(range(4))
    prompts = [answerer_prompt(row["question"], full_and_crop(row["image"], "[0, 0, 50, 100].")) for row in rows]
    model, processor = load_model(str(tiny_smolvlm), device="cpu"), load_processor(str(tiny_smolvlm), 64)
    expected = generate_texts(model, processor, *zip(*prompts, strict=True), max_new_tokens=7)
    chats = [body(prompt[0][0]["content"][-1]["text"], shown(prompt[1][0])) for prompt in prompts]

    async def ask(client: openai.AsyncOpenAI, chat: dict) -> tuple[str, str, dict]:
        reply = await client.chat.completions.create(**chat)
        stream = await client.chat.completions.create(**chat, stream=True)
        pieces = [event.choices[0].delta.content or "" async for event in stream]
        return reply.choices[0].message.content, "".join(pieces), reply.cropvlm

    async def ask_all() -> list:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(api_key="none", base_url=local, http_client=http) as client:
            assert [model.id async for model in await client.models.list()] == ["tiny"]
            return await asyncio.gather(*(ask(client, chat) for chat in chats))

    said = {"bbox": [0, 0, 50, 100], "crop_tokens": 16}  # one tile of 64 px: (64 / 8)^2 patches, 4 a token
    assert asyncio.run(ask_all()) == [(text, text, said) for text in expected]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "one of --api_base and --vqa_model_path"),
        (["--api_base", "http://a/v1", "--vqa_model_path", "m"], "one of --api_base and --vqa_model_path"),
        (["--api_base", "http://a/v1", "--port", "taken"], "cannot be used; name another one"),
    ],
)
def test_mistakes_end_with_one_line(call, capfd, flags, problem):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [taken.getsockname()[1] if flag == "taken" else flag for flag in flags]
        assert call(main, "--model_path", "m", *flags) == 2
    assert problem in capfd.readouterr().err.splitlines()[-1]
