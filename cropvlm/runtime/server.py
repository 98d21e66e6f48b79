"""A model behind an OpenAI-compatible server in place of a local one: a proprietary API, or vLLM and SGLang for scale.

Texts are asked for at temperature 0. A server may still add what the checkpoint's generation config says, as vLLM does
with Qwen2.5-VL's repetition penalty unless it is started with `--generation-config vllm`. What it refuses to answer is
an empty answer.
"""

import asyncio
import base64
import contextlib
import io
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from cropvlm.cli import UserError
from cropvlm.crops import UnreadableImage, widen_strip
from cropvlm.prompts import Prompt, PromptSource
from cropvlm.runtime.replies import CutOff, NoAnswers, Rejected
from cropvlm.secret import KEY

if TYPE_CHECKING:
    from cropvlm.runtime.client import ChatClient

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
SAVE_OPTIONS = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}  # coarser JPEGs blur small text
MOST_REJECTED = 10  # prompts in a row that may fail for the rows' own fault: more, and it is the server's

Texts = list[str | Rejected | CutOff]  # one per prompt of a row: its text or an error


@dataclass(frozen=True)
class Server:
    """A server, the model there, and how it is asked."""

    base: str
    model: str
    max_new_tokens: int
    image_format: str = "png"
    concurrency: int = 8  # requests at a time
    timeout: float = 120.0  # seconds for a request and its complete reply


def api_settings(server: Server) -> dict[str, Any]:
    """Settings that determine a text, for journals and meta files. Not the address: it may change during a run."""
    return {"api_model": server.model, "image_format": server.image_format}


def api_key() -> str:
    """The key in the environment; empty if unset. Raises `UserError` for characters that are invalid in a key."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {KEY} holds characters that are invalid in a key; set it again")
    return key


def fit_longest_edge(image: Image.Image, longest_edge: int | None) -> Image.Image:
    """`image` scaled to a longer side of that many pixels, or at its own size if None. Strips are widened."""
    size = widen_strip(image.size)
    if longest_edge is not None:
        scale = longest_edge / max(size)
        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def answer_rows(
    server: Server, source: PromptSource, resize: Callable[[Image.Image], Image.Image], done: Collection[int] = ()
) -> Iterator[tuple[int, Texts | UnreadableImage]]:
    """Yield (row index, texts of its prompts) as the server answers, as `generate_rows` does with a local model.

    A prompt without an answer has `Rejected` or `CutOff` in the place of its text, a row without prompts
    `UnreadableImage` in the place of its texts.

    Args:
        server: at most `server.concurrency` of its requests are under way at a time.
        source: prompts by row; an image shared by several is encoded once.
        resize: what is done to an image before it is sent.
        done: rows to leave out.

    Raises:
        UserError: the key is missing or refused, or a limit of the account is reached. Answers that were under way
            are yielded before.
        NoAnswers: a `UserError`; the server cannot be reached, does not know the model, or answers no prompt.
    """
    from cropvlm.runtime.client import RESUME, ChatClient  # slow, and nothing else needs it

    key = api_key()
    if server.base == OPENAI and not key:
        raise UserError(f"{OPENAI} asks for a key: set the environment variable {KEY}, or use another server")
    client = ChatClient(server.base, key, server.model, server.max_new_tokens, server.timeout)
    waiting = deque(sorted(set(range(len(source))) - set(done)))
    doubts, fault = Doubts(), None
    outcomes = _in_parallel(client, lambda i: _answer(client, server, source, i, resize), waiting, server.concurrency)
    with contextlib.closing(outcomes):
        for i, task in outcomes:
            error = task.exception()
            if error is None:
                yield from doubts.settle(i, task.result())
            elif isinstance(error, UnreadableImage):
                yield i, error
            elif isinstance(error, UserError):
                fault = fault or error
            else:
                raise error
            if fault or doubts.lasting_failure():
                waiting.clear()
    if fault:
        raise fault
    if failure := doubts.lasting_failure() or (None if done else doubts.only_failure()):
        raise NoAnswers(f"{server.base} does not answer: {failure}; {RESUME}")
    yield from doubts.rows


@dataclass
class Doubts:
    """Rows with a rejected prompt, kept back until it shows whether the fault is theirs or the server's.

    It is theirs once another row's prompt in the same place (without the crop, or with it) gets a text.
    """

    rows: list[tuple[int, Texts]] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)  # by place, since the last text there
    answered: set[int] = field(default_factory=set)  # places that have had a text

    def settle(self, i: int, texts: Texts) -> list[tuple[int, Texts]]:
        """Take in the texts of row `i`; return the rows that are in doubt no more."""
        for place, text in enumerate(texts):
            self.failures[place] = self.failures[place] + 1 if isinstance(text, Rejected) else 0
        self.answered |= {place for place in range(len(texts)) if not self.failures[place]}
        rows = [*self.rows, (i, texts)]
        self.rows = [row for row in rows if self._in_doubt(row[1])]
        return [row for row in rows if not self._in_doubt(row[1])]

    def lasting_failure(self) -> Rejected | None:
        """The first of more failures in a row than rows can be blamed for."""
        return next((self._first(place) for place, times in self.failures.items() if times > MOST_REJECTED), None)

    def only_failure(self) -> Rejected | None:
        """The first failure in a place that has never had a text."""
        return next((self._first(place) for place in self.failures if place not in self.answered), None)

    def _in_doubt(self, texts: Texts) -> bool:
        return any(isinstance(text, Rejected) and self.failures[place] for place, text in enumerate(texts))

    def _first(self, place: int) -> Rejected:
        return next(texts[place] for _, texts in self.rows if isinstance(texts[place], Rejected))


def _in_parallel(
    client: "ChatClient", answer: Callable, waiting: deque[int], concurrency: int
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


async def _stop(client: "ChatClient", tasks: Iterable[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def _answer(client: "ChatClient", server: Server, source: PromptSource, i: int, resize: Callable) -> Texts:
    """The texts of row `i`'s prompts. Raises `UnreadableImage` where its images cannot be sent."""
    try:
        chats = await asyncio.to_thread(lambda: to_chats(source[i], resize, server.image_format))
    except (UnreadableImage, UserError):
        raise
    except Exception as error:  # whatever a decoder or encoder may raise, MemoryError included
        logger.debug("row %d cannot be sent", i, exc_info=True)
        raise UnreadableImage(f"image cannot be sent ({type(error).__name__}: {str(error)[:100]})") from error
    texts: Texts = []
    for messages in chats:
        try:
            texts.append(await client.ask(messages))
        except (Rejected, CutOff) as error:
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
