"""Loading, adapters, precision, stop tokens and the answer log-likelihood, on tiny random models."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from pictures import as_authors_show, noise

from cropvlm import modeling
from cropvlm.errors import UserError
from cropvlm.models.tokens import stop_token_ids
from cropvlm.prompts import answerer_messages
from cropvlm.training import LORA_TARGETS

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, tiny_smolvlm):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert modeling.device_and_dtype(1) == (torch.device("cuda", 1), torch.bfloat16)
    assert modeling.device_and_dtype(-1) == (torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="GPU 2 does not exist: this machine has GPUs 0 to 1"):
        modeling.device_and_dtype(2)
    # Asked onto the CPU beside a GPU, a model is in float32.
    assert {p.dtype for p in modeling.load_model(tiny_smolvlm, device="cpu").parameters()} == {torch.float32}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # hidden after torch has seen them
    assert modeling.device_and_dtype(0) == (torch.device("cpu"), torch.float32)


def test_processors_take_their_own_kind_of_size(tiny_smolvlm, tiny_qwen, tiny_llava):
    assert modeling.load_processor(tiny_smolvlm, 128).image_processor.size["longest_edge"] == 128
    qwen = modeling.load_processor(tiny_qwen, max_pixels=112 * 112).image_processor
    assert (qwen.size["shortest_edge"], qwen.size["longest_edge"]) == (56 * 56, 112 * 112)
    assert modeling.load_processor(tiny_llava).tokenizer.padding_side == "left"
    for path, flags in [(tiny_qwen, {"longest_edge": 64}), (tiny_llava, {"longest_edge": 64})]:
        with pytest.raises(UserError, match="not to a longest edge of 64 px"):
            modeling.load_processor(path, **flags)
    with pytest.raises(UserError, match="not to a number of pixels"):
        modeling.load_processor(tiny_smolvlm, min_pixels=100)


def test_the_end_of_a_turn(tiny_smolvlm, tiny_qwen):
    for path, end in ((tiny_qwen, ["<|im_end|>"]), (tiny_smolvlm, ["<end_of_utterance>"])):
        model, processor = modeling.load_model(path, device="cpu"), modeling.load_processor(path)
        if path == tiny_smolvlm:
            model.generation_config.eos_token_id = processor.tokenizer.pad_token_id  # the real text model's
        assert stop_token_ids(model, processor) == processor.tokenizer.convert_tokens_to_ids(end)


def test_an_adapter_is_merged_in_float32_and_rounded_once(sft_adapter):
    exact = dict(modeling.load_model(str(sft_adapter), device="cpu").named_parameters())
    merged = modeling.load_model(str(sft_adapter), device="cpu", dtype=torch.bfloat16)
    assert merged.model.text_model.rotary_emb.inv_freq.dtype == torch.float32
    for name, weight in merged.named_parameters():
        assert torch.equal(weight, exact[name].bfloat16()), name


def test_the_base_of_an_adapter_may_have_moved(sft_adapter, tiny_smolvlm, tmp_path, caplog):
    moved = shutil.copytree(sft_adapter, tmp_path / "adapter")
    config = json.loads((moved / "adapter_config.json").read_text())
    for base, problem in (
        (str(tmp_path / "gone"), "not there; .*gone.*--base_model_path$"),
        (None, "has no base_model"),
    ):
        (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(UserError, match=problem):
            modeling.load_model(str(moved))
    assert modeling.load_model(str(moved), base_model_path=str(tiny_smolvlm), device="cpu") is not None
    modeling.load_model(str(tiny_smolvlm), base_model_path="elsewhere", device="cpu")
    assert "whole model: its base elsewhere is not used" in caplog.text


def test_policies(tiny_smolvlm, sft_adapter):
    """Trained weights are float32 in a bfloat16 model too."""
    fresh = modeling.load_policy(str(tiny_smolvlm), LORA, torch.bfloat16)
    trained = {name: p.dtype for name, p in fresh.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and dtype == torch.float32 for name, dtype in trained.items())
    assert {p.dtype for p in fresh.parameters() if not p.requires_grad} == {torch.bfloat16}

    whole = modeling.load_policy(str(tiny_smolvlm), None, torch.bfloat16)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in whole.parameters())
    with pytest.raises(UserError, match="its base cannot be trained whole"):
        modeling.load_policy(str(sft_adapter), None, torch.bfloat16)


ANSWERS = ["10:30", "new york city", "", "naïve café 東京", "a", "STOP!", "£ 5.00"]


@pytest.mark.parametrize("family", ["tiny_smolvlm", "tiny_qwen", "tiny_llava"])
def test_answer_log_likelihood_equals_one_by_one_in_float64(family, request):
    """Rows of mixed tile counts in one batch, against the plain forward of each row alone in float64."""
    folder = request.getfixturevalue(family)
    model = modeling.load_model(folder, device="cpu")
    processor = modeling.load_processor(folder, 128 if family == "tiny_smolvlm" else None)
    shapes = [(90, 60), (200, 40), (50, 180), (130, 130), (64, 64), (300, 200), (31, 17)]
    images = [[noise(*shape, seed=i), noise(20, 20 + 9 * i, seed=9)] for i, shape in enumerate(shapes)]
    questions = [f"What is written on sign {i}? Colour: red" for i in range(len(ANSWERS))]
    scores = modeling.answer_log_likelihood(model, processor, images, questions, ANSWERS)
    assert scores.dtype == torch.float32
    assert scores.shape == (len(ANSWERS),)

    halves = modeling.answer_log_likelihood(model, processor, images, questions, ANSWERS, batch_size=3)
    assert torch.allclose(scores, halves, atol=1e-4)

    model = model.double()
    for score, row, question, answer in zip(scores, images, questions, ANSWERS, strict=True):
        assert score.item() == pytest.approx(plain_log_likelihood(model, processor, row, question, answer), abs=1e-4)


def plain_log_likelihood(model, processor, images, question, answer):
    """Prompt and turn through the processor's usual call; the turn's tokens are what it adds to the prompt's."""
    prompt = processor.apply_chat_template(answerer_messages(question, len(images)), add_generation_prompt=True)
    space = "" if prompt.endswith("\n") else " "
    inputs = processor(text=[prompt], images=[as_authors_show(processor, images)], return_tensors="pt")
    turn = processor.tokenizer(f"{space}{answer.capitalize()}.", return_tensors="pt", add_special_tokens=False)
    turn = torch.cat([turn["input_ids"], torch.tensor([[processor.tokenizer.eos_token_id]])], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], turn], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(turn)], dim=1)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -turn.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, turn[0].unsqueeze(-1)).sum().item()
