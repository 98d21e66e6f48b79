"""The rewards, as TRL's `GRPOTrainer` calls them: one value per completion, data set columns as keyword arguments.

The reward is validity plus what the frozen reward VLM makes of `[full image, crop]`: the log-likelihood of
the reference answer, or the accuracy of the answer that it generates.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from cropvlm import boxes
from cropvlm.crops import crop_or_corner
from cropvlm.errors import UserError
from cropvlm.generation import generate_texts
from cropvlm.likelihood import answer_log_likelihood
from cropvlm.metrics import anls, most_common_answer, vqa_accuracy
from cropvlm.models.any_family import shares_encodings
from cropvlm.models.batches import Batches, BatchTooLarge
from cropvlm.prompts import answerer_messages, clean_answer

# A completion as TRL hands it over: plain text, or one assistant message.
Completion = str | list[dict[str, Any]]

MAX_ANSWER_TOKENS = 32


def validity_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Return 1 for each completion that is a valid box, 0.25 for `Not needed.`, 0 for any other text."""
    return [boxes.validity(completion_text(completion)) for completion in completions]


class _AnswererReward:
    """Score of `[full image, crop]` by the frozen reward VLM, each distinct crop scored once.

    model, processor: as `cropvlm.modeling` loads them; `UserError` for a family whose answers cannot be scored.
    batch_size: completions in one forward pass; None takes all of a step. Halved for good where memory is too small.
    may_decide: a text that begins as `Not needed.` is scored by the full image alone, not as a broken box.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int | None = None, may_decide: bool = False):
        if not shares_encodings(model, processor):
            raise UserError(f"a {type(model).__name__} as reward VLM; expected a SmolVLM, LLaVA-1.5 or Qwen2.5-VL")
        self.model, self.processor, self.batches = model, processor, Batches(batch_size)
        self.may_decide = may_decide

    def __call__(
        self,
        completions: Sequence[Completion],
        image: Sequence[Image.Image],
        question: Sequence[str],
        answers: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[float]:
        """Return one score per completion; a broken box gets the corner's.

        image: the full-resolution image of each completion, decoded; a group shares one object.
        Raises `BatchTooLarge` where memory does not hold a single completion.
        """
        crops, order = distinct_crops(completions, image, question, answers, self.may_decide)
        rows = [((image[i], crop) if crop else (image[i],), question[i], answers[i]) for i, crop in crops]
        scores = []
        for score in self.batches.run(lambda part: self.score(*zip(*part, strict=True)), rows):
            if isinstance(score, BatchTooLarge):
                raise BatchTooLarge("out of memory in the reward with one completion at a time")
            scores.append(score)
        return [scores[n] for n in order]

    def score(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[float]:
        """Return one score per row, in one batch. images: full image and crop of each row."""
        raise NotImplementedError


class AnswerLikelihoodReward(_AnswererReward):
    """Log-likelihood (at most 0) of the most frequent reference answer (the better reward, by notes on the paper)."""

    __name__ = "answer_likelihood_reward"  # what TRL logs it as

    def score(self, images: Sequence, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        references = list(map(most_common_answer, answers))
        scores = answer_log_likelihood(self.model, self.processor, images, questions, references)
        if not scores.isfinite().all():  # TRL would leave it out of the sum, and a label compare it with a threshold
            raise UserError(f"{self.model.name_or_path}: log-likelihood not finite; are its weights damaged?")
        return scores.tolist()


class AnswerAccuracyReward(_AnswererReward):
    """Accuracy (0..1) of the reward VLM's greedy answer.

    Rows with 10 references are scored by VQA accuracy, others by ANLS (threshold 0.5), each row by its own. Both are
    told from the row alone, so that a batch may mix data sets.
    """

    __name__ = "answer_accuracy_reward"

    def score(self, images: Sequence, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        messages = [answerer_messages(q, len(shown)) for q, shown in zip(questions, images, strict=True)]
        options = {"max_new_tokens": MAX_ANSWER_TOKENS, "batch_size": len(questions)}
        texts = generate_texts(self.model, self.processor, messages, images, **options)
        return [answer_accuracy(clean_answer(text), own) for text, own in zip(texts, answers, strict=True)]


def answer_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return VQA accuracy against 10 references, ANLS against any other number."""
    return vqa_accuracy(prediction, references) if len(references) == 10 else anls(prediction, references)


def distinct_crops(
    completions: Sequence[Completion],
    images: Sequence[Image.Image],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    may_decide: bool = False,
) -> tuple[list[tuple[int, Image.Image | None]], list[int]]:
    """Cut every distinct crop once: a prompt's equal boxes, and all its broken ones, are scored as one.

    Returns (row, crop) of each distinct crop, `row` being the first completion that asks for it; and for every
    completion the position of its crop in that list. With `may_decide` the crop of a text that begins as
    `Not needed.` is None.
    """
    positions: dict[tuple, int] = {}
    crops: list[tuple[int, Image.Image]] = []
    order = []
    rows = zip(completions, images, questions, answers, strict=True)
    for i, (completion, image, question, references) in enumerate(rows):
        text = completion_text(completion)
        not_needed = may_decide and boxes.begins_not_needed(text)
        key = (id(image), question, tuple(references), boxes.parse_bbox(text), not_needed)
        if key not in positions:
            positions[key] = len(crops)
            crops.append((i, None if not_needed else crop_or_corner(image, text)))
        order.append(positions[key])
    return crops, order


def completion_text(completion: Completion) -> str:
    """Return the text of a completion."""
    if isinstance(completion, str):
        return completion
    content = completion[0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
