"""An OpenAI-compatible server on this machine that adds the crop to every question about an image.

    bash scripts/serve.sh --model_path models/grpo_512 --api_base http://localhost:8001/v1
    bash scripts/serve.sh --model_path models/grpo_512 --vqa_model_path HuggingFaceTB/SmolVLM-256M-Instruct

It crops the first image of the last user turn, puts the crop behind that image, and hands the request on to the server
behind it or answers itself. The reply has `cropvlm`, a stream the header `X-CropVLM`: the box in percent (null without
a valid one) and the number of visual tokens that the crop takes in the answerer's prompt (null where a server behind
answers: its usage counts the whole prompt). With the header `X-CropVLM: off`, and without an image, a request is handed
on byte for byte. Images come as data URLs: no address is fetched.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from cropvlm.boxes import parse_bbox
from cropvlm.crops import full_and_crop
from cropvlm.data.images import open_image
from cropvlm.errors import UserError, failure
from cropvlm.runs.cli import ArgumentParser, nonempty, pixels, port, run, seconds, start_logging
from cropvlm.runs.server import SAVE_OPTIONS, data_url, is_here
from cropvlm.runs.text_models import base_url

logger = logging.getLogger(__name__)

LARGEST_REQUEST = 20 << 20  # bytes
TOGETHER = 0.005  # seconds to wait for further requests of a batch


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=nonempty, required=True, help="cropper: Hub id or folder")
    add("--base_model_path", type=nonempty, help="base of an adapter, where it has moved")
    add("--longest_edge", type=pixels, default=512, help="pixels at which the cropper sees images (default 512)")
    add("--api_base", type=base_url, help="address of the server behind, as http://localhost:8001/v1")
    add("--api_timeout", type=seconds, default=120.0, help="seconds to wait for it (default 120)")
    add("--vqa_model_path", type=nonempty, help="or a model on this machine that answers")
    add("--vqa_longest_edge", type=pixels, help="pixels at which it sees images (SmolVLM: default 512)")
    add("--question_from", choices=("first_line", "whole"), default="first_line", help="what the cropper is asked")
    add("--image_format", choices=SAVE_OPTIONS, default="png", help="of the crop (default png)")
    add("--gpu", type=int, default=0, help="index of the GPU; without one the CPU")
    add("--port", type=port, default=8002, help="of this server on 127.0.0.1 (default 8002)")
    args = parser.parse_args()
    if (args.api_base is None) == (args.vqa_model_path is None):
        raise UserError("one of --api_base and --vqa_model_path names what answers")
    return args


class Batcher:
    """Collects the requests of one moment, and those that arrive while the model works, into one batch."""

    def __init__(self, generate: Callable[[list[Any]], list[str]]):
        """generate: maps the items of a batch to a text each."""
        self.generate, self.waiting, self.turn = generate, [], asyncio.Lock()

    async def ask(self, item: Any) -> str:
        """The text for `item`."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        async with self.turn:
            if not future.done():
                await asyncio.sleep(TOGETHER)
                batch, self.waiting = self.waiting, []
                try:
                    texts = await asyncio.to_thread(self.generate, [item for item, _ in batch])
                except Exception as error:  # one of them is to blame: each by itself
                    texts = [error] if len(batch) == 1 else [await self._alone(item) for item, _ in batch]
                for (_, other), text in zip(batch, texts, strict=True):
                    if not other.done():  # a client that has hung up
                        other.set_exception(text) if isinstance(text, Exception) else other.set_result(text)
        return await future

    async def _alone(self, item: Any) -> str | Exception:
        try:
            return (await asyncio.to_thread(self.generate, [item]))[0]
        except Exception as error:
            return error


