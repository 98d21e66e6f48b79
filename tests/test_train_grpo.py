"""Stage 2 on a tiny model: rows, policy and reference, a whole run, and what is refused early."""

import json

import pytest
import torch
from datasets import load_from_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import make_grpo_trainer as make_trainer
from trainers import run_main

import train_grpo
from cropvlm import modeling
from cropvlm.encoding import prepare
from cropvlm.errors import UserError


def flags_for(model, vqa_model, data, output):
    return [
        *("--base_model", model, "--vqa_model", vqa_model, "--dataset_path", data, "--output_dir", output),
        *("--longest_edge", 64, "--vqa_longest_edge", 64, "--report_to", "none", "--disable_tqdm", True),
        *("--num_generations", 3, "--per_device_train_batch_size", 6, "--gradient_accumulation_steps", 1),
    ]


def test_defaults_are_the_papers(tmp_path):
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.generation_batch_size == 16 * 6
    assert args.num_generations == 6
    assert (args.temperature, args.top_k, args.top_p, args.max_completion_length) == (0.8, 50, 1.0, 32)
    assert (args.loss_type, args.scale_rewards, args.beta, args.num_iterations) == ("dr_grpo", "none", 0.01, 1)
    assert (args.learning_rate, args.lr_scheduler_type) == (5e-6, "cosine")
    assert (args.warmup_steps, args.max_grad_norm) == (0.03, 0.1)
    assert (args.num_train_epochs, args.save_steps, args.seed) == (1, 150, 42)
    policy = train_grpo.GRPOPolicyArguments()
    assert (policy.reward, policy.vqa_longest_edge) == ("likelihood", 512)


