"""A group's completions share their image: what is encoded how often, and that losses and gradients stay the same."""

import pytest
import torch
from pictures import count_tiles, noise
from trainers import make_grpo_trainer as make_trainer
from trl import GRPOTrainer

from cropvlm import modeling
from cropvlm.boxes import format_bbox
from cropvlm.data.images import open_image
from cropvlm.prompts import cropper_messages
from cropvlm.trainers import training_data as training_rows


def group_inputs(trainer):
    """Two prompts of a group of three each, with their box completions, as TRL's loss takes them."""
    processor = trainer.processing_class
    pad_id = processor.tokenizer.pad_token_id
    rows = [noise(60, 90)] * 3 + [noise(40, 200, seed=1)] * 3
    text = processor.apply_chat_template(cropper_messages("What is it?"), add_generation_prompt=True)
    inputs = processor(text=[text] * 6, images=[[image] for image in rows], padding=True, return_tensors="pt")
    turns = [processor.tokenizer(f" {format_bbox((i, 3, 40 + 9 * i, 77))}")["input_ids"] for i in range(6)]
    longest = max(map(len, turns))
    return {
        "prompt_ids": inputs["input_ids"],
        "prompt_mask": inputs["attention_mask"],
        "completion_ids": torch.tensor([turn + [pad_id] * (longest - len(turn)) for turn in turns]),
        "completion_mask": torch.tensor([[1] * len(turn) + [0] * (longest - len(turn)) for turn in turns]),
        "advantages": torch.tensor([0.5, -0.25, -0.25, 1.0, -1.5, 0.5]),
        "ref_per_token_logps": torch.full((6, longest), -2.0),
        "num_images": [1] * 6,
        **{key: inputs[key] for key in ("pixel_values", "pixel_attention_mask") if key in inputs},
    }


def test_gradients_through_shared_images_are_the_plain_ways(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """Mixed tile counts (longest edge 128: up to 5 tiles), dropout off, against unmodified TRL."""
    trainer = make_trainer(
        tmp_path, sft_adapter, tiny_world, tiny_smolvlm, policy={"longest_edge": 128}, per_device_train_batch_size=6
    )
    trainer.current_gradient_accumulation_steps = 1
    shared = group_inputs(trainer)
    numbers = shared["pixel_values"].flatten().tolist()
    assert (len(numbers), len(set(numbers[:3])), len(set(numbers[3:])), len(set(numbers))) == (6, 1, 1, 2)
    trainer.processing_class = modeling.load_processor(str(sft_adapter), 128)
    plain = group_inputs(trainer)
    assert plain["pixel_values"].ndim == 5

    gradients = []
    for inputs in (shared, plain):
        trainer.model.zero_grad()
        loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
        loss.backward()
        weights = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        gradients.append((loss.item(), weights))
    (shared_loss, shared_grads), (plain_loss, plain_grads) = gradients
    assert shared_loss == pytest.approx(plain_loss, abs=1e-5)
    assert any("vision_model" in name and grad.abs().max() > 1e-6 for name, grad in plain_grads.items())
    for name, grad in plain_grads.items():
        assert torch.allclose(shared_grads[name], grad, atol=1e-5), name


def test_the_loss_is_dr_grpos(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """TRL's loss and gradient under our arguments against the formula in float64: advantage, plain k3, mask, scale."""
    trainer = make_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, per_device_train_batch_size=6, beta=0.04)
    trainer.current_gradient_accumulation_steps = 1
    inputs = group_inputs(trainer)
    rewards = torch.tensor([1.0, 0.0, 0.25, -7.5, -3.0, -3.0], dtype=torch.float64).view(2, 3)
    advantages = (rewards - rewards.mean(1, keepdim=True)).flatten()  # (6,); not divided by the deviation
    inputs["advantages"] = advantages.float()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = flat_gradient(trainer.model)

    model = trainer.model.double()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    turn = inputs["completion_ids"].shape[1]

    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"]).logits
    log_probs = (logits[:, -turn - 1 : -1] / 0.8).log_softmax(-1)  # at the sampling temperature
    log_probs = log_probs.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)  # (6, T)
    log_ratio = inputs["ref_per_token_logps"].double() - log_probs
    # 1 on the one update that each rollout serves; its gradient is that of the log-probability. k3 is not weighted by
    # it, which the gradient alone tells: by more than 1e-2.
    ratio = (log_probs - log_probs.detach()).exp()
    per_token = -advantages.unsqueeze(1) * ratio + 0.04 * (log_ratio.exp() - log_ratio - 1)
    expected = (per_token * inputs["completion_mask"]).sum() / (6 * 32)  # completions x max_completion_length
    expected.backward()
    expected_gradient = flat_gradient(model)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4


def flat_gradient(model):
    return torch.cat([weight.grad.double().flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize(("longest_edge", "tiles"), [(64, 1), (256, 4 * 4 + 1)])
def test_every_image_is_encoded_once_in_each_place(
    longest_edge, tiles, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch
):
    """Two prompts x 6 completions in micro-batches of one prompt, one tile an image, and 17 as at 2048 px.

    Per prompt: rollout, reference and policy an image's tiles each; reward, always at one tile, 1 + 6.
    """
    monkeypatch.setattr(training_rows, "open_image", lambda source: open_image(source).resize((128, 128)))
    options = {"num_generations": 6, "per_device_train_batch_size": 6, "max_steps": 1, "save_strategy": "no"}
    size = {"longest_edge": longest_edge}
    trainer = make_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, policy=size, **options)
    policy = count_tiles(monkeypatch, trainer.model.get_base_model())
    reward = count_tiles(monkeypatch, trainer.reward_funcs[1].model)
    # All completions read as boxes, no two alike and none the whole image, which would be encoded with it.
    boxes = iter(range(1, 100))
    write = lambda ids, **options: [f"[{next(boxes)}, 0, 100, 100]." for _ in ids]  # noqa: E731
    monkeypatch.setattr(trainer.processing_class, "batch_decode", write, raising=False)
    trainer.train()
    # Rollouts of both prompts at once; reference and policy by prompt.
    assert policy == [2 * tiles, tiles, tiles, tiles, tiles]
    assert reward == [2 * (1 + 6)]


def test_every_weight_is_trained_against_a_reference_of_its_own(tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    """`--use_lora False`: TRL loads the reference as a second model, which encodes each image once as well."""
    options = {"max_steps": 1, "save_strategy": "no", "warmup_steps": 0, "learning_rate": 1e-3}
    trainer = make_trainer(tmp_path, tiny_smolvlm, tiny_world, tiny_smolvlm, policy={"use_lora": False}, **options)
    policy = count_tiles(monkeypatch, trainer.model)
    reference = count_tiles(monkeypatch, trainer.ref_model)
    trainer.reward_funcs[0] = lambda completions, **columns: [len(text[0]["content"]) for text in completions]
    before = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
    trainer.train()
    assert reference == [1, 1]
    assert policy[0] == 2
    assert set(policy[1:]) == {1}
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert len(moved) > 0.9 * len(before)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.ref_model.named_parameters())
