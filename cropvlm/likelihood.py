"""Log-likelihood of the reference answer under the reward VLM: log p of its whole turn, from one forward pass."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import ProcessorMixin

from cropvlm.encoding import chat_text, model_inputs, prepare
from cropvlm.models.readers import image_reader
from cropvlm.models.tokens import stop_token_ids
from cropvlm.prompts import Messages, answer_completion, answerer_prompt, drop_token


@torch.no_grad()
def answer_log_likelihood(
    model,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    answers: Sequence[str],
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return log p of each answer's whole turn given images and question, (B,) float32, on the CPU.

    The turn is ` {answer.capitalize()}.` and the token that ends it; log p is the sum over its tokens, from one
    forward pass. Prompt and turn are tokenized apart, so that no character of an answer can be taken for the prompt's
    end. Logits are upcast to float32 before the log-softmax.

    Args:
        images: PIL images of each row, (B) lists; the same object in several rows is encoded once a batch.
        questions, answers: as in the data set, (B); an answer may be empty.
        batch_size: rows in one forward pass; None takes all.
    """
    rows = list(zip(images, questions, answers, strict=True))
    size = batch_size or max(1, len(rows))
    parts = [_log_likelihood(model, processor, rows[i : i + size]) for i in range(0, len(rows), size)]
    return torch.cat(parts) if parts else torch.zeros(0)


def _log_likelihood(model, processor, rows: list[tuple]) -> torch.Tensor:
    prompts = [answerer_prompt(question, images) for images, question, _ in rows]
    prepared = prepare(processor, prompts, reader=image_reader(processor, model.device, model.dtype))
    turns = _turn_ids(model, processor, prompts[0][0], [answer for *_, answer in rows])
    prepared.input_ids = [ids + turn for ids, turn in zip(prepared.input_ids, turns, strict=True)]
    inputs = model_inputs(model, prepared, processor.tokenizer.pad_token_id)

    # Padding is on the left, so every turn ends where the batch ends.
    longest = max(map(len, turns))
    logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
    logits = logits[:, :-1].float()  # (B, T, V); the last logit has no target
    targets = inputs["input_ids"][:, -longest:]  # (B, T)
    token_log_probs = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (B, T)
    lengths = torch.tensor([len(turn) for turn in turns])
    before_turn = torch.arange(longest) < longest - lengths.unsqueeze(1)  # (B, T)
    return token_log_probs.masked_fill(before_turn.to(model.device, non_blocking=True), 0).sum(1).cpu()


def _turn_ids(model, processor, messages: Messages, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer's turn, in which an image placeholder would stand for no image.

    A template that leaves a space or line break open gets no second one. messages: of one of the rows' prompts.
    """
    space = "" if chat_text(processor, messages)[-1].isspace() else " "
    texts = [space + drop_token(answer_completion(answer), processor.image_token) for answer in answers]
    stop, eos = stop_token_ids(model, processor), processor.tokenizer.eos_token_id
    end = eos if eos in stop else stop[0]  # the one token that the model is trained to end its turn with
    return [[*turn, end] for turn in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]
