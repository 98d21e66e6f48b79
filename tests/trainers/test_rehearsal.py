"""Settings that cannot be trained with are refused on a toy, before data and models are loaded."""

import random

import datasets
import pytest
import torch
from transformers import Idefics3ForConditionalGeneration, set_seed
from transformers.distributed import mixin
from trl import GRPOTrainer

import train_grpo
import train_sft
from cropvlm import modeling
from cropvlm.errors import UserError
from cropvlm.trainers.rehearsal import rehearse


def rehearse_stage(stage, model, folder, longest_edge=64, **options):
    module, settings = (train_sft, train_sft.SFTArguments) if stage == "sft" else (train_grpo, train_grpo.GRPOArguments)
    policy_type = train_sft.PolicyArguments if stage == "sft" else train_grpo.GRPOPolicyArguments
    sizes = {"longest_edge": longest_edge, "vqa_longest_edge": 64, "lora_r": 4}
    sizes |= {name: options.pop(name) for name in ("use_lora", "attn_implementation") if name in options}
    args = settings(output_dir=str(folder / "out"), report_to="none", use_cpu=True, **options)
    policy = policy_type(base_model=str(model), dataset_path=str(folder / "missing"), **sizes)
    before = repr((vars(args), vars(policy)))
    rehearse(args, policy, module.make_trainer)
    assert repr((vars(args), vars(policy))) == before
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", {}),
        ("sft", {"longest_edge": 128}),
        ("grpo", {}),
        ("grpo", {"use_lora": False}),
        ("grpo", {"per_device_train_batch_size": 3, "num_generations": 2, "gradient_accumulation_steps": 4}),
    ],
)
def test_settings_that_work_pass_and_nothing_changes(stage, options, tiny_smolvlm, tmp_path):
    """The numbers drawn afterwards are those after seeding, and no file is left."""
    rehearse_stage(stage, tiny_smolvlm, tmp_path, **options)
    drawn = (random.random(), torch.rand(1).item())
    set_seed(42)
    assert drawn == (random.random(), torch.rand(1).item())


def test_every_process_has_the_reference_of_a_whole_model(tiny_smolvlm, tmp_path, monkeypatch):
    """transformers' `save_pretrained` writes nothing in the second of two."""
    trainers = []
    make = GRPOTrainer.__init__
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self, **given: make(self, **given) or trainers.append(self))
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    rehearse_stage("grpo", tiny_smolvlm, tmp_path, use_lora=False)
    assert [type(trainer.ref_model) for trainer in trainers] == [Idefics3ForConditionalGeneration]


def test_progress_bars_stay_off_where_the_user_wants_none(tiny_smolvlm, tmp_path):
    datasets.disable_progress_bars()
    try:
        rehearse_stage("sft", tiny_smolvlm, tmp_path)
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


@pytest.mark.parametrize(
    ("stage", "options", "reason"),
    [
        ("sft", {"use_liger_kernel": True}, "liger-kernel"),
        ("sft", {"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ("sft", {"optim": "galore_adamw"}, "galore_torch"),
        ("sft", {"fsdp": "full_shard"}, "distributed training"),
        ("sft", {"assistant_only_loss": True}, "assistant_only_loss"),
        ("sft", {"packing": True}, "Packing is not supported for vision datasets"),
        ("sft", {"padding_free": True}, "Padding-free training is yet not supported for vision datasets"),
        ("sft", {"chat_template_path": "/none"}, "/none"),
        ("sft", {"save_strategy": "best"}, "metric_for_best_model"),
        ("sft", {"pad_to_multiple_of": 8}, "multiple of a value"),
        ("sft", {"lr_scheduler_kwargs": '{"foo": 1}'}, "unexpected keyword argument 'foo'"),
        ("sft", {"attn_implementation": "flash_attention_2"}, "package for FlashAttention2"),
        ("grpo", {"use_vllm": True}, "vLLM is not available"),
        ("grpo", {"sync_ref_model": True}, "sync_ref_model"),
        ("grpo", {"cast_lm_head_to_fp32": True}, "embed_tokens"),
        ("grpo", {"loss_type": "foo"}, "Unknown loss type: foo"),
        ("grpo", {"scale_rewards": "foo"}, "Must be one of 'batch', 'group', or 'none'"),
        ("grpo", {"importance_sampling_level": "foo"}, "'token' and 'sequence'"),
        ("grpo", {"multi_objective_aggregation": "foo"}, "normalize_then_sum"),
        ("grpo", {"cache_implementation": "foo"}, "cache_implementation"),
        ("grpo", {"reward_weights": [1.0, 2.0, 3.0]}, "must match number of reward functions"),
    ],
)
def test_settings_that_clash_or_need_a_package_are_one_line(
    stage, options, reason, tiny_smolvlm, tmp_path, monkeypatch
):
    """The libraries' own words. The data set does not exist, and the policy's weights are never read."""
    monkeypatch.setattr(modeling.AutoModelForImageTextToText, "from_pretrained", None)
    with pytest.raises(UserError, match=reason) as raised:
        rehearse_stage(stage, tiny_smolvlm, tmp_path, **options)
    assert "\n" not in str(raised.value)
