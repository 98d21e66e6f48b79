"""A model behind an OpenAI-compatible server: a proprietary API, or vLLM and SGLang for scale.

The temperature is 0, but a server may add what the checkpoint's generation config says, as vLLM does with Qwen2.5-VL's
repetition penalty unless it is started with `--generation-config vllm`. A refusal is an empty answer. The official
client retries after rate limits, server errors, timeouts and cut connections.
"""

import asyncio
import base64
import contextlib
import io
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

from cropvlm.crops import widen_strip
from cropvlm.errors import UnreadableImage, UserError, failure, one_line
from cropvlm.prompts import Prompt, PromptSource, without_reasoning
from cropvlm.runs.cli import KEY, redact

if TYPE_CHECKING:  # slow to import, and only needed to ask
    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
SAVE_OPTIONS = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}  # coarser JPEGs blur small text
MOST_REJECTED = 10  # prompts in a row that may fail for the rows' own fault: more, and it is the server's
RETRIES = 8  # of one request: 40 seconds of back-off in all, or as long as the server asks for; none after 120 s
# Codes of errors that mean "I will not answer this" (Azure, OpenAI).
REFUSALS = ("content_filter", "content_policy_violation", "invalid_prompt")
RESUME = "finished rows are kept; run the same command again to continue"
# By status, of errors that every row would get.
REMEDIES = {
    401: f"set {KEY} to a key that is allowed to ask it",
    402: RESUME,
    404: "no such model or address; check --api_base and --api_model",
    429: RESUME,
}


class Rejected(ValueError):
    """No answer to this prompt in spite of retries. Where other rows get theirs, the fault is this row's."""


class CutOff(ValueError):
    """The reply reached the token limit before an answer."""


Texts = list[str | Rejected | CutOff]  # one per prompt of a row: its text or an error


@dataclass(frozen=True)
class Server:
    """A server, the model there, and how it is asked. replied: the model's name in the replies, often a dated one."""

    base: str
    model: str
    max_new_tokens: int
    image_format: str = "png"
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # seconds to wait for a reply
    replied: set[str] = field(default_factory=set, init=False, compare=False)

    def answer_rows(
        self, source: PromptSource, resize: Callable[[Image.Image], Image.Image], done: Collection[int] = ()
    ) -> Iterator[tuple[int, Texts | UnreadableImage]]:
        """Yield (row index, texts of its prompts) as the server answers, as `generate_rows` does with a local model.

        A failed prompt has `Rejected` or `CutOff` in place of its text, a row whose prompts cannot be made
        `UnreadableImage` in place of its texts. resize: applied to an image before it is sent. done: rows to leave
        out. Raises `UserError`, after the answers under way, for a fault of the server's.
        """
        waiting = deque(sorted(set(range(len(source))) - set(done)))
        doubts, fault = Doubts(), None
        outcomes = _in_parallel(self, lambda client, i: self._answer(client, source, i, resize), waiting)
        with contextlib.closing(outcomes):
            for i, task in outcomes:
                match task.exception():
                    case None:
                        yield from doubts.settle(i, task.result())
                    case UnreadableImage() as error:
                        yield i, error
                    case error:
                        fault = fault or error
                if fault or doubts.fault():
                    waiting.clear()
        if fault:
            raise fault
        if rejection := doubts.fault(at_end=not done):
            raise UserError(f"{self.base} does not answer: {rejection}; check --api_base and --api_model; {RESUME}")
        yield from doubts.rows

    def client(self) -> "AsyncOpenAI":
        """The official client, which follows no redirect."""
        import openai

        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the environment variable {KEY} holds characters that are invalid in a key; set it again")
        if self.base == OPENAI and not key:
            raise UserError(f"{OPENAI} asks for a key: set the environment variable {KEY}, or use another server")
        options = {"timeout": openai.Timeout(self.timeout, connect=min(self.timeout, 5.0)), "follow_redirects": False}
        with failure(f"no connection to {self.base} can be set up"):  # by the variables of a proxy or of certificates
            http = openai.DefaultAsyncHttpxClient(**options, trust_env=not is_here(self.base))
            return openai.AsyncOpenAI(api_key=key or "none", base_url=self.base, http_client=http, max_retries=RETRIES)

    async def _answer(self, client: "AsyncOpenAI", source: PromptSource, i: int, resize: Callable) -> Texts:
        """The texts of row `i`'s prompts. Raises `UnreadableImage` for this row, `UserError` for a server's fault."""
        try:
            chats = await asyncio.to_thread(lambda: to_chats(source[i], resize, self.image_format))
        except (UnreadableImage, UserError):
            raise
        except Exception as error:  # decoders and encoders raise many kinds, MemoryError among them
            raise UnreadableImage(f"image cannot be sent ({type(error).__name__}: {one_line(error)})") from error
        return [await self._ask(client, messages) for messages in chats]

    async def _ask(self, client: "AsyncOpenAI", messages: list[dict[str, Any]]) -> str | Rejected | CutOff:
        """The text or the error of one prompt. Raises `UserError` for a server's fault."""
        options = {"temperature": 0, "max_completion_tokens": self.max_new_tokens}
        try:
            reply = await client.chat.completions.create(model=self.model, messages=messages, **options)
        except Exception as error:
            return "" if getattr(error, "code", None) in REFUSALS else self._rejection(error)
        try:
            choice = reply.choices[0]
            text = text_of(choice.message.content)
        except (AttributeError, TypeError, IndexError):  # the client does not check what it parses
            return Rejected(f"the reply is not a chat completion: {quote(str(reply))}")
        self.replied.add(redact(str(reply.model)))
        if choice.finish_reason == "length" and not without_reasoning(text).strip():
            return CutOff("the reply was cut off before it held an answer; raise --max_new_tokens")
        return text

    def _rejection(self, error: Exception) -> Rejected:
        """Why a request has no reply after all retries. Raises `UserError` for a server's fault."""
        import httpx2  # what the official client sends with
        import openai

        cause = error.__cause__
        if isinstance(error, openai.APIStatusError):
            said = error.body.get("message") if isinstance(error.body, dict) else None
            said = f"error {error.status_code}, {quote(said if isinstance(said, str) else error.response.text)}"
            remedy = REMEDIES.get(error.status_code)
            if 300 <= error.status_code < 400:
                remedy = "redirects are not followed; correct --api_base"
            if remedy:
                raise UserError(f"{self.base} sends {said}; {remedy}") from None  # the error may hold the key
            return Rejected(f"the server sends {said}")
        if isinstance(cause, httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout):
            return Rejected(f"no reply within {self.timeout:g} s in {RETRIES + 1} attempts; raise --api_timeout")
        broken = isinstance(cause, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError)
        if broken or not isinstance(error, openai.APIConnectionError):
            return Rejected(f"no reply that can be read ({quote(one_line(cause or error))})")
        seen = f"cannot be reached ({type(cause).__name__})"
        raise UserError(f"{self.base} {seen}; check --api_base; {RESUME}") from error


