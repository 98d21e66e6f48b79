"""Batched greedy generation over many rows: images opened and preprocessed ahead, rows of like size together.

The texts of a row do not depend on the batch it was in (in fp32 on the CPU; in bf16 up to rounding), and come back
with the row's index, so that the caller can restore the order of the data set.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, GenerationConfig

from cropvlm.encoding import Prepared, merge, model_inputs, prepare
from cropvlm.models.any_family import (
    SHARED,
    check_takes_images,
    generate_alone,
    placeholders,
    prepare_alone,
    shares_encodings,
)
from cropvlm.models.batches import Batches, auto_batch_size, plan_batches, row_costs
from cropvlm.models.need import BoxText, NeedRecorder
from cropvlm.models.preparation import FailedRow, check_length, prepared_batches
from cropvlm.models.readers import image_reader
from cropvlm.models.tokens import named_stop_ids, stop_token_ids
from cropvlm.prompts import Prompt, PromptSource, answerer_prompt, text_of, without_placeholders

logger = logging.getLogger(__name__)

# (row index, a text or an error per prompt; or one error for the whole row), in order of completion
Outcomes = Iterable[tuple[int, list[str | ValueError] | ValueError]]


def generate_rows(
    model: Any,
    processor: Any,
    source: PromptSource,
    *,
    max_new_tokens: int,
    batch_size: int | str = "auto",
    num_workers: int = 0,
    done: Collection[int] = (),
    min_new_tokens: int | None = None,
    with_need: bool = False,
) -> Iterator[tuple[int, list[str] | ValueError]]:
    """Yield (row index, texts of its prompts) as batches complete, or the error of a row that fails.

    A row fails alone where its image is unreadable (`UnreadableImage`), where it cannot be prepared (`FailedRow`), and
    where memory does not hold it even by itself (`BatchTooLarge`).

    Args:
        model, processor: as `cropvlm.modeling` loads them.
        source: prompts by row.
        max_new_tokens: of each text.
        batch_size: rows in a batch, or "auto": what memory should hold, halved on running out of it. Families that
            `cropvlm.encoding` does not know are asked prompt by prompt.
        num_workers: processes that open and preprocess images ahead; 0 does it in between.
        done: rows to leave out. Batches are cut as if they were there, and a batch of which some rows are missing
            is generated whole: a resumed run computes the same numbers as an undisturbed one.
        min_new_tokens: for benchmarks, which want texts of equal length.
        with_need: the texts are boxes with their need, each a `cropvlm.models.need.BoxText`.

    Raises `BatchTooLarge` where memory does not hold a batch that may not be halved, and `UserError` where the model
    cannot answer from as many images as a prompt shows.
    """
    config = greedy(model, processor, max_new_tokens, min_new_tokens)
    finished = set(done)
    if len(finished) == len(source):
        return
    if shares_encodings(model, processor):
        costs = row_costs(processor, source.image_sizes, len(source))
        size = auto_batch_size(model, processor, costs) if batch_size == "auto" else int(batch_size)
        plan = plan_batches(costs, size)
        make = functools.partial(prepare, processor, reader=image_reader(processor, model.device, model.dtype))
    else:
        check_takes_images(model, processor, source, lambda images: answerer_prompt("Which?", images), config)
        size, plan = 1, [[i] for i in range(len(source))]
        make = functools.partial(_prepare_cleaned, processor, dtype=model.dtype)
    # The plan knows nothing of `done`: sums, and in bf16 now and then a choice, depend on the rows that share a batch.
    # Rows 0..5 in twos, 0, 1, 2 done: [0, 1] is left out, of [2, 3] both are generated and 3 is yielded, then [4, 5].
    plan = [batch for batch in plan if not finished.issuperset(batch)]
    batches = Batches(size, fixed=batch_size != "auto")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prepare_row = functools.partial(_prepare_row, make, source, processor.tokenizer, context)  # goes to the workers
    for indices, items in prepared_batches(prepare_row, plan, num_workers, model.device):
        good = [item for item in items if not isinstance(item, ValueError)]
        # A generator: a batch that is halved yields its first rows before the rest is generated.
        texts = batches.run(lambda part: _generate_batch(model, processor, part, config, with_need), good)
        for i, item in zip(indices, items, strict=True):
            outcome = item if isinstance(item, ValueError) else next(texts)
            if isinstance(outcome, FailedRow):
                logger.debug("row %d", i, exc_info=outcome)
            if i not in finished:
                yield i, outcome


def _prepare_row(make: Callable, source: PromptSource, tokenizer: Any, context: int | None, i: int) -> Any:
    """Open and preprocess the images of row `i`. make: takes its prompts."""
    prompts = source[i]
    check_length(tokenizer, [text_of(messages) for messages, _ in prompts], context)
    return make(prompts)


def _prepare_cleaned(processor: Any, prompts: list[Prompt], dtype: torch.dtype) -> list[BatchFeature]:
    """Preprocess each prompt by itself, its question without the family's placeholders."""
    tokens = placeholders(processor)
    cleaned = [(without_placeholders(messages, *tokens), images) for messages, images in prompts]
    return prepare_alone(processor, cleaned, dtype)


