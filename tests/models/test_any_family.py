"""Families that the shared encodings do not know answer as their own processor and `generate` make them answer."""

import pytest
import torch
from pictures import Pairs, noise, pair
from tiny_families import BUILD, save_family
from transformers import AutoModelForImageTextToText, AutoProcessor

from cropvlm.errors import UserError
from cropvlm.generation import generate_rows, generate_texts
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.any_family import shares_encodings
from cropvlm.prompts import answerer_messages, answerer_prompt
from cropvlm.rewards import AnswerLikelihoodReward

NEW_TOKENS = 8


@pytest.fixture(scope="module", params=BUILD)
def folder(request, tmp_path_factory):
    return save_family(request.param, tmp_path_factory.mktemp("families") / request.param)


@torch.inference_mode()
def alone(folder, messages, images):
    """The family's documented way: its template, its processor, its generate."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[images], return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_texts_are_those_that_the_family_gives_alone(folder):
    model, processor = load_model(folder, device="cpu"), load_processor(folder)
    rows = [
        (noise(200 + 9 * i, 150, seed=i), noise(40 + i, 130, seed=9 + i), f"What is on sign {i}?") for i in range(3)
    ]
    texts = dict(generate_rows(model, processor, Pairs(rows), max_new_tokens=NEW_TOKENS))
    expected = [[alone(folder, *prompt) for prompt in pair(*row)] for row in rows]
    assert [texts[i] for i in range(3)] == expected
    assert len({text for row in expected for text in row}) > 3  # they depend on what is seen
    assert shares_encodings(model, processor) == (folder.name == "smolvlm2")


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory):
    folder = save_family("llava_next", tmp_path_factory.mktemp("families") / "llava_next")
    return load_model(folder, device="cpu"), load_processor(folder)


def test_a_family_without_a_place_for_the_crop_is_one_line(llava_next, monkeypatch):
    model, processor = llava_next
    one_image = "{{ '<image>' }}{% for m in messages %}{% for part in m['content'] %}"
    one_image += "{{ part['text'] if part['type'] == 'text' else '' }}{% endfor %}{% endfor %}"
    rows = Pairs([(noise(90, 60), noise(30, 30, seed=1))])
    monkeypatch.setattr(processor, "chat_template", one_image)
    with pytest.raises(UserError, match="^LlavaNextForConditionalGeneration cannot answer from 2 images at once"):
        list(generate_rows(model, processor, rows, max_new_tokens=2))
    question = answerer_messages("What is this?", 1)
    assert generate_texts(model, processor, [question], [[noise(90, 60)]], max_new_tokens=2)  # one image will do


def test_a_first_row_that_cannot_be_prepared_fails_alone(llava_next):
    class Failing(Pairs):
        def __getitem__(self, i):
            return super().__getitem__(i) if i else {}["question"]

    rows = Failing([(noise(90, 60), noise(30, 30, seed=1))] * 2)
    outcomes = dict(generate_rows(*llava_next, rows, max_new_tokens=2))
    assert str(outcomes[0]) == "cannot be prepared: KeyError: 'question'"
    assert len(outcomes[1]) == 2


def test_a_question_cannot_smuggle_in_a_placeholder(llava_next):
    plain, smuggling = ([answerer_prompt(question, [noise(90, 60)])] for question in ("What?", "Wh<image>at?"))
    texts = [generate_texts(*llava_next, [m], [i], max_new_tokens=4) for [(m, i)] in (plain, smuggling)]
    assert texts[0] == texts[1]


def test_no_reward_from_a_family_whose_turns_are_unknown(llava_next):
    with pytest.raises(UserError, match="a LlavaNextForConditionalGeneration as reward VLM; expected a SmolVLM"):
        AnswerLikelihoodReward(*llava_next)
