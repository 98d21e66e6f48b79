"""A model behind an OpenAI-compatible server in place of a local one: a proprietary API, or vLLM and SGLang for scale.

The key is read from the environment, OPENAI_API_KEY, and from nowhere else; it is written nowhere. Rate limits, server
errors, timeouts and cut connections are tried again by the official client, replies that are no chat completion here.
What the server refuses to answer is an empty answer. Any other fault ends the run; answers that came are kept.

Texts are asked for at temperature 0. A server may still add what the checkpoint's generation config says, as vLLM does
with Qwen2.5-VL's repetition penalty unless it is started with `--generation-config vllm`.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, widen_strip
from cropvlm.prompts import Prompt, PromptSource

if TYPE_CHECKING:
    import openai  # imported where it is used: flags are parsed without it

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
SAVE_OPTIONS = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}  # coarser JPEGs blur small text
RETRIES = 8  # of one request: 40 seconds of back-off in all, or as long as the server asks for
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0  # seconds before a retry after a reply that is none; doubled every time
CONNECT_TIMEOUT = 5.0  # seconds
# Codes of errors 400 that mean "I will not answer this" (Azure, OpenAI).
REFUSALS = ("content_filter", "content_policy_violation", "invalid_prompt")
MOST_REJECTED = 10  # rows in a row that the server may reject: more, and it is not the rows' fault


class Rejected(ValueError):
    """The server takes this request for faulty, as where an image is too small or a prompt too long for it."""


@dataclass(frozen=True)
class Server:
    """A server, the model there, and how it is asked."""

    base: str
    model: str
    max_new_tokens: int
    image_format: str = "png"
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # seconds for one reply


def api_key() -> str:
    """The key in the environment; empty if there is none. Raises `UserError` if it cannot be one."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {KEY} holds characters that no key has; set it again")
    return key


def api_settings(server: Server) -> dict[str, Any]:
    """What decides a text, for journals and meta files. Not where the server is: it may move while a run goes on."""
    return {"api_model": server.model, "image_format": server.image_format}


def fit_longest_edge(image: Image.Image, longest_edge: int | None) -> Image.Image:
    """`image` with its longer side of that many pixels, smaller or larger; its own size if None. Strips are widened."""
    size = widen_strip(image.size)
    if longest_edge is not None:
        scale = longest_edge / max(size)
        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def answer_rows(
    server: Server, source: PromptSource, resize: Callable[[Image.Image], Image.Image], done: Collection[int] = ()
) -> Iterator[tuple[int, list[str | Rejected] | UnreadableImage]]:
    """Yield (row index, texts of its prompts), or why there are none, as the server answers: `generate_rows` afar.

    Each prompt stands by itself: one that is rejected has `Rejected` in the place of its text.

    Args:
        server: at most `server.concurrency` of its requests are under way at a time.
        source: prompts by row; an image shared by several is encoded once.
        resize: what is done to an image before it is sent.
        done: rows to leave out.

    Raises:
        UserError: the key is missing or refused, the server cannot be reached, has no such model, does not answer in
            spite of retries, or rejects all it is asked, or all of a row's first prompts, or second ones. Answers that
            were under way are yielded before.
    """
    client = connect(server)
    waiting = deque(sorted(set(range(len(source))) - set(done)))
    held: list[tuple[int, list[str | Rejected]]] = []  # rows with a rejected prompt, until another row's has a text
    rejected = Counter()  # by the prompt's place in its row: rejections since the last text
    answered: set[int] = set()  # places that have had a text
    fault = None
    outcomes = _in_parallel(client, lambda i: _answer(client, server, source, i, resize), waiting, server.concurrency)
    with contextlib.closing(outcomes):
        for i, task in outcomes:
            error = task.exception()
            if error is None:
                texts = task.result()
                for place, text in enumerate(texts):
                    rejected[place] = rejected[place] + 1 if isinstance(text, Rejected) else 0
                answered |= {place for place in range(len(texts)) if not rejected[place]}
                held.append((i, texts))
                yield from [row for row in held if not _in_doubt(row[1], rejected)]
                held = [row for row in held if _in_doubt(row[1], rejected)]
            elif isinstance(error, UnreadableImage):
                yield i, error
            elif isinstance(error, UserError):
                fault = fault or error
            else:
                raise error
            if fault or max(rejected.values(), default=0) > MOST_REJECTED:
                waiting.clear()
    for place, times in rejected.items():
        if times > MOST_REJECTED or (times and not done and place not in answered):
            reason = next(texts[place] for _, texts in held if isinstance(texts[place], Rejected))
            fault = fault or UserError(f"{server.base} answers no row any more: {reason}")
    if fault:
        raise fault
    yield from held


def _in_doubt(texts: list[str | Rejected], rejected: Counter) -> bool:
    """Whether a prompt of the row is rejected, and none in its place has had a text since."""
    return any(isinstance(text, Rejected) and rejected[place] for place, text in enumerate(texts))


def connect(server: Server) -> "openai.AsyncOpenAI":
    """The official client for a server. Raises `UserError` where the key is missing or cannot be one."""
    import openai

    key = api_key()
    if server.base == OPENAI and not key:
        raise UserError(f"{OPENAI} wants a key: set the environment variable {KEY}, or name another --api_base")
    return openai.AsyncOpenAI(
        api_key=key or "none",  # the client insists on one, a server of one's own does not
        base_url=server.base,
        timeout=openai.Timeout(server.timeout, connect=min(server.timeout, CONNECT_TIMEOUT)),
        max_retries=RETRIES,
    )