def is_here(base: str) -> bool:
    """Whether a server is on this machine: it is asked without the proxy and certificates of the environment."""
    url = urlsplit(base)
    return url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")


@dataclass
class Doubts:
    """Rows with a rejected prompt, kept back until it shows whether the fault is theirs or the server's.

    It is theirs once another row's prompt in the same place (without the crop, or with it) gets a text.
    """

    rows: list[tuple[int, Texts]] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)  # by place, since the last text there
    answered: set[int] = field(default_factory=set)  # places that have had a text

    def settle(self, i: int, texts: Texts) -> list[tuple[int, Texts]]:
        """Add the texts of row `i`; return the rows whose errors have been settled."""
        for place, text in enumerate(texts):
            self.failures[place] = self.failures[place] + 1 if isinstance(text, Rejected) else 0
        self.answered |= {place for place in range(len(texts)) if not self.failures[place]}
        rows, self.rows, settled = [*self.rows, (i, texts)], [], []
        for row in rows:
            doubtful = any(isinstance(text, Rejected) and self.failures[place] for place, text in enumerate(row[1]))
            (self.rows if doubtful else settled).append(row)
        return settled

    def fault(self, at_end: bool = False) -> Rejected | None:
        """A failure to blame on the server: one of too many in a row or, at the end, of all prompts in a place."""
        for place, times in self.failures.items():
            if times > MOST_REJECTED or (at_end and place not in self.answered):
                return next(texts[place] for _, texts in self.rows if isinstance(texts[place], Rejected))
        return None


def _in_parallel(server: Server, answer: Callable, waiting: deque[int]) -> Iterator[tuple[int, asyncio.Task]]:
    """Yield (row index, the task of `answer` for it) as they end. None begins after `waiting` has been emptied."""
    running: dict[asyncio.Task, int] = {}
    client = server.client()
    with asyncio.Runner() as runner:  # at its end all tasks are cancelled
        try:
            while waiting or running:
                while waiting and len(running) < server.concurrency:
                    i = waiting.popleft()
                    running[runner.get_loop().create_task(answer(client, i))] = i
                finished, _ = runner.run(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in finished:
                    yield running.pop(task), task
        finally:
            runner.run(client.close())


def text_of(content: str | list | None) -> str:
    """The text of a message: its text parts joined, without thoughts and refusals; the key and half characters gone.

    >>> text_of([{"type": "thinking", "text": "hm"}, {"type": "text", "text": "Coke"}])
    'Coke'
    """
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part or {} for part in content]
        content = "".join(part.get("text") or "" for part in parts if part.get("type") == "text")
    return redact(re.sub("[\ud800-\udfff]", "\ufffd", content or ""))


def quote(text: str) -> str:
    """The first 200 characters of what a server said, on one line and without the key."""
    return repr(redact(text)[:200])


def fit_longest_edge(image: Image.Image, longest_edge: int | None) -> Image.Image:
    """`image` with a longer side of `longest_edge` pixels, or at its own size if None. Strips are widened."""
    size = widen_strip(image.size)
    if longest_edge is not None:
        scale = longest_edge / max(size)
        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def to_chats(prompts: list[Prompt], resize: Callable, image_format: str) -> list[list[dict[str, Any]]]:
    """The messages of each prompt as the API takes them, images as data URLs in place of their placeholders."""
    distinct = {id(image): image for _, images in prompts for image in images}
    urls = {key: data_url(resize(image), image_format) for key, image in distinct.items()}
    chats = []
    for messages, images in prompts:
        shown = ({"type": "image_url", "image_url": {"url": urls[id(image)]}} for image in images)
        contents = [[next(shown) if part["type"] == "image" else part for part in m["content"]] for m in messages]
        chats.append([m | {"content": content} for m, content in zip(messages, contents, strict=True)])
    return chats


def data_url(image: Image.Image, image_format: str) -> str:
    """The image, RGB, as `data:image/png;base64,...`."""
    file = io.BytesIO()
    image.save(file, image_format, **SAVE_OPTIONS[image_format])
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