def build(cropper: Any, behind: Any, question_from: str = "first_line", image_format: str = "png") -> FastAPI:
    """The application. cropper: a `cropvlm.Cropper`. behind: a `Behind` or a `Local`."""
    boxes = Batcher(lambda items: cropper.texts(*zip(*items, strict=True)))

    async def add_crop(body: dict) -> dict | None:
        """Put the crop into the body; return the reply's `cropvlm`, None without an image."""
        turn = next((m for m in reversed(body["messages"]) if m.get("role") == "user"), {})
        parts = turn.get("content") if isinstance(turn.get("content"), list) else []
        place = next((i for i, part in enumerate(parts) if part.get("type") == "image_url"), None)
        if place is None:
            return None
        image = await asyncio.to_thread(open_url, parts[place]["image_url"]["url"])
        text = "\n".join(part["text"] for part in parts if part.get("type") == "text").strip()
        question = text if question_from == "whole" else text.split("\n", 1)[0]
        written = await boxes.ask((image, question))
        crops = full_and_crop(image, written)[1:]
        urls = await asyncio.to_thread(lambda: [data_url(crop, image_format) for crop in crops])
        parts[place + 1 : place + 1] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"bbox": parse_bbox(written), "crop_tokens": await asyncio.to_thread(behind.image_tokens, crops)}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await behind.close()

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": {"message": error.detail, "code": error.status_code}}, error.status_code)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return await behind.models(request)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        raw, said = await read(request), None
        try:
            body = json.loads(raw)
            if request.headers.get("x-cropvlm", "on").lower() != "off" and (said := await add_crop(body)):
                raw = json.dumps(body).encode()
            return await behind.answer(request, raw, body, said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HTTPException(400, f"expected a chat with images as data URLs ({error})") from error

    return app


async def read(request: Request) -> bytes:
    """The request's body, of at most 20 MB."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_REQUEST:
            raise HTTPException(413, f"a request has at most {LARGEST_REQUEST >> 20} MB")
    return bytes(body)


def open_url(url: str) -> Any:
    """The image in a data URL, RGB."""
    head, _, encoded = url.partition(";base64,")
    if not head.startswith("data:image/"):
        raise ValueError("expected an image as a data URL in base64; addresses are not fetched")
    return open_image(base64.b64decode(encoded, validate=True))


class Behind:
    """The server behind: it gets the request, and its reply, errors included, is handed on with its status."""

    def __init__(self, base: str, timeout: float):
        options = {"timeout": timeout, "trust_env": not is_here(base)}
        self.client = httpx2.AsyncClient(base_url=base, limits=httpx2.Limits(max_connections=None), **options)

    async def close(self) -> None:
        await self.client.aclose()

    def image_tokens(self, images: list) -> int | None:
        return None if images else 0

    async def models(self, request: Request) -> Response:
        return await self._send(request, "GET", "models", b"", None)

    async def answer(self, request: Request, raw: bytes, body: dict, said: dict | None) -> Response:
        return await self._send(request, "POST", "chat/completions", raw, said)

    async def _send(self, request: Request, method: str, path: str, raw: bytes, said: dict | None) -> Response:
        names = ("authorization", "content-type", "accept")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        try:
            reply = await self.client.send(
                self.client.build_request(method, path, content=raw, headers=headers), stream=True
            )
            kept = {name: reply.headers[name] for name in ("content-type", "retry-after") if name in reply.headers}
            kept |= {"x-cropvlm": json.dumps(said)} if said else {}
            if "event-stream" in kept.get("content-type", ""):
                return StreamingResponse(self._stream(reply), reply.status_code, kept)
            content = await reply.aread()
            await reply.aclose()
        except httpx2.HTTPError as error:
            raise HTTPException(502, f"no reply from the server behind ({type(error).__name__})") from error
        if said and reply.is_success:
            with contextlib.suppress(ValueError, TypeError):
                content = json.dumps(json.loads(content) | {"cropvlm": said}).encode()
        return Response(content, reply.status_code, kept)

    async def _stream(self, reply: httpx2.Response):
        try:
            async for piece in reply.aiter_bytes():
                yield piece
        finally:
            await reply.aclose()


class Local:
    """A model on this machine that answers."""

    def __init__(self, name: str, model: Any, processor: Any):
        self.name, self.model, self.processor = name, model, processor
        self.answers = Batcher(self._generate)

    async def close(self) -> None:
        pass

    def image_tokens(self, images: list) -> int | None:
        from cropvlm.generation import image_tokens

        return image_tokens(self.processor, images) if images else 0

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "cropvlm"}]})

    async def answer(self, request: Request, raw: bytes, body: dict, said: dict | None) -> Response:
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 64
        messages, images = [], []
        for message in body["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            images += [open_url(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            parts = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            messages.append(message | {"content": parts})
        text = await self.answers.ask((messages, images, limit))
        reply = {"id": "cropvlm", "object": "chat.completion", "created": int(time.time()), "model": self.name}
        message = {"role": "assistant", "content": text}
        if body.get("stream"):
            events = [
                {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
                for delta, reason in ((message, None), ({}, "stop"))
            ]
            lines = [*(json.dumps(reply | event) for event in events), "[DONE]"]
            headers = {"x-cropvlm": json.dumps(said)} if said else {}
            return Response("".join(f"data: {line}\n\n" for line in lines), 200, headers, "text/event-stream")
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(reply | {"choices": [choice]} | ({"cropvlm": said} if said else {}))

    def _generate(self, items: list[tuple[list, list, int]]) -> list[str]:
        from cropvlm.generation import generate_texts

        texts: dict[int, str] = {}
        for limit in {limit for *_, limit in items}:
            part = [i for i, item in enumerate(items) if item[2] == limit]
            messages, images = [items[i][0] for i in part], [items[i][1] for i in part]
            written = generate_texts(self.model, self.processor, messages, images, max_new_tokens=limit)
            texts |= dict(zip(part, written, strict=True))
        return [texts[i] for i in range(len(items))]


def main() -> None:
    args = parse_args()
    start_logging(args)
    with failure(f"--port {args.port} cannot be used; name another one"):
        listening = socket.create_server(("127.0.0.1", args.port))
    from cropvlm import Cropper
    from cropvlm.modeling import device_and_dtype, load_model
    from cropvlm.runs.text_models import answerer_processor

    device, dtype = device_and_dtype(args.gpu)
    cropper = Cropper(args.model_path, args.base_model_path, args.longest_edge, device, dtype)
    if args.api_base:
        behind = Behind(args.api_base, args.api_timeout)
    else:
        processor = answerer_processor(args.vqa_model_path, args.vqa_longest_edge)
        behind = Local(args.vqa_model_path, load_model(args.vqa_model_path, None, device, dtype), processor)
    app = build(cropper, behind, args.question_from, args.image_format)
    logger.info("listening at http://127.0.0.1:%d/v1", args.port)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


if __name__ == "__main__":
    run(main)
