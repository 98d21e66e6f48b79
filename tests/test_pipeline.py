"""The six scripts in order on a few rows of the miniature world, each reading what the one before has written."""

import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from processes import call_script
from steps import question_ids, read

from cropvlm.boxes import parse_bbox

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.gpu)])
def test_the_six_scripts_in_order(dtype, tmp_path, monkeypatch, capsys, caplog, tiny_world, tiny_smolvlm, tiny_qwen):
    """On a GPU both trainings are resumed as well."""
    monkeypatch.chdir(tmp_path)
    data, size = ["--dataset_path", tiny_world], ["--longest_edge", 64]
    made = tmp_path / "datasets" / "mini"

    boxed = call_script(monkeypatch, "create_dataset.py", *data, "--model_path", tiny_qwen, "--output_path", made)
    assert boxed == 0
    sft, grpo = load_from_disk(f"{made}_sft"), load_from_disk(f"{made}_grpo")
    assert (len(sft), len(grpo)) == (12, 12)
    # A teacher with random weights writes no box: the whole image is taken, and SFT can learn to write that.
    assert [0, 0, 100, 100] in sft["bbox"][:]

    small = ["--lora_r", 4, "--lora_alpha", 8, "--report_to", "none", "--disable_tqdm", "True", *size]
    small += ["--save_steps", 1, "--max_steps", 2]
    tune = ["--base_model", tiny_smolvlm, "--dataset_path", f"{made}_sft"]
    zoom = ["--base_model", "models/sft", "--dataset_path", f"{made}_grpo", "--vqa_model", tiny_smolvlm]
    zoom += ["--vqa_longest_edge", 64, "--per_device_train_batch_size", 6, "--gradient_accumulation_steps", 2]
    for stage, flags in (("sft", tune), ("grpo", zoom)):
        folder = Path("models") / stage
        command = [f"train_{stage}.py", *flags, *small, "--output_dir", folder]
        assert call_script(monkeypatch, *command) == 0
        if dtype == "bfloat16":
            assert "'bf16': True" in caplog.text  # the resolved settings are logged
            caplog.clear()
            # From the first step: the second one is taken again.
            shutil.rmtree(folder / "checkpoint-2")
            (folder / "adapter_model.safetensors").unlink()
            assert call_script(monkeypatch, *command, "--resume_from_checkpoint", "True") == 0
            assert read(folder / "checkpoint-2" / "trainer_state.json")["global_step"] == 2

    crop = ["--model_path", "models/grpo", *data, "--split", "test", "--name", "mini"]
    assert call_script(monkeypatch, "generate_bbox.py", *crop, *size) == 0
    boxes, meta = read("predictions/mini_bbox.json"), read("predictions/mini_bbox.meta.json")
    held_out = question_ids(tiny_world)
    assert [record["question_id"] for record in boxes] == held_out
    assert (meta["settings"]["dtype"], meta["counts"]["rows"]) == (f"torch.{dtype}", 12)
    assert meta["counts"]["invalid_boxes"] == sum(parse_bbox(record["answer"]) is None for record in boxes)

    # Of other rows the file says nothing; of the 24 that trained it or its base, whatever they are called, how many.
    assert "seen_rows" not in meta["cropper"]
    load_from_disk(str(tiny_world))["train"].save_to_disk("datasets/copy")
    of_copy = ["--model_path", "models/grpo", "--dataset_path", "datasets/copy", *size]
    assert call_script(monkeypatch, "generate_bbox.py", *of_copy) == 0
    assert read("predictions/copy_bbox.meta.json")["cropper"]["seen_rows"] == 24

    answer = ["--bbox", "predictions/mini_bbox.json", "--vqa_model_path", tiny_smolvlm, "--max_new_tokens", 6]
    assert call_script(monkeypatch, "generate_final_answers.py", *answer, *size) == 0
    for mode in ("base", "cropvlm"):
        answers = f"predictions/mini_{mode}_answers.json"
        assert [record["question_id"] for record in read(answers)] == held_out
        capsys.readouterr()
        assert call_script(monkeypatch, "vqa_accuracy.py", "--predictions_file", answers) == 0
        assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 100
