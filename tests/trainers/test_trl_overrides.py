"""Changes to TRL: the methods that they rely on are as they were read; dropout in the policy alone."""

import hashlib
import inspect

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trainers import make_grpo_trainer
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import utils

from cropvlm.trainers.trl_overrides import BoxGRPOTrainer, BoxSFTTrainer, merged

# Overridden methods and those that call them or take their results, as read in TRL 1.16.0 and transformers 5.23.0.
READ = {
    GRPOTrainer._generate_and_score_completions: "1fa48922792d",
    GRPOTrainer._generate_single_turn: "e0f02e4fc094",
    GRPOTrainer._calculate_rewards: "736ae29b0838",
    GRPOTrainer._prepare_inputs: "f824e7fb0714",
    GRPOTrainer.training_step: "9e18632f7dd8",
    SFTTrainer.training_step: "bba41f264647",
    SFTTrainer.compute_loss: "ca448211ff65",
    GRPOTrainer._get_train_sampler: "36497afb4d31",
    utils.RepeatSampler: "ba139f4a43ee",
    utils.shuffle_sequence_dict: "bab038755e57",
    utils.split_tensor_dict: "b61a5760a03e",
    Trainer._run_epoch: "31aff00f34c3",
    GRPOTrainer.compute_loss: "a2d6ef8bd29c",
    Trainer._evaluate: "64dfb995ce20",
    Trainer.training_step: "e9760c8ee103",
}


@pytest.mark.parametrize("function", READ, ids=lambda function: function.__qualname__)
def test_the_code_that_is_relied_on_is_as_it_was_read(function):
    """If not: read it again, see whether the override still holds, and write down the new digest."""
    source = inspect.getsource(inspect.unwrap(function))
    assert hashlib.sha256(source.encode()).hexdigest()[:12] == READ[function]


@pytest.mark.parametrize("ours", [BoxGRPOTrainer, BoxSFTTrainer])
def test_every_override_is_one(ours):
    """A method that TRL renames would no longer be called. Those that only the trainers here have are named."""
    own = {"_log_boxes", "_micro_step"}
    theirs = GRPOTrainer if ours is BoxGRPOTrainer else SFTTrainer
    mine = [cls for cls in ours.__mro__ if cls.__module__.startswith("cropvlm")]
    methods = {name for cls in mine for name, value in vars(cls).items() if inspect.isfunction(value)}
    assert methods - own
    assert [name for name in methods - own if not hasattr(theirs, name)] == []


def test_dropout_is_off_or_the_policys_alone(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """k3 of policy and reference before the first update: 0 without dropout. With the policy's it is about half of what
    it would be with the reference's besides, as two independent deviations add up.
    """
    found = []
    for options, reference in (({}, None), ({"disable_dropout": False}, None), ({"disable_dropout": False}, 0.05)):
        options |= {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 24}
        trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, **options)
        for module in trainer.model.modules():
            if reference and "ref" in getattr(module, "lora_dropout", {}):
                module.lora_dropout["ref"] = nn.Dropout(reference)
        trainer.train()
        found += [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    off, policy, both = found
    assert off == 0
    assert 0.35 < policy / both < 0.75


@pytest.mark.parametrize("bf16", [False, True])
def test_rollouts_may_have_the_adapter_merged(bf16, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    """The model computes what it did, and the weights that are not trained are the same afterwards, bit by bit."""
    options = {"max_steps": 2, "save_strategy": "no", "learning_rate": 1e-2, "bf16": bf16}
    policy = {"merged_rollouts": True}
    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, policy=policy, **options)
    frozen = {name: weight for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    before = {name: weight.clone() for name, weight in frozen.items()}
    layers = [module for module in trainer.model.modules() if isinstance(module, BaseTunerLayer)]
    plain, seen = GRPOTrainer._generate_single_turn, []

    def note(self, *args):
        seen.append(all(layer.merged for layer in layers))
        return plain(self, *args)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", note)
    trainer.train()
    assert layers
    assert seen == [True, True]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), trainer.accelerator.autocast():
        apart = trainer.model(input_ids=ids).logits
        with merged(trainer.model):
            changed = [name for name, weight in frozen.items() if not torch.equal(weight, before[name])]
            assert torch.allclose(trainer.model(input_ids=ids).logits, apart, atol=0.05 if bf16 else 1e-5)
    assert len(changed) == len(layers)
    assert not any(layer.merged for layer in layers)
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.items())


def test_an_epoch_has_its_order_in_a_resumed_run_too(sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    """TRL's generator is in no checkpoint: the second epoch would have the first one's order."""
    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm)
    unstopped = trainer._get_train_sampler()
    orders = [list(unstopped) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    taken = []
    monkeypatch.setattr(GRPOTrainer, "_run_epoch", lambda self, **options: taken.append(list(self.sampler)))
    trainer._get_train_sampler()
    trainer.state.max_steps = 9
    for epoch in (1, 2):
        trainer._run_epoch(epoch=epoch)
    assert taken == orders[1:]