def _in_parallel(
    client: "openai.AsyncOpenAI", answer: Callable, waiting: deque[int], concurrency: int
) -> Iterator[tuple[int, asyncio.Task]]:
    """Yield (row index, its task) as tasks finish. None begins after `waiting`, the rows to come, has been emptied."""
    loop = asyncio.new_event_loop()
    running: dict[asyncio.Task, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrency:
                i = waiting.popleft()
                running[loop.create_task(answer(i))] = i
            finished, _ = loop.run_until_complete(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
            for task in finished:
                yield running.pop(task), task
    finally:
        loop.run_until_complete(_stop(client, running))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _stop(client: "openai.AsyncOpenAI", tasks: Iterable[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def _answer(
    client: "openai.AsyncOpenAI", server: Server, source: PromptSource, i: int, resize: Callable
) -> list[str | Rejected]:
    chats = await asyncio.to_thread(lambda: to_chats(source[i], resize, server.image_format))
    texts = []
    for messages in chats:
        try:
            texts.append(await _ask(client, server, messages))
        except Rejected as error:
            texts.append(error)
    return texts


def to_chats(prompts: list[Prompt], resize: Callable, image_format: str) -> list[list[dict[str, Any]]]:
    """The messages of each prompt as the API takes them, images as data URLs in the place of their placeholders."""
    distinct = {id(image): image for _, images in prompts for image in images}
    parts = {
        key: {"type": "image_url", "image_url": {"url": data_url(resize(image), image_format)}}
        for key, image in distinct.items()
    }
    chats = []
    for messages, images in prompts:
        shown = iter(images)
        chats.append(
            [
                message
                | {"content": [parts[id(next(shown))] if p["type"] == "image" else p for p in message["content"]]}
                for message in messages
            ]
        )
    return chats


def data_url(image: Image.Image, image_format: str) -> str:
    """The image, RGB, as `data:image/png;base64,...`."""
    file = io.BytesIO()
    image.save(file, image_format, **SAVE_OPTIONS[image_format])
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"


async def _ask(client: "openai.AsyncOpenAI", server: Server, messages: list[dict[str, Any]]) -> str:
    """The server's text; retries of replies that are no chat completion included."""
    import openai

    body = ""
    for retry in range(RETRIES + 1):
        if retry:
            await asyncio.sleep(min(FIRST_DELAY * 2 ** (retry - 1), LONGEST_DELAY))
        try:
            # The raw reply: the client's own parsing lets replies through that only resemble a completion.
            reply = await client.chat.completions.with_raw_response.create(
                model=server.model, messages=messages, temperature=0, max_completion_tokens=server.max_new_tokens
            )
        except openai.OpenAIError as error:
            if getattr(error, "code", None) in REFUSALS:
                return ""
            raise _explain(server, error) from None
        body = reply.text
        text = read_completion(body)
        if text is not None:
            return text
    raise UserError(f"{server.base} sends no chat completions but {_quote(body)}; check --api_base")


def read_completion(body: str) -> str | None:
    """The text of a chat completion, empty for a refusal (whose content is null); None if `body` is none.

    >>> read_completion('{"choices": [{"message": {"content": " Coke."}}]}')
    ' Coke.'
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match completion:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"content": None}}, *_]} | {"choices": [{"message": {"refusal": str()}}, *_]}:
            return ""
    return None


def _explain(server: Server, error: "openai.OpenAIError") -> UserError | Rejected:
    """What to tell the user of an error that retries did not mend. The client's own words may hold the key."""
    import openai

    again = "what is done is kept, the same command goes on from there"
    match error:
        case openai.APITimeoutError() if type(error.__cause__).__name__ == "ConnectTimeout":
            return UserError(f"{server.base} cannot be reached (ConnectTimeout), {RETRIES + 1} times over; {again}")
        case openai.APITimeoutError():
            return UserError(f"{server.base} sent nothing for {server.timeout:g} s, {RETRIES + 1} times over; {again}")
        case openai.APIConnectionError():
            reason = type(error.__cause__).__name__
            return UserError(f"{server.base} cannot be reached or cuts the connection ({reason}); {again}")
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return UserError(f"{server.base} refuses the key ({error.status_code}); set {KEY} to one that may ask it")
        case openai.APIStatusError():
            said = f"error {error.status_code}, {_quote(_message(error))}"
            if error.status_code == 404:
                return UserError(f"{server.base} knows no {server.model} ({said}); check --api_model and --api_base")
            if (wait := _wait_asked_for(error)) is not None:
                return UserError(f"{server.base} sends {said} and asks to wait {wait:.0f} s; {again} after that")
            if error.status_code == 429 or error.status_code >= 500:
                return UserError(f"{server.base} still sends {said} after {RETRIES} retries; {again}")
            if error.status_code in (400, 413, 422):
                return Rejected(f"rejected by the server: {said}")
            return UserError(f"{server.base} sends {said}; {again}")
    return UserError(f"{server.base}: {_quote(str(error))}")


def _wait_asked_for(error: "openai.APIStatusError") -> float | None:
    """Seconds that the server asks to wait, where they are more than the client waits before it tries again."""
    from openai._base_client import MAX_RETRY_AFTER_DELAY

    seconds = error.response.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() and int(seconds) > MAX_RETRY_AFTER_DELAY else None


def _message(error: "openai.APIStatusError") -> str:
    """What the server itself says."""
    body = error.body
    return str(body.get("message", body) if isinstance(body, dict) else error.response.text)


def _quote(text: str) -> str:
    """The beginning of what a server said, without the key if it echoes that."""
    key = api_key()
    return repr((text.replace(key, "***") if key else text)[:200])