def test_a_question_and_an_answer_may_hold_an_image_placeholder(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """In neither does it stand for an image: the prompt has the one image's token, and a whole step goes through."""
    rows = load_from_disk(str(tiny_world))["train"].remove_columns(["question", "answers"]).select(range(2))
    rows = rows.add_column("question", ["Where is the <image>?", "Is <im<image>age> <IMAGE> a tag?"])
    rows.add_column("answers", [["<image>"], ["an <image>"] * 10]).save_to_disk(str(tmp_path / "data"))
    once = {"max_steps": 1, "save_strategy": "no"}
    trainer = make_trainer(tmp_path / "out", sft_adapter, tmp_path / "data", tiny_smolvlm, **once)
    texts = [row["prompt"][0]["content"][1]["text"].split("\n")[0] for row in trainer.train_dataset]
    assert texts == ["Where is the ?", "Is   a tag?"]
    assert trainer.train_dataset[0]["question"] == "Where is the <image>?"
    trainer.train()


def test_rollouts_see_the_prompt_that_inference_sees(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    trainer = make_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm)
    row = trainer.shared_images.open([trainer.train_dataset[0]])[0]
    prompt = [{"role": "user", "content": [{"type": "image", "image": row["image"]}, row["prompt"][0]["content"][1]]}]
    prompt_ids, _, _ = trainer._tokenize_prompts([prompt])
    prepared = prepare(modeling.load_processor(str(tiny_smolvlm)), [(row["prompt"], [row["image"]])])
    assert prompt_ids == prepared.input_ids
    assert trainer.generation_config.suppress_tokens == [trainer.model.config.image_token_id]


def test_a_reward_vlm_may_resize_in_its_own_way(tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.setattr("cropvlm.trainers.train.train", lambda args, policy, make: policy.load_answerer(None, "cpu"))
    flags = flags_for(tiny_qwen, tiny_qwen, "data", tmp_path)
    with pytest.raises(UserError, match="longest edge of 64 px"):
        run_main(monkeypatch, train_grpo, *flags)
    run_main(monkeypatch, train_grpo, *flags, "--vqa_longest_edge", None)


def test_an_adapter_keeps_its_own_settings(sft_adapter, tiny_smolvlm, caplog):
    """The flags are of a fresh adapter; the card lists what was trained."""
    policy = train_grpo.GRPOPolicyArguments(base_model=str(sft_adapter), lora_r=128, lora_alpha=8, lora_dropout=0.05)
    policy.load_policy(torch.float32, modeling.load_processor(str(tiny_smolvlm)))
    assert (policy.lora_r, policy.lora_alpha, policy.lora_dropout) == (4, 8, 0.05)
    assert "is an adapter, which keeps its own lora_r 4" in caplog.messages[-1]


def test_the_policy_goes_on_from_the_adapter_with_a_frozen_copy(sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    trainer = make_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm)
    weights = dict(trainer.model.named_parameters())
    saved = modeling.load_adapter(str(sft_adapter)).state_dict()
    for name, weight in weights.items():
        assert weight.requires_grad == (".default." in name and "lora_" in name), name
        if ".ref." in name:
            assert torch.equal(weight, saved[name.replace(".ref.", ".default.")])
            assert torch.equal(weight, weights[name.replace(".ref.", ".default.")])
    assert any(".ref." in name for name in weights)


@pytest.mark.parametrize("bf16", [False, True])
def test_one_step_moves_the_policy_and_nothing_else(bf16, sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    """At a learning rate of 5e-6, which bfloat16 weights would round away: the compute alone is bfloat16."""
    options = {"max_steps": 1, "warmup_steps": 0, "save_strategy": "no", "bf16": bf16}
    trainer = make_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, **options)
    assert trainer.args.learning_rate == 5e-6
    dtypes = {"trained": set(), "frozen": set()}
    for name, weight in trainer.model.named_parameters():
        if "lora_" not in name or ".default." in name:
            dtypes["trained" if weight.requires_grad else "frozen"].add(weight.dtype)
    assert dtypes == {"trained": {torch.float32}, "frozen": {torch.bfloat16 if bf16 else torch.float32}}
    trainer.reward_funcs[0] = lambda completions, **columns: [len(text[0]["content"]) for text in completions]
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora_" in name and ".default." in name for name in moved)
    assert len(moved) > 0.9 * sum("lora_" in name and ".default." in name for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["likelihood", "accuracy"])
def test_a_whole_run(reward, sft_adapter, tiny_smolvlm, tiny_world, tmp_path, monkeypatch):
    flags = flags_for(sft_adapter, tiny_smolvlm, tiny_world, tmp_path)
    flags += ["--reward", reward, "--reward_weights", 1, 0.5, "--max_steps", 2, "--save_steps", 1]
    flags += ["--log_crops_every", 2, "--report_to", "tensorboard"]
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    run_main(monkeypatch, train_grpo, *flags)
    log = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert len(log) == 2
    for entry in log:
        parts = [entry[f"rewards/{name}_reward/mean"] for name in ("validity", f"answer_{reward}")]
        assert entry["reward"] == pytest.approx(parts[0] + 0.5 * parts[1], abs=1e-4)
        assert {"kl", "completions/mean_length", "step_time"} <= entry.keys()
        assert 0 <= entry["boxes/valid"] <= 1
        assert 0 <= entry["boxes/groups_without_spread"] <= 1
    assert [path.name for path in (tmp_path / "crops").iterdir()] == ["step-000000.png"]
    board = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert board.Tags()["images"] == ["crops"]
    assert "train/boxes/valid" in board.Tags()["scalars"]
    assert not (tmp_path / "ref").exists()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        modeling.load_model(str(folder), device="cpu")
        modeling.load_processor(str(folder), 64)
    another = ["--base_model", tiny_smolvlm, "--resume_from_checkpoint", True]
    with pytest.raises(UserError, match=f"base_model '{sft_adapter}' there, '{tiny_smolvlm}' here"):
        run_main(monkeypatch, train_grpo, *flags, *another)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_samples", 1], "1 rows"),
        (["--merged_rollouts", "--use_lora", False], "without an adapter"),
        (["--base_model", "qwen"], "the cropper has to be an Idefics3 or SmolVLM"),
        (["--dataset_path", "unanswered"], "answers"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_loaded(
    flags, message, sft_adapter, tiny_smolvlm, tiny_qwen, tiny_world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen").symlink_to(tiny_qwen)
    load_from_disk(str(tiny_world))["train"].remove_columns("answers").save_to_disk("unanswered")
    monkeypatch.setattr(modeling.AutoModelForImageTextToText, "from_pretrained", None)
    with pytest.raises(UserError, match=message):
        run_main(monkeypatch, train_grpo, *flags_for(sft_adapter, tiny_smolvlm, tiny_world, tmp_path), *flags)