def generate_texts(
    model: Any,
    processor: Any,
    messages_list: Sequence[list[dict]],
    images_list: Sequence[list[Any]],
    *,
    max_new_tokens: int,
    batch_size: int | str = "auto",
) -> list[str]:
    """Return the greedy continuation of each chat, (B), in input order. An image shared by neighbours is encoded once.

    messages_list: chat messages (B). images_list: PIL images for their placeholders (B lists).
    Raises the ValueError that `generate_rows` yields for a chat.
    """
    source = _InMemory([prompt] for prompt in zip(messages_list, images_list, strict=True))
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    outcomes = dict(generate_rows(model, processor, source, **options))
    for outcome in outcomes.values():
        if isinstance(outcome, ValueError):
            raise outcome
    return [outcomes[i][0] for i in range(len(source))]


def image_tokens(processor: Any, images: list[Image.Image]) -> int | None:
    """Return the number of image tokens in a prompt that shows `images`; None if the processor has no such token."""
    prompt = answerer_prompt("?", images)
    if type(processor).__name__ in {name for _, name in SHARED}:
        ids = prepare(processor, [prompt]).input_ids[0]
    else:
        ids = prepare_alone(processor, [prompt])[0]["input_ids"][0].tolist()
    token = getattr(processor, "image_token_id", None)
    return None if token is None else ids.count(token)


class _InMemory(list):
    """Prompts by row, as a `PromptSource`."""

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        return [image.size for _, images in self[i] for image in images]


def greedy(model: Any, processor: Any, max_new_tokens: int, min_new_tokens: int | None = None) -> GenerationConfig:
    """Return plain greedy search, whatever the checkpoint's own config adds (Qwen2.5-VL: a repetition penalty)."""
    if shares_encodings(model, processor):
        stop = stop_token_ids(model, processor)
    else:  # as the family's own `generate` stops
        stop = named_stop_ids(model) or [processor.tokenizer.eos_token_id]
    pad = processor.tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_id=stop,
        pad_token_id=stop[0] if pad is None else pad,
        repetition_penalty=1.0,
        # Named to keep transformers from taking the checkpoint's and warning that greedy search ignores them.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
    )


@torch.inference_mode()
def _generate_batch(
    model: Any,
    processor: Any,
    rows: list[Prepared] | list[list[BatchFeature]],
    config: GenerationConfig,
    with_need: bool = False,
) -> list[list[str]]:
    """Return the texts of each row of a batch."""
    if not isinstance(rows[0], Prepared):
        return [generate_alone(model, processor, row, config) for row in rows]
    inputs = model_inputs(model, merge(rows), config.pad_token_id)
    recorders = [NeedRecorder(processor.tokenizer)] if with_need else []
    output = model.generate(**inputs, generation_config=config, logits_processor=recorders)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]  # (prompts, up to max_new_tokens)
    decoded = processor.batch_decode(new_tokens, skip_special_tokens=True)
    texts = iter(map(BoxText, decoded, recorders[0].needs) if with_need else decoded)
    return [list(itertools.islice(texts, len(row.input_ids))) for row in rows]
