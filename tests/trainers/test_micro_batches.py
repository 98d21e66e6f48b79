"""Parts of a micro-step: loss and gradient are the whole's, memory that runs out makes them smaller; exact counts."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.profiler import ProfilerActivity, profile
from trainers import make_grpo_trainer, png
from transformers import Idefics3Config, set_seed
from trl import GRPOTrainer, SFTTrainer

import train_sft
from cropvlm.data.images import open_image
from cropvlm.errors import UserError
from cropvlm.models.readers import ProcessorReader
from cropvlm.trainers import images, memory
from cropvlm.trainers import training_data as training_rows
from cropvlm.trainers.memory import MicroBatches, MicroStepTooLarge, RolloutTooLarge, activation_bytes
from cropvlm.trainers.settings import PolicyArguments

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Eight rows whose images have 1 to 5 tiles of 64 px at 128 px, and questions, answers and boxes of all lengths."""
    sizes = [(128, 128), (64, 64), (128, 20), (90, 128), (128, 64), (30, 30), (128, 100), (200, 60)]
    rows = [
        {
            "image": {"bytes": png(np.random.default_rng(i).integers(0, 255, (h, w, 3), np.uint8)), "path": None},
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


def make_rl_trainer(tmp_path, model, data, vqa_model, **options):
    """8 prompts x 3 completions of different lengths, whose rewards are their lengths."""
    options = {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1, "max_steps": 1} | options
    policy = {"longest_edge": 128, "log_crops_every": 0}
    trainer = make_grpo_trainer(tmp_path, model, data, vqa_model, policy, save_strategy="no", **options)
    trainer.reward_funcs[0] = lambda completion_ids, **columns: [len(ids) / 10 for ids in completion_ids]
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


@pytest.fixture(scope="module")
def whole_sft_step(tiny_smolvlm, uneven, tmp_path_factory):
    return step(make_sft_trainer(tmp_path_factory.mktemp("out"), tiny_smolvlm, uneven))


@pytest.mark.parametrize(
    "options",
    [
        *({"micro_batch_size": size} for size in (1, 2, 3, 8, 100)),
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "micro_batch_size": 3},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ],
    ids=str,
)
def test_an_sft_step_is_the_same_in_any_parts(options, tiny_smolvlm, uneven, tmp_path, whole_sft_step):
    """Micro-batches of 3 of 8 rows are 3, 3 and 2; the last case is TRL's own accumulation."""
    assert_same_step(step(make_sft_trainer(tmp_path, tiny_smolvlm, uneven, **options)), whole_sft_step)


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "dapo"])
def test_a_grpo_step_is_the_same_in_any_parts(loss_type, sft_adapter, uneven, tiny_smolvlm, tmp_path, ragged):
    """9 of 24 completions are 3, 3 and 2 prompts; the last case is TRL's own accumulation, prompt by prompt."""
    ways = [{}] + [{"micro_batch_size": size} for size in (3, 6, 9)]
    ways += [{"per_device_train_batch_size": 3, "gradient_accumulation_steps": 8}]
    ways = ways if loss_type == "dr_grpo" else [ways[0], ways[3]]
    steps = [
        step(make_rl_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, loss_type=loss_type, **options))
        for options in ways
    ]
    for other in steps[1:]:
        assert_same_step(other, steps[0])


def test_out_of_memory_halves_the_parts_and_loses_no_gradient(
    sft_adapter, uneven, tiny_smolvlm, tmp_path, ragged, monkeypatch, caplog
):
    """In the second of two micro-steps, going back with more than one prompt: its rollout and the first one's stay."""
    options = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 2}
    expected = step(make_rl_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, **options))
    trainer = make_rl_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, **options)
    backward, seen, rollouts = trainer.accelerator.backward, [], []
    compute, write = GRPOTrainer._compute_loss, GRPOTrainer._generate_single_turn

    def fail(loss):
        if seen and seen[-1] > 3 and len(seen) > 1:
            backward(loss)  # some gradients are there when the memory runs out
            raise torch.OutOfMemoryError("CUDA out of memory")
        backward(loss)

    def note(self, model, inputs):
        seen.append(len(inputs["prompt_ids"]))
        return compute(self, model, inputs)

    monkeypatch.setattr(trainer.accelerator, "backward", fail)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", note)
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *a: rollouts.append(1) or write(*a))
    assert_same_step(step(trainer), expected)
    assert seen == [12, 12, 6, 3, 3, 3, 3]  # 6 runs out once more
    assert len(rollouts) == 1
    assert "out of memory with 12 rows at once: continuing with half as many" in caplog.text


