"""Micro-steps: TRL's accumulation with the same loss and gradient, as many rows at once as memory holds."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Image
from pictures import noise, png
from PIL import Image as PILImage
from torch import nn
from trainers import make_grpo_trainer
from transformers import Idefics3Config, set_seed
from trl import GRPOTrainer, SFTTrainer

import train_grpo
import train_sft
from cropvlm import modeling
from cropvlm.errors import UserError
from cropvlm.trainers import images, micro_batches
from cropvlm.trainers.micro_batches import activation_bytes, set_micro_batches
from cropvlm.trainers.settings import PolicyArguments


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Eight rows whose images have 1 to 5 tiles of 64 px at 128 px, and questions, answers and boxes of all lengths."""
    sizes = [(128, 128), (64, 64), (128, 20), (90, 128), (128, 64), (30, 30), (128, 100), (200, 60)]
    rows = [
        {
            "image": {"bytes": png(noise(w, h, seed=i)), "path": None},
            "question": "Which word? " * (1 + 3 * i % 5),
            "question_id": i,
            "answers": ["stop" * (1 + i % 3)] * 10,
            "bbox": [0, i, 9 + 10 * i, 100 - i],
        }
        for i, (w, h) in enumerate(sizes)
    ]
    folder = tmp_path_factory.mktemp("datasets") / "uneven"
    Dataset.from_list(rows).cast_column("image", Image()).save_to_disk(str(folder))
    return folder


def make_sft_trainer(tmp_path, model, data, longest_edge=128, **options):
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "save_strategy": "no"} | options
    args = train_sft.SFTArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    policy = {"base_model": str(model), "dataset_path": str(data), "lora_r": 4, "lora_dropout": 0.0}
    set_seed(0)
    trainer = train_sft.make_trainer(args, PolicyArguments(**policy, longest_edge=longest_edge))
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return trainer


@pytest.fixture
def ragged(monkeypatch):
    """Cut the completions of a rollout to 1 to 7 tokens: random weights hardly ever end a turn."""
    plain = GRPOTrainer._generate_single_turn

    def write(self, prompt_ids, *args):
        ids, _ = plain(self, prompt_ids, *args)
        return [each[: 1 + 5 * i % 7] for i, each in enumerate(ids)], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", write)


def step(trainer):
    """Loss and gradient (before it is clipped) of the one step that `trainer` takes."""
    gradients = {}
    clip = trainer._clip_grad_norm

    def keep(model):
        gradients.update((name, w.grad.clone()) for name, w in model.named_parameters() if w.grad is not None)
        return clip(model)

    trainer._clip_grad_norm = keep
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), gradients


def assert_same_step(one, other, tolerance=1e-5):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    assert one[1].keys() == other[1].keys()
    assert max(gradient.abs().max() for gradient in one[1].values()) > 100 * tolerance
    for name, gradient in one[1].items():
        scale = max(1, gradient.abs().max().item())
        assert torch.allclose(gradient, other[1][name], rtol=0, atol=tolerance * scale), name


@pytest.mark.parametrize(("size", "smoothing"), [(2, 0.0), (3, 0.1), ("auto", 0.0)])
def test_an_sft_step_is_the_same_in_any_micro_steps(size, smoothing, tiny_smolvlm, uneven, tmp_path, monkeypatch):
    """`auto` finds room for 4 of 8 rows; 3 do not divide them: 2 at once."""
    options = {"label_smoothing_factor": smoothing}
    whole = step(make_sft_trainer(tmp_path, tiny_smolvlm, uneven, **options))
    if size == "auto":
        monkeypatch.setattr(micro_batches, "_rows_that_fit", lambda *args: 5)
    trainer = make_sft_trainer(tmp_path, tiny_smolvlm, uneven, micro_batch_size=size, **options)
    sizes = (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps)
    assert sizes == ((4, 2) if size == "auto" else (2, 4))
    assert_same_step(step(trainer), whole)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "dapo"])
def test_a_grpo_step_is_the_same_in_any_micro_steps(loss_type, sft_adapter, uneven, tiny_smolvlm, tmp_path, ragged):
    """8 prompts x 3 completions in eight micro-steps or two, written and rewarded (by their lengths) at once."""
    common = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1, "max_steps": 1}
    common |= {"save_strategy": "no", "policy": {"longest_edge": 128, "log_crops_every": 0}, "loss_type": loss_type}
    steps = []
    for size, count in ((300, 1), (12, 2), (3, 8)) if loss_type == "dr_grpo" else ((300, 1), (3, 8)):
        trainer = make_grpo_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, micro_batch_size=size, **common)
        trainer.reward_funcs[0] = lambda completion_ids, **columns: [len(ids) / 10 for ids in completion_ids]
        assert (trainer.args.gradient_accumulation_steps, trainer.args.steps_per_generation) == (count, count)
        steps.append(step(trainer))
    for other in steps[1:]:
        assert_same_step(other, steps[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [("loss_type", "bnpo"), ("top_entropy_quantile", 0.5), ("entropy_coef", 0.5), ("deepspeed_plugin", object())],
)
def test_a_step_that_cannot_be_divided_stays_as_it_is(option, value, tmp_path):
    """With `auto`; a size is refused. A loss that is a mean over each part is another one in smaller parts."""
    sizes = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 8}
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), use_cpu=True, **sizes)
    setattr(args, option, value)
    set_micro_batches(args, None, None)
    assert {name: getattr(args, name) for name in sizes} == sizes
    args.micro_batch_size = 6
    reason = "DeepSpeed has its own; set --per_device" if option == "deepspeed_plugin" else f"with --{option} TRL takes"
    with pytest.raises(UserError, match=f"^--micro_batch_size 6: {reason}"):
        set_micro_batches(args, None, None)


