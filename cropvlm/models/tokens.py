"""Tokens that end a turn, which families define in different places."""

from typing import Any

END_OF_UTTERANCE = "<end_of_utterance>"


def stop_token_ids(model: Any, processor: Any) -> list[int]:
    """Return the ids that end a turn: `<end_of_utterance>` if the tokenizer has it, else those of the model.

    Idefics3 pads with `<|im_end|>`, which its text configuration wrongly lists as the end of sequence too.
    """
    tokenizer = processor.tokenizer
    if END_OF_UTTERANCE in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)]
    return sorted({*named_stop_ids(model), tokenizer.eos_token_id} - {None})


def named_stop_ids(model: Any) -> list[int]:
    """Return the ids at which the model's own generation config stops."""
    named = model.generation_config.eos_token_id
    return [] if named is None else [named] if isinstance(named, int) else list(named)
