"""Rollouts with a static cache and padded prompts: the same completions in few shapes, as compiled decoding needs."""

from collections import Counter

import pytest
from datasets import load_from_disk
from trainers import make_grpo_trainer
from transformers import set_seed
from trl import GRPOTrainer


def completions_of_steps(trainer, monkeypatch):
    """The token ids of three steps' rollouts, and the shapes of what the text model decoded: (B, new, cache length)."""
    write, ids, shapes = GRPOTrainer._generate_single_turn, [], Counter()

    def note_ids(*args):
        result = write(*args)
        ids.append(result[0])
        return result

    def note_shape(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is not None and kwargs["inputs_embeds"].shape[1] == 1:
            shapes.update([(*kwargs["inputs_embeds"].shape[:2], cache.layers[0].keys.shape[2])])

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", note_ids)
    model = trainer.model.get_base_model().model.text_model
    model.register_forward_pre_hook(note_shape, with_kwargs=True)
    set_seed(0)
    trainer.train()
    monkeypatch.undo()
    return ids, shapes


@pytest.mark.slow
def test_a_static_cache_gives_the_same_completions_in_few_shapes(
    sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch
):
    """Questions of several lengths: the dynamic cache grows through other lengths in every step."""
    rows = load_from_disk(str(tiny_world))["train"]
    questions = ["Which word is it? " * (1 + i % 4) for i in range(len(rows))]
    rows.remove_columns("question").add_column("question", questions).save_to_disk(str(tmp_path / "rows"))
    options = {"max_steps": 3, "save_strategy": "no", "max_completion_length": 6, "shuffle_dataset": False}
    static = {"cache_implementation": "static", "pad_to_multiple_of": 64}
    runs = [
        completions_of_steps(
            make_grpo_trainer(tmp_path, sft_adapter, tmp_path / "rows", tiny_smolvlm, **options, **more), monkeypatch
        )
        for more in ({}, static)
    ]
    (dynamic_ids, dynamic_shapes), (static_ids, static_shapes) = runs
    assert static_ids == dynamic_ids
    assert len(dynamic_shapes) > 5
    assert {shape[2] for shape in static_shapes} == {64 + 5, 128 + 5}  # prompts of up to 64 and up to 128 tokens
    assert len(static_shapes) == 2
