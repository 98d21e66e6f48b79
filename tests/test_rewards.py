"""The rewards as TRL calls them, on hand-worked completions and a tiny random reward VLM."""

import math

import pytest
import torch
from pictures import noise

from cropvlm import generation, likelihood, rewards
from cropvlm.crops import crop_bbox
from cropvlm.encoding import model_inputs
from cropvlm.errors import UserError
from cropvlm.modeling import answer_log_likelihood, load_model, load_processor
from cropvlm.models import batches

TEN = ["stop"] * 7 + ["halt"] * 2 + ["sign"]


def message(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def reward_vlm(tiny_smolvlm):
    return load_model(tiny_smolvlm, device="cpu"), load_processor(tiny_smolvlm)


def test_validity_of_texts_and_messages():
    texts = [" [10, 20, 30, 40].", "Not needed.", "[30, 20, 10, 40].", ""]  # of the third x2 < x1
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    for completions in (texts, list(map(message, texts)), parts):
        assert rewards.validity_reward(completions, question=["Which?"] * 4) == [1, 0.25, 0, 0]


def test_likelihood_is_that_of_full_image_and_crop(reward_vlm):
    """A group of four on one image, then another image; each value worked out alone."""
    first, second = noise(160, 120, 1), noise(160, 120, 2)
    texts = [" [10, 20, 60, 70].", "nonsense", " [10, 20, 60, 70].", "Not needed.", " [0, 0, 50, 50]."]
    values = rewards.AnswerLikelihoodReward(*reward_vlm)(
        prompts=[None] * 5,
        completions=[message(text) for text in texts],
        image=[first] * 4 + [second],
        question=["What is written there?"] * 5,
        answers=[TEN] * 4 + [["10:30", "10:30", "noon"]],
        trainer_state=None,
    )
    corner = first.crop((0, 0, 2, 2))
    pairs = [(first, crop_bbox(first, (10, 20, 60, 70))), (first, corner), (second, crop_bbox(second, (0, 0, 50, 50)))]
    answers = ["stop", "stop", "10:30"]
    box, broken, other = (
        answer_log_likelihood(*reward_vlm, [pair], ["What is written there?"], [answer]).item()
        for pair, answer in zip(pairs, answers, strict=True)
    )
    assert values == pytest.approx([box, broken, box, broken, other], abs=1e-4)
    assert values[0] == values[2]  # exactly: equal boxes must not differ by rounding, or they get an advantage
    assert values[1] == values[3]
    assert all(value < 0 for value in values)


def test_a_likelihood_that_is_not_finite_is_refused(reward_vlm, monkeypatch):
    monkeypatch.setattr(rewards, "answer_log_likelihood", lambda *_: torch.tensor([-1.0, math.nan]))
    with pytest.raises(UserError, match="not finite"):
        rewards.AnswerLikelihoodReward(*reward_vlm).score([()] * 2, [""] * 2, [["a"]] * 2)


@pytest.mark.parametrize("kind", [rewards.AnswerLikelihoodReward, rewards.AnswerAccuracyReward])
def test_out_of_memory_halves_the_batches_for_good(kind, reward_vlm, monkeypatch, caplog):
    """Room for two: of five completions 5 and 2 are tried, then 2, 2, 1 go through; the next step starts at 2."""
    columns = {"image": [noise(160, 120, 1)] * 5, "question": ["Which?"] * 5, "answers": [TEN] * 5}
    columns["completions"] = [message(f" [{i}, 0, 90, 90].") for i in range(5)]
    expected = kind(*reward_vlm)(**columns)
    sizes = limit_memory(monkeypatch, 2)
    reward = kind(*reward_vlm)
    assert reward(**columns) == pytest.approx(expected, abs=1e-4)
    assert reward(**columns) == pytest.approx(expected, abs=1e-4)
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
    assert caplog.text.count("out of memory") == 1
    limit_memory(monkeypatch, 0)
    with pytest.raises(batches.BatchTooLarge, match="with one completion at a time"):
        reward(**columns)


def limit_memory(monkeypatch, most):
    """Run out of memory with more than `most` prompts at once; return the list of sizes tried."""
    sizes = []

    def inputs(model, prepared, pad_token_id):
        sizes.append(len(prepared.input_ids))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model_inputs(model, prepared, pad_token_id)

    monkeypatch.setattr(likelihood, "model_inputs", inputs)
    monkeypatch.setattr(generation, "model_inputs", inputs)
    return sizes


def test_accuracy_is_scored_by_the_row():
    """VQA accuracy of ten references: 2 of 10 are (2 sets with 1 match + 8 with 2) / 30. ANLS of fewer: 1 edit of 5."""
    assert [rewards.answer_accuracy(text, TEN) for text in ("Halt", "stop", "stops")] == pytest.approx([0.6, 1, 0])
    few = [rewards.answer_accuracy(*each) for each in (("stops", ["stop"]), ("stops", ["stop"] * 9), ("no", ["stop"]))]
    assert few == pytest.approx([0.8, 0.8, 0])


def test_accuracy_of_generated_answers(reward_vlm, monkeypatch):
    """The reward VLM's text is cleaned as at inference and scored row by row; equal boxes are generated once."""
    seen = []

    def generate_texts(model, processor, messages, images, **options):
        seen.extend(images)
        return [" Stop.", " Stops.", " Halt."]

    monkeypatch.setattr(rewards, "generate_texts", generate_texts)
    first, second = noise(160, 120, 1), noise(160, 120, 2)
    values = rewards.AnswerAccuracyReward(*reward_vlm)(
        completions=[message(text) for text in ("[0, 0, 50, 50].", "[0, 0, 50, 50].", "no box", "[1, 1, 9, 9].")],
        image=[first, first, second, second],
        question=["Which?"] * 4,
        answers=[TEN, TEN, ["stop"], TEN],
    )
    assert values == pytest.approx([1.0, 1.0, 0.8, 0.6])
    # Of 160 x 120, 1..9% touches 1..15 and 1..11.
    assert [pair[1].size for pair in seen] == [(80, 60), (2, 2), (14, 10)]


def test_a_crop_is_scored_once_only_for_one_image_question_and_references():
    first, second = noise(160, 120, 1), noise(160, 120, 2)
    box, other = "[0, 0, 50, 50].", "[0, 0, 50, 60]."
    rows = [
        (box, first, "Which?", ["stop"]),
        (box, first, "Which?", ["stop"]),  # the same in all
        (other, first, "Which?", ["stop"]),
        (box, second, "Which?", ["stop"]),
        (box, first, "Where?", ["stop"]),
        (box, first, "Which?", ["halt"]),  # a copy of the row with other references
    ]
    crops, order = rewards.distinct_crops(*zip(*rows, strict=True))
    assert order == [0, 0, 1, 2, 3, 4]
    assert [row for row, _ in crops] == [0, 2, 3, 4, 5]
