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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from cropvlm.crops import widen_strip
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.prompts import Prompt, PromptSource
from cropvlm.runs.replies import CutOff, NoAnswers, Rejected
from cropvlm.runs.secret import KEY

if TYPE_CHECKING:
    from cropvlm.runs.client import ChatClient

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

    def answer_rows(
        self, source: PromptSource, resize: Callable[[Image.Image], Image.Image], done: Collection[int] = ()
    ) -> Iterator[tuple[int, Texts | UnreadableImage]]:
        """Yield (row index, texts of its prompts) as the server answers, as `generate_rows` does with a local model.

        A prompt without an answer has `Rejected` or `CutOff` in the place of its text, a row without prompts
        `UnreadableImage` in the place of its texts.

        source: prompts by row; an image shared by several is encoded once. resize: what is done to an image before it
        is sent. done: rows to leave out.

        Raises `UserError` where the key is missing or refused, or a limit of the account is reached, after the answers
        that were under way; `NoAnswers` where the server cannot be reached, does not know the model, or answers no
        prompt.
        """
        from cropvlm.runs.client import RESUME, ChatClient  # slow, and nothing else needs it

        key = api_key()
        if self.base == OPENAI and not key:
            raise UserError(f"{OPENAI} asks for a key: set the environment variable {KEY}, or use another server")
        client = ChatClient(self.base, key, self.model, self.max_new_tokens, self.timeout)
        waiting = deque(sorted(set(range(len(source))) - set(done)))
        doubts, fault = Doubts(), None
        outcomes = _in_parallel(client, lambda i: _answer(client, self, source, i, resize), waiting, self.concurrency)
        with contextlib.closing(outcomes):
            for i, outcome in outcomes:
                if isinstance(outcome, UserError):
                    fault = fault or outcome
                elif isinstance(outcome, UnreadableImage):
                    yield i, outcome
                else:
                    yield from doubts.settle(i, outcome)
                if fault or doubts.fault():
                    waiting.clear()
        if fault:
            raise fault
        if failure := doubts.fault(at_end=not done):
            raise NoAnswers(f"{self.base} does not answer: {failure}; {RESUME}")
        yield from doubts.rows


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

    def fault(self, at_end: bool = False) -> Rejected | None:
        """A failure that is the server's: of more in a row than rows can be blamed for; at the end, of all there."""
        for place, times in self.failures.items():
            if times > MOST_REJECTED or (at_end and place not in self.answered):
                return next(texts[place] for _, texts in self.rows if isinstance(texts[place], Rejected))
        return None

    def _in_doubt(self, texts: Texts) -> bool:
        return any(isinstance(text, Rejected) and self.failures[place] for place, text in enumerate(texts))


def _in_parallel(
    client: "ChatClient", answer: Callable, waiting: deque[int], concurrency: int
) -> Iterator[tuple[int, Any]]:
    """Yield (row index, what `answer` returns for it) as it comes. None begins after `waiting` has been emptied."""
    running: dict[asyncio.Task, int] = {}
    with asyncio.Runner() as runner:  # at its end all tasks are cancelled
        try:
            while waiting or running:
                while waiting and len(running) < concurrency:
                    i = waiting.popleft()
                    running[runner.get_loop().create_task(answer(i))] = i
                finished, _ = runner.run(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in finished:
                    yield running.pop(task), task.result()
        finally:
            runner.run(client.close())


async def _answer(
    client: "ChatClient", server: Server, source: PromptSource, i: int, resize: Callable
) -> Texts | UnreadableImage | UserError:
    """The texts of row `i`'s prompts, or what keeps it, or the whole run, from getting any."""
    try:
        chats = await asyncio.to_thread(lambda: to_chats(source[i], resize, server.image_format))
    except (UnreadableImage, UserError) as error:
        return error
    except Exception as error:  # whatever a decoder or encoder may raise, MemoryError included
        logger.debug("row %d cannot be sent", i, exc_info=True)
        return UnreadableImage(f"image cannot be sent ({type(error).__name__}: {str(error)[:100]})")
    texts: Texts = []
    for messages in chats:
        try:
            texts.append(await client.ask(messages))
        except (Rejected, CutOff) as error:
            texts.append(error)
        except UserError as error:
            return error
    return texts


def to_chats(prompts: list[Prompt], resize: Callable, image_format: str) -> list[list[dict[str, Any]]]:
    """The messages of each prompt as the API takes them, images as data URLs in the place of their placeholders."""
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
