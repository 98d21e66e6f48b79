"""Changes to TRL: the methods that they rely on are unchanged, and running out of memory is reported."""

import hashlib
import inspect
import json

import pytest
import torch
from torch import nn
from trainers import make_grpo_trainer
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import utils

from cropvlm.errors import UserError
from cropvlm.models.batches import BatchTooLarge
from cropvlm.rewards import distinct_crops
from cropvlm.trainers.checkpoints import INDIFFERENT
from cropvlm.trainers.memory import MicroStepTooLarge, RolloutTooLarge
from cropvlm.trainers.settings import training_remedies
from cropvlm.trainers.trl_overrides import BoxGRPOTrainer, BoxSFTTrainer

# Overridden methods and those that call them or take their results, as read in TRL 1.16.0 and transformers 5.23.0.
READ = {
    GRPOTrainer._generate_and_score_completions: "1fa48922792d",
    GRPOTrainer._generate_single_turn: "e0f02e4fc094",
    GRPOTrainer._compute_loss: "80295546bbdb",
    GRPOTrainer._calculate_rewards: "736ae29b0838",
    GRPOTrainer._prepare_inputs: "f824e7fb0714",
    GRPOTrainer._get_per_token_logps_and_entropies: "ea73c3909275",
    GRPOTrainer._log_metric: "bcd19b9ca101",
    GRPOTrainer.training_step: "9e18632f7dd8",
    SFTTrainer.training_step: "bba41f264647",
    SFTTrainer.compute_loss: "ca448211ff65",
    utils.shuffle_sequence_dict: "bab038755e57",
    utils.split_tensor_dict: "b61a5760a03e",
    Trainer._run_epoch: "31aff00f34c3",
    Trainer.get_batch_samples: "0b3727386f73",
    Trainer._maybe_log_save_evaluate: "af101534f0f7",
    GRPOTrainer.compute_loss: "a2d6ef8bd29c",
    GRPOTrainer.log: "1e7772819cc8",
    SFTTrainer.log: "0d4c8e5d64f8",
    Trainer._evaluate: "64dfb995ce20",
    Trainer.training_step: "e9760c8ee103",
}


def digest(function) -> str:
    return hashlib.sha256(inspect.getsource(inspect.unwrap(function)).encode()).hexdigest()[:12]


@pytest.mark.parametrize("function", READ, ids=lambda function: function.__qualname__)
def test_the_code_that_is_relied_on_is_as_it_was_read(function):
    """If not: read it again, see whether the override still holds, and write down the new digest."""
    assert digest(function) == READ[function]


@pytest.mark.parametrize("ours", [BoxGRPOTrainer, BoxSFTTrainer])
def test_every_override_is_one(ours):
    """A method that TRL renames would no longer be called. Those that only the trainers here have are named."""
    own = {"_log_boxes", "_part_loss", "_part_inputs", "_unit_bytes", "_tokens_seen"}
    theirs = GRPOTrainer if ours is BoxGRPOTrainer else SFTTrainer
    mine = [cls for cls in ours.__mro__ if cls.__module__.startswith("cropvlm")]
    methods = {name for cls in mine for name, value in vars(cls).items() if inspect.isfunction(value)}
    assert methods - own
    assert [name for name in methods - own if not hasattr(theirs, name)] == []


def test_a_step_has_no_dropout(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """Else policy, rollouts and reference would be three models; `--disable_dropout False` turns it on."""
    for disable in (True, False):
        trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, disable_dropout=disable)
        rates = {module.p for module in trainer.model.modules() if isinstance(module, nn.Dropout)}
        assert max(rates) == (0 if disable else 0.05)
    assert make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm).args.disable_dropout


def test_rows_share_a_score_if_image_question_references_and_box_are_the_same():
    """The last two rows show another image, and another question."""
    one, other = (object.__new__(type("Image", (), {"width": 9, "height": 9, "crop": lambda *box: box})) for _ in "12")
    images, references = [one] * 3 + [other, one], [["a"], ["b"], ["a"], ["a"], ["a"]]
    rows = (["[0, 0, 50, 50]."] * 5, images, ["Which?"] * 4 + ["Where?"], references)
    crops, order = distinct_crops(*rows)
    assert ([row for row, _ in crops], order) == ([0, 1, 3, 4], [0, 1, 0, 2, 3])


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("method", "error", "what", "flag"),
    [
        ("_generate_single_turn", RolloutTooLarge, "with 1 rows at once", "--rollout_batch_size"),
        ("_get_per_token_logps_and_entropies", MicroStepTooLarge, "with 3 rows at once", "--micro_batch_size"),
        ("_compute_loss", MicroStepTooLarge, "with 3 rows at once", "--micro_batch_size"),
    ],
)
def test_memory_that_runs_out_names_the_flag_to_lower(
    method, error, what, flag, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch
):
    """In the second step: the checkpoint of the first stays."""
    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, max_steps=3, save_steps=1)
    plain = getattr(GRPOTrainer, method)
    fail_later = lambda self, *args, **kwargs: (  # noqa: E731
        out_of_memory() if self.state.global_step else plain(self, *args, **kwargs)
    )
    monkeypatch.setattr(GRPOTrainer, method, fail_later)
    with pytest.raises(error, match=f"^out of memory .*{what}$"):
        trainer.train()
    assert json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())["global_step"] == 1
    with pytest.raises(UserError, match=f"continue .*a lower {flag}"), training_remedies():
        raise error("out of memory")


@pytest.mark.parametrize(
    ("error", "flag"),
    [
        (MicroStepTooLarge, "gradient_checkpointing"),
        (MicroStepTooLarge, "micro_batch_size"),
        (RolloutTooLarge, "rollout_batch_size"),
        (BatchTooLarge, "reward_batch_size"),
    ],
)
def test_a_flag_to_resume_with_leaves_the_run_the_same(error, flag):
    with pytest.raises(UserError, match=f"--resume_from_checkpoint True and .*--{flag}"), training_remedies():
        raise error("out of memory")
    assert INDIFFERENT.match(flag)


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_any_allocator_may_run_out(raised, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise raised

    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, max_steps=1, save_strategy="no")
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", fail)
    with pytest.raises(MicroStepTooLarge):
        trainer.train()
