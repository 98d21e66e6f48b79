"""TRL's GRPO trainer under train_grpo.py's arguments, small enough for a test."""

import sys

import train_grpo


def run_main(monkeypatch, script, *flags):
    """Run `train_sft` or `train_grpo` in this process, with these flags."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
    script.main()


def make_grpo_trainer(tmp_path, model, data, vqa_model, policy=None, **options):
    """Two prompts of 3 completions a step, unless `options` say otherwise. policy: of `GRPOPolicyArguments`."""
    options = {"num_generations": 3, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2} | options
    options = {"micro_batch_size": options["per_device_train_batch_size"]} | options  # micro-steps as they are given
    args = train_grpo.GRPOArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    paths = {"base_model": str(model), "dataset_path": str(data), "vqa_model": str(vqa_model)}
    sizes = {"longest_edge": 64, "vqa_longest_edge": 64, "lora_r": 4}
    return train_grpo.make_trainer(args, train_grpo.GRPOPolicyArguments(**(paths | sizes | (policy or {}))))
