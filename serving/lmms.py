"""A plugin for lmms-eval: any answerer, with or without a cropper, on any task with images.

    lmms-eval --model cropvlm --tasks textvqa_val,vstar_bench --batch_size 32 --model_args \\
        answerer=HuggingFaceTB/SmolVLM-256M-Instruct,cropper=models/grpo_512,longest_edge=512

Decoding is greedy; of a task's `generation_kwargs`, `max_new_tokens` and `until` count. lmms-eval does not find a task
with the name of a folder in the current one: run it elsewhere.
"""

import itertools
import logging
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from cropvlm import Cropper
from cropvlm.crops import full_and_crop
from cropvlm.data.images import open_image
from cropvlm.errors import UserError
from cropvlm.generation import generate_texts
from cropvlm.modeling import load_model
from cropvlm.prompts import clean_answer
from cropvlm.runs.text_models import LONGEST_EDGE, answerer_processor

logger = logging.getLogger(__name__)

QUESTIONS = ("doc", "first_line", "whole")


def manifests() -> list[ModelManifest]:
    """The entry point: the models that this plugin adds to lmms-eval."""
    return [ModelManifest(model_id="cropvlm", chat_class_path=f"{__name__}.CropVLM")]


class CropVLM(lmms):
    """An answerer that sees the full image and, with a cropper, the crop after it."""

    is_simple = False  # it takes chat messages

    def __init__(
        self,
        answerer: str,
        cropper: str | None = None,
        longest_edge: int | None = None,
        cropper_longest_edge: int | None = None,
        base_model_path: str | None = None,
        question_from: str | None = None,
        batch_size: int | str = "auto",
        device: str | None = None,
        **others: Any,
    ):
        """Load the models.

        cropper: None for no crop. base_model_path: the base of its adapter, if it has moved. longest_edge: pixels at
        which the answerer sees images, and the cropper unless `cropper_longest_edge` is given. question_from: the
        cropper is asked the document's `question` ("doc"), the first line of the prompt ("first_line") or all of it
        ("whole"); by default the document's if it has one, else the first line. batch_size: requests whose images are
        open at a time; lmms-eval always passes that of its flag `--batch_size`.
        """
        super().__init__()
        longest_edge, cropper_edge, cropper, base, question_from = map(
            _value, (longest_edge, cropper_longest_edge, cropper, base_model_path, question_from)
        )
        if question_from not in (None, *QUESTIONS):
            raise UserError(f"question_from={question_from}: expected one of {', '.join(QUESTIONS)}")
        if others := {name: value for name, value in others.items() if name != "max_batch_size"}:
            raise UserError(f"unknown model_args: {', '.join(others)}")
        self.question_from = question_from
        self.batch_size_per_gpu = 32 if batch_size == "auto" else int(batch_size)
        self.model = load_model(answerer, device=_value(device))
        self.processor = answerer_processor(answerer, longest_edge)
        edge = cropper_edge or longest_edge or LONGEST_EDGE
        self.cropper = Cropper(cropper, base, edge, _value(device)) if cropper else None
        self._told = set()

    def generate_until(self, requests: list) -> list[str]:
        """The answers. Arguments of a request: ctx, doc_to_messages, generation_kwargs, doc_id, task, split."""
        answers = []
        progress = tqdm(total=len(requests), unit="row", disable=self.rank > 0)
        for limit, group in itertools.groupby(requests, lambda r: int(r.args[2].get("max_new_tokens") or 64)):
            while part := list(itertools.islice(group, self.batch_size_per_gpu)):
                answers += self._answer(part, limit)
                progress.update(len(part))
        return answers

    def _answer(self, requests: list, max_new_tokens: int) -> list[str]:
        docs = [self.task_dict[r.args[4]][r.args[5]][r.args[3]] for r in requests]
        chats = [ChatMessages(messages=r.args[1](doc)) for r, doc in zip(requests, docs, strict=True)]
        for chat in chats:
            self._check(chat)
        images = [[open_image(image) for image in chat.extract_media()[0]] for chat in chats]
        if self.cropper:
            questions = [self._question(doc, chat) for doc, chat in zip(docs, chats, strict=True)]
            some = [i for i, shown in enumerate(images) if shown]
            texts = self.cropper.texts([images[i][0] for i in some], [questions[i] for i in some])
            for i, text in zip(some, texts, strict=True):
                images[i][:1] = full_and_crop(images[i][0], text)
        messages = [_messages(chat, len(shown)) for chat, shown in zip(chats, images, strict=True)]
        texts = generate_texts(self.model, self.processor, messages, images, max_new_tokens=max_new_tokens)
        return [_until(clean_answer(text), r.args[2].get("until")) for text, r in zip(texts, requests, strict=True)]

    def _check(self, chat: ChatMessages) -> None:
        images, videos, audios = chat.extract_media()
        if videos or audios:
            raise UserError("videos and audio cannot be cropped; choose tasks with images")
        if self.cropper and len(images) > 1:
            self._say("a document has several images: the first is cropped")

    def _question(self, doc: dict, chat: ChatMessages) -> str:
        """The cropper's question."""
        way = self.question_from or ("doc" if isinstance(doc.get("question"), str) else "first_line")
        self._say(f"the cropper's question: {way}")
        if way == "doc":
            return doc["question"]
        text = "\n".join(part.text for part in chat.messages[-1].content if part.type == "text").strip()
        return text if way == "whole" else text.split("\n", 1)[0]

    def _say(self, words: str) -> None:
        """Log once."""
        if words not in self._told:
            self._told.add(words)
            logger.warning("%s", words)

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError("only tasks that generate are supported")

    def generate_until_multi_round(self, requests: list) -> list:
        raise NotImplementedError("only tasks of one round are supported")


def _messages(chat: ChatMessages, images: int) -> list[dict]:
    """The chat with placeholders for its images; what there is beyond them, the crop, follows the first one."""
    messages, crops = [], images - len(chat.extract_media()[0])
    for message in chat.messages:
        content = []
        for part in message.content:
            content.append({"type": "text", "text": part.text} if part.type == "text" else {"type": "image"})
            if part.type == "image":
                content += [{"type": "image"}] * crops
                crops = 0
        messages.append({"role": message.role, "content": content})
    return messages


def _until(text: str, stops: str | list[str] | None) -> str:
    """The text before the first of a task's stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop, 1)[0] if stop else text
    return text


def _value(value: Any) -> Any:
    """A value of `--model_args`, where None is a string."""
    return None if value in (None, "None", "none", "") else value