def test_sizes_follow_the_memory(monkeypatch, caplog):
    """10 units of 3 rows, 100 bytes each: 450 bytes hold 4, so there are three parts, of 4, 4 and 2."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(memory, "CPU_BYTES", 450)
    tried = []

    def run(micro, units, fits):
        def compute(size):
            tried.append(size)
            if size > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return size

        return micro.run(compute, units, 100, CPU)

    auto = MicroBatches("auto", unit=3)
    assert run(auto, 10, fits=9) == 4
    assert "12 of 30 rows at once" in caplog.text
    assert run(auto, 6, fits=9) == 3  # two like parts
    assert run(auto, 3, fits=1) == 1  # 3, then 1: for good
    assert run(auto, 10, fits=9) == 1
    assert tried == [4, 3, 3, 1, 1]
    assert run(MicroBatches(12, unit=3), 10, fits=9) == 4
    assert run(MicroBatches(12, unit=3), 2, fits=9) == 2
    monkeypatch.setattr(memory, "CPU_BYTES", 50)
    assert run(MicroBatches("auto"), 10, fits=9) == 1


def test_several_processes_take_the_size_that_fits_all(monkeypatch):
    """Another process holds 2 units; with parts of another number this one would wait for it forever."""
    monkeypatch.setattr(memory, "gather_object", lambda sizes: [*sizes, 2])
    assert MicroBatches("auto", num_processes=2).run(lambda size: size, 8, 1, CPU) == 2


@pytest.mark.parametrize(("size", "processes", "rows"), [(6, 1, 6), ("auto", 2, 12), ("auto", 1, 3)])
def test_parts_that_may_not_be_smaller(size, processes, rows):
    """A fixed size, several processes, which would no longer keep in step, and a single unit."""

    def fail(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MicroStepTooLarge, match=f"^out of memory with {rows} rows at once$"):
        MicroBatches(size, 3, processes).run(fail, 4, 1, CPU)


def test_the_estimate_is_what_was_measured():
    """SmolVLM-256M, bf16, on an H200: 17.7 GiB at 512 px with 96 completions of 150 tokens over 16 tiles, 41.8 GiB at
    2048 px with 24 of 1,280 tokens over 68 tiles, of which models and optimiser take 2. A group of six at 2048 px, or a
    row of SFT, fits a card of 24 GB.
    """
    text = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30}
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 512, "patch_size": 16}
    config = Idefics3Config(text_config=text, vision_config=vision)
    assert activation_bytes(config, 96 * 150, 16, 2) / 2**30 == pytest.approx(17.7 - 2, rel=0.15)
    assert activation_bytes(config, 24 * 1280, 68, 2) / 2**30 == pytest.approx(41.8 - 2, rel=0.15)
    for gigabytes, prompts, rows in ((24, 1, 2), (40, 2, 5), (80, 4, 10)):
        budget = memory.GPU_SHARE * (gigabytes - 3) * 1e9
        assert budget // activation_bytes(config, 6 * 1380, 17, 2) == prompts
        assert budget // activation_bytes(config, 1380, 17, 2) == rows


def test_micro_batches_hold_whole_groups_or_are_refused(tmp_path):
    from train_grpo import GRPOArguments

    options = {"output_dir": str(tmp_path), "use_cpu": True}
    assert GRPOArguments(micro_batch_size="12", **options).micro_batch_size == 12
    with pytest.raises(UserError, match="^--micro_batch_size 8: .*multiple of --num_generations 6"):
        GRPOArguments(micro_batch_size="8", **options)
    for name in ("micro_batch_size", "rollout_batch_size"):
        for value in ("0", "-1", "all", "1.5"):
            with pytest.raises(UserError, match=f"^--{name} '{value}': expected a positive integer or auto"):
                GRPOArguments(**{name: value}, **options)


@pytest.mark.parametrize(("size", "parts", "error"), [(5, [5, 5, 5, 5, 4], None), ("auto", [24, 12, 12], None),
                                                      (24, [24], "with 24 rows at once")])  # fmt: skip
def test_rollouts_are_written_in_parts(
    size, parts, error, sft_adapter, uneven, tiny_smolvlm, tmp_path, ragged, monkeypatch
):
    """Memory holds 12 completions: `auto` is halved, a number is not."""
    trainer = make_rl_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, rollout_batch_size=str(size))
    write, seen = GRPOTrainer._generate_single_turn, []

    def note(self, prompt_ids, images, fields, *args):
        seen.append(len(prompt_ids))
        assert len(prompt_ids) == len(images) == len(fields["pixel_values"])
        if len(prompt_ids) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return write(self, prompt_ids, images, fields, *args)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", note)
    if error:
        with pytest.raises(RolloutTooLarge, match=error):
            trainer.train()
    else:
        trainer.train()
    assert seen == parts


def count_calls(trainer):
    """Calls of the policy's vision encoder and text model, and the shapes of the latter's."""
    model = trainer.model.get_base_model().model
    calls = Counter()
    for name in ("vision_model", "text_model"):
        getattr(model, name).register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


def test_forward_passes_of_a_grpo_step(sft_adapter, uneven, tiny_smolvlm, tmp_path):
    """8 prompts, 4 tokens each. At once: 1 + 3 passes for the rollout, 1 for the reference, 1 for the policy; prompt by
    prompt 8 for each of the last two, as with 8 micro-steps. The vision encoder: as often, but once in the rollout.
    """
    counts = {}
    for name, options in {
        "auto": {},
        "by prompt": {"micro_batch_size": 3},
        "micro-steps": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 8},
        "by prompt, rollouts too": {"micro_batch_size": 3, "rollout_batch_size": 3},
    }.items():
        options |= {"max_completion_length": 4, "generation_kwargs": {"min_new_tokens": 4}}
        trainer = make_rl_trainer(tmp_path, sft_adapter, uneven, tiny_smolvlm, **options)
        calls = count_calls(trainer)
        trainer.train()
        counts[name] = (calls["text_model"], calls["vision_model"])
    assert counts == {
        "auto": (4 + 1 + 1, 3),
        "by prompt": (4 + 8 + 8, 1 + 8 + 8),
        "micro-steps": (4 + 8 + 8, 1 + 8 + 8),
        "by prompt, rollouts too": (8 * 4 + 8 + 8, 8 + 8 + 8),
    }


def test_forward_passes_and_operations_of_an_sft_step(tiny_smolvlm, uneven, tmp_path):
    """One pass instead of four takes about a quarter of the matrix products, which are a GPU's launches."""
    counts, products = {}, {}
    for size in ("auto", "2"):
        trainer = make_sft_trainer(tmp_path, tiny_smolvlm, uneven, micro_batch_size=size)
        calls = count_calls(trainer)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            trainer.train()
        counts[size] = (calls["text_model"], calls["vision_model"])
        products[size] = sum(event.count for event in profiled.key_averages() if event.key == "aten::mm")
    assert counts == {"auto": (1, 1), "2": (4, 4)}
    assert products["2"] == pytest.approx(4 * products["auto"], rel=0.1)


def test_an_sft_step_opens_and_prepares_each_image_once(tiny_smolvlm, uneven, tmp_path, monkeypatch):
    opened, prepared = Counter(), []
    monkeypatch.setattr(
        training_rows, "open_image", lambda source: opened.update([source["bytes"]]) or open_image(source)
    )
    read = ProcessorReader.read
    monkeypatch.setattr(ProcessorReader, "read", lambda *args: prepared.append(1) or read(*args))
    trainer = make_sft_trainer(tmp_path, tiny_smolvlm, uneven, micro_batch_size="2")
    opened.clear()  # TRL looks at one row
    trainer.train()
    assert sorted(opened.values()) == [1] * 8
    assert len(prepared) == 8


@pytest.mark.parametrize("size", ["auto", "3"])
def test_accumulation_of_trls_own_sft_is_what_it_was(size, tiny_smolvlm, uneven, tmp_path, monkeypatch):
    """Against TRL's loss of the whole padded batch, tile by tile."""
    trainer = make_sft_trainer(tmp_path, tiny_smolvlm, uneven, micro_batch_size=size)
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