def test_micro_batches_hold_whole_groups_or_are_refused(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    assert train_grpo.GRPOArguments(micro_batch_size="12", **options).micro_batch_size == 12
    with pytest.raises(UserError, match="^--micro_batch_size 8: .*multiple of --num_generations 6"):
        train_grpo.GRPOArguments(micro_batch_size="8", **options)
    with pytest.raises(UserError, match="^--micro_batch_size '1.5': expected a positive integer or auto"):
        train_sft.SFTArguments(micro_batch_size="1.5", **options)


@pytest.mark.parametrize(
    ("given", "most", "taken"),
    [
        ((96, 1, None), 50, (48, 2, 2)),  # divisors of 96 in whole groups of 6: 6, 12, 24, 48, 96
        ((96, 1, None), 1, (6, 16, 16)),  # a group at least
        ((6, 16, 1), 96, (6, 16, 1)),  # what is written at once stays: one prompt
        ((24, 4, 8), 96, (96, 1, 2)),
        ((4, 24, None), 5, (4, 24, 24)),  # groups are spread over micro-steps
    ],
)
def test_a_step_stays_as_large_as_it_was_given(given, most, taken, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_batches, "_rows_that_fit", lambda *args: most)
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), use_cpu=True, **dict(zip(names, given, strict=True)))
    generated = args.generation_batch_size
    set_micro_batches(args, None, None)
    assert tuple(getattr(args, name) for name in names) == taken
    assert taken[0] * taken[2] == generated


def test_the_fewest_rows_of_all_processes_are_taken(tiny_smolvlm, monkeypatch):
    """Another process has room for 2 rows; with more micro-steps than this one it would wait for ever."""
    monkeypatch.setattr(micro_batches, "gather_object", lambda rows: [*rows, 2])
    args = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"))
    model, processor = modeling.load_model(tiny_smolvlm, device="cpu"), modeling.load_processor(tiny_smolvlm, 64)
    assert micro_batches._rows_that_fit(args, model, processor, 1) == 2


def test_what_pytorch_keeps_for_itself_counts_as_free(monkeypatch):
    """20 GiB of the card are free, 10 more are in PyTorch's cache; the model and what trains it will take 1."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 12 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * gib)
    model = nn.Linear(gib // 20, 1, bias=False, device="meta")  # 4 bytes a weight, and 16 to train it
    assert micro_batches._free_bytes(torch.device("cuda"), model) == pytest.approx(0.75 * 29 * gib, rel=1e-6)


@pytest.mark.parametrize(
    ("longest_edge", "tiles", "row", "prompt"), [(512, 1, 0.62, 1.03), (1024, 5, 2.65, 4.20), (2048, 17, 8.83, 13.3)]
)
def test_the_estimate_is_the_peak_of_the_real_geometry(longest_edge, tiles, row, prompt, real_smolvlm):
    """GiB of an SFT row, with dropout, and of a GRPO prompt of six completions, without: SmolVLM-256M in bfloat16."""
    processor = modeling.load_processor(str(real_smolvlm), longest_edge)
    found, image_tokens = micro_batches.largest_image(processor)
    text = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30}
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 512, "patch_size": 16}
    config = Idefics3Config(text_config=text, vision_config=vision)
    tokens = image_tokens + micro_batches.TEXT_TOKENS
    assert found == tiles
    assert 0.9 < activation_bytes(config, tokens, tiles, 2, dropout=True) / 2**30 / row < 1.3
    assert 0.9 < activation_bytes(config, 6 * tokens, tiles, 2) / 2**30 / prompt < 1.3


def test_the_loss_is_trls(tiny_smolvlm, uneven, tmp_path, monkeypatch):
    """Against TRL's loss of the whole padded batch, tile by tile."""
    trainer = make_sft_trainer(tmp_path, tiny_smolvlm, uneven)
    rows = [dict(trainer.train_dataset[i]) for i in range(8)]
    plain = trainer.data_collator.collate
    plain.processor = trainer.processing_class
    padded = plain([dict(row) for row in rows])
    assert padded["pixel_values"].shape[:2] == (8, 5)
    trainer.current_gradient_accumulation_steps, tokens = 1, (padded["labels"] != -100).sum()
    expected = SFTTrainer.compute_loss(trainer, trainer.model, dict(padded), num_items_in_batch=tokens)
    plain.processor = images.copy.copy(trainer.processing_class)
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert PILImage.Image not in {type(value) for value in batch.values()}
