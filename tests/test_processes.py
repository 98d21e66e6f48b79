"""Two processes under `accelerate launch` on the CPU: the losses of one process at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LAUNCH

ROOT = Path(__file__).resolve().parents[1]
BOXES = ["[0, 0, 50, 100].", "[25, 0, 75, 100].", "no box", "[5, 5, 20, 90]."]


def fixed_completions(trainer, prompt_ids, images, multimodal_fields, num_generations, **options):
    """A group's completions by their place in it, in place of sampled ones."""
    tokenizer = trainer.processing_class.tokenizer
    turns = [tokenizer(f" {box}")["input_ids"] + [tokenizer.eos_token_id] for box in BOXES]
    position = trainer.accelerator.process_index * len(prompt_ids)  # of this process's first row among all
    return [turns[(position + i) % num_generations] for i in range(len(prompt_ids))], None


def train(script: str, flags: list[str]) -> None:
    """Run a training script in this process, its completions fixed."""
    import importlib

    from trl import GRPOTrainer

    GRPOTrainer._generate_single_turn = fixed_completions
    sys.argv = [f"{script}.py", *flags]
    importlib.import_module(script).main()


def run(script: str, output: Path, processes: int, *flags: object) -> list[dict]:
    """Train in one process or two; return the log."""
    command = [*(LAUNCH if processes > 1 else [sys.executable]), __file__, script, *map(str, flags)]
    command += ["--output_dir", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (state,) = output.glob("checkpoint-*/trainer_state.json")
    return json.loads(state.read_text())["log_history"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_sft", "train_grpo", "train_grpo with groups split"])
def test_two_processes_lose_what_one_loses(script, tiny_smolvlm, tiny_world, boxed_world, tmp_path):
    """The same losses and norms of the gradient, at a learning rate that moves the weights.

    LoRA's dropout is off and GRPO's completions are fixed: both are drawn from the process's own random numbers. The
    KL that TRL logs is left out: it is a mean over micro-batches, which hold others where groups are split.
    """
    flags = ["--base_model", tiny_smolvlm, "--dataset_path", boxed_world, "--longest_edge", 64, "--lora_r", 4]
    flags += ["--lora_alpha", 8, "--lora_dropout", 0, "--max_steps", 4, "--learning_rate", 1e-2, "--report_to", "none"]
    flags += ["--vqa_model", tiny_smolvlm, "--vqa_longest_edge", 64]
    batch, figures = 2, ("loss", "grad_norm")
    if script == "train_sft":
        flags += ["--eval_dataset_path", tiny_world, "--eval_split", "test", "--eval_max_samples", 3, "--eval_steps", 4]
    else:
        # 12 completions: 4 groups of 3, two in each process; or 3 groups of 4, one of them half in each.
        batch, num_generations = 3, 3 if script == "train_grpo" else 4
        figures = ("loss", "grad_norm", "reward", "boxes/valid", "boxes/pairwise_iou")
        flags += ["--num_generations", num_generations]
    logs = {}
    for processes in (1, 2):
        sizes = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", 12 // batch // processes]
        logs[processes] = run(script.split()[0], tmp_path / str(processes), processes, *flags, *sizes)
    measured = [{k: v for entry in log for k, v in entry.items() if k.startswith("eval_")} for log in logs.values()]
    assert measured[0] == measured[1]
    assert bool(measured[0]) == (script == "train_sft")
    one, two = ([entry for entry in log if "loss" in entry] for log in logs.values())
    assert len(one) == len(two) == 4
    for figure in figures:
        expected = pytest.approx([entry[figure] for entry in one], rel=1e-3 if figure == "grad_norm" else 0, abs=1e-3)
        assert [entry[figure] for entry in two] == expected, figure
    moving = "loss" if script == "train_sft" else "kl"
    assert abs(one[-1][moving] - one[0][moving]) > 1e-3


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2:])
