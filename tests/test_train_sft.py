"""Stage 1 on a tiny model: rows, labels, LoRA, a whole run, and what is refused before a model is loaded."""

import json
import re

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from trainers import run_main
from transformers import AutoModelForImageTextToText

import train_sft
from cropvlm import modeling
from cropvlm.crops import crop_bbox
from cropvlm.data.rows import load_rows
from cropvlm.encoding import prepare
from cropvlm.errors import UserError
from cropvlm.prompts import cropper_messages
from cropvlm.trainers import evaluation
from cropvlm.trainers.settings import PolicyArguments, TrainerArguments
from cropvlm.training import valid_rows

BOX = [10, 20, 30, 40]


def flags_for(model, data, output):
    return [
        *("--base_model", model, "--dataset_path", data, "--output_dir", output, "--longest_edge", 64),
        *("--report_to", "none", "--disable_tqdm", True, "--lora_r", 4, "--lora_alpha", 8),
    ]


def make_trainer(tmp_path, policy, **options):
    args = train_sft.SFTArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **options)
    return train_sft.make_trainer(args, policy)


def test_defaults_are_the_papers(tmp_path):
    args = train_sft.SFTArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (16, 1)
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (5e-5, "cosine", 0.03)
    assert (args.num_train_epochs, args.seed, args.save_steps, args.logging_steps) == (1, 42, 100, 1)
    assert args.optim.startswith("adamw")
    assert train_sft.SFTArguments.output_dir == "models/sft_512"
    policy = PolicyArguments()
    assert (policy.lora_r, policy.lora_alpha, policy.lora_dropout, policy.longest_edge) == (128, 256, 0.05, 512)
    assert not args.bf16  # on the CPU everything is float32


def test_the_prompt_is_that_of_inference_and_the_loss_on_box_and_end_of_turn_alone(tiny_smolvlm, boxed_world, tmp_path):
    trainer = make_trainer(tmp_path, PolicyArguments(base_model=str(tiny_smolvlm), dataset_path=str(boxed_world)))
    examples = [trainer.train_dataset[i] for i in (3, 11)]
    batch = trainer.data_collator([dict(example) for example in examples])
    tokenizer = trainer.processing_class.tokenizer
    decoded = [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert decoded == [" [3, 8, 33, 100].<end_of_utterance>", " [11, 16, 41, 100].<end_of_utterance>"]
    prompt_ids = batch["input_ids"][0][(batch["labels"][0] == -100) & (batch["attention_mask"][0] == 1)]
    question = load_rows(boxed_world)[3]["question"]
    prepared = prepare(trainer.processing_class, [(cropper_messages(question), [examples[0]["image"]])])
    assert prompt_ids.tolist() == prepared.input_ids[0]
    (image,) = prepared.images.values()
    assert torch.equal(batch["images"][0]["pixel_values"], image.tensors["pixel_values"])


def test_lora_is_on_the_intended_linears_alone(tiny_smolvlm):
    policy = modeling.load_policy(str(tiny_smolvlm), PolicyArguments().lora_config(), torch.float32)
    adapted = [name for name, _ in policy.named_parameters() if ".lora_A." in name]
    parts = {part: sum(part in name for name in adapted) for part in ("text_model", "vision_model", "connector")}
    assert parts == {"text_model": 4 * 7, "vision_model": 4 * 5, "connector": 1}  # layers x linears
    assert len(adapted) == sum(parts.values())
    assert not any("out_proj" in name or "lm_head" in name or "embed" in name for name in adapted)


@pytest.mark.slow
def test_a_whole_run(tiny_smolvlm, boxed_world, tmp_path, monkeypatch):
    """The model learns the boxes by heart; its output folder loads like any model."""
    flags = flags_for(tiny_smolvlm, boxed_world, tmp_path)
    run_main(monkeypatch, train_sft, *flags, "--max_steps", 6, "--learning_rate", 0.01, "--save_steps", 3, "--merge")
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0]
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert modeling.load_model(str(folder), device="cpu").dtype == torch.float32
        assert modeling.load_processor(str(folder)).image_processor.size["longest_edge"] == 64

    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
    expected = modeling.load_model(str(tmp_path), device="cpu").state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[name], weight, atol=1e-6) for name, weight in expected.items())
    assert modeling.load_processor(str(tmp_path / "merged")).image_processor.size["longest_edge"] == 64
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    for line in (f"data: `{boxed_world}`, 24 rows", "after 6 steps", f"loss: {losses[-1]:.4g}", "lora_r: 4", "trl: "):
        assert line in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    Image.new("RGB", (80, 60)).save(tmp_path / "sign.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, shown := {})
    assert shown["images"][0].size == (80, 60)


@pytest.mark.slow
def test_the_accuracy_with_the_current_crops_is_measured(tiny_smolvlm, boxed_world, tiny_world, tmp_path, monkeypatch):
    """A scripted answerer gets none of three held-out rows right after one step and all after two."""
    answers = iter(["wrong"] * 3 + ["right"] * 3)
    plain = evaluation.generate_texts

    def generate_texts(model, processor, messages, images, **options):
        if len(images[0]) == 2:  # the answerer
            assert all(crop == crop_bbox(full, (0, 0, 50, 25)) for full, crop in images)
            return [next(answers) for _ in images]
        assert model.training is False
        return [" [0, 0, 50, 25]." for _ in plain(model, processor, messages, images, **options)]

    monkeypatch.setattr(evaluation, "generate_texts", generate_texts)
    monkeypatch.setattr(evaluation, "answer_accuracy", lambda answer, references: float(answer == "right"))
    flags = flags_for(tiny_smolvlm, boxed_world, tmp_path)
    held_out = tmp_path / "held_out"  # of its two splits validation is taken, unasked
    splits = datasets.load_from_disk(str(tiny_world))
    datasets.DatasetDict(train=splits["train"], validation=splits["test"]).save_to_disk(str(held_out))
    flags += ["--eval_dataset_path", held_out, "--eval_max_samples", 3, "--max_steps", 2]
    flags += ["--vqa_model", tiny_smolvlm, "--vqa_longest_edge", 64, "--save_steps", 1]
    flags += ["--load_best_model_at_end", True]
    run_main(monkeypatch, train_sft, *flags)
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    measured = [entry for entry in state["log_history"] if "eval_accuracy" in entry]
    assert [(entry["step"], entry["eval_accuracy"]) for entry in measured] == [(1, 0), (2, 100)]
    assert [entry["eval_boxes/valid"] for entry in measured] == [1, 1]
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    assert "eval_accuracy: 100" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_measuring_leaves_the_weights_as_they_are(tiny_smolvlm, boxed_world, tiny_world, tmp_path, monkeypatch):
    """With the adapter's dropout, whose random numbers follow those that measuring draws."""
    weights = []
    for name in ("plain", "measured"):
        flags = [*flags_for(tiny_smolvlm, boxed_world, tmp_path / name), "--max_steps", 2, "--lora_dropout", 0.5]
        if name == "measured":
            flags += ["--eval_dataset_path", tiny_world, "--eval_split", "test", "--eval_max_samples", 1]
            flags += ["--eval_steps", 1, "--vqa_model", tiny_smolvlm, "--vqa_longest_edge", 64]
        run_main(monkeypatch, train_sft, *flags)
        weights.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_weights_without_lora(tiny_smolvlm, boxed_world, tmp_path, monkeypatch, caplog):
    """Where an adapter was: no file is left of it, by which a loader would take the folder for one."""
    (tmp_path / "merged").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "merged/model.safetensors", "mine.txt"):
        (tmp_path / name).write_text("old")
    flags = ["--use_lora", False, "--max_steps", 1, "--warmup_steps", 0]
    run_main(monkeypatch, train_sft, *flags_for(tiny_smolvlm, boxed_world, tmp_path), *flags)
    assert "every weight" in caplog.text
    assert not modeling.is_adapter(str(tmp_path))
    assert not any((tmp_path / name).exists() for name in ("adapter_model.safetensors", "merged"))
    assert (tmp_path / "mine.txt").exists()
    before, after = (
        dict(modeling.load_model(str(path), device="cpu").named_parameters()) for path in (tiny_smolvlm, tmp_path)
    )
    assert before.keys() == after.keys()
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(moved) > 0.9 * len(before)


def test_rows_without_a_usable_box_are_left_out(tiny_world, tiny_smolvlm, tmp_path, caplog):
    rows = datasets.load_from_disk(str(tiny_world))["train"]
    boxes = [BOX, None, [10, 20, 10, 40], *[BOX] * 18, [0, 0, 1.0, 1.0], [0, 0, 100.0, 100.0], [10, 20, 30]]
    rows = rows.add_column("bbox", boxes)
    rows.save_to_disk(str(tmp_path / "data"))
    policy = PolicyArguments(base_model=str(tiny_smolvlm), dataset_path=str(tmp_path / "data"))
    trainer = make_trainer(tmp_path / "out", policy)
    assert len(trainer.train_dataset) == 21
    assert "1 rows have no bbox" in caplog.text
    assert str(rows[1]["question_id"]) in caplog.text
    assert "2 of 23 rows are left out by their bbox: 1 without area, 1 not four numbers" in caplog.text
    completions = [trainer.train_dataset[i]["completion"] for i in (0, 19, 20)]  # floats in percent are percent
    assert completions == [f" {text}.<end_of_utterance>" for text in (BOX, "[0, 0, 1, 1]", "[0, 0, 100, 100]")]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[10.0, 10.0, 50.0, 60.0], [0.2, 0.1, 0.5, 0.6]], "fractions of 1, such as \\[0.2, 0.1, 0.5, 0.6\\]"),
        ([[10, 10, 50, 60]] * 7 + [[120, 40, 310, 200]] * 2, r"2 of 9 .*2 outside of 0..100.*\[120, 40, 310, 200\]"),
        ([[10, 10, 50, 60]] * 7 + [[40, 60, 30, 20]] * 2, r"2 without area.*\[40, 60, 30, 20\]"),  # x, y, width, height
    ],
)
def test_boxes_in_another_unit_or_order_are_refused(boxes, message):
    """Some of them would pass as percent, and the model would learn them."""
    with pytest.raises(UserError, match=rf"{message}.*; expected \[x1, y1, x2, y2\] in percent"):
        valid_rows(boxes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "missing/folder/of/data"], "no data set"),
        (["--base_model", "./missing"], "no such folder"),
        (["--resume_from_checkpoint", "./missing"], "no whole checkpoint"),
        (["--eval_strategy", "steps"], "--eval_dataset_path"),
        (["--merge", "--use_lora", False], "--merge"),
        (["--dataset_path", "no boxes"], "bbox"),
        (["--output_dir", "file/out"], "cannot write"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_loaded(
    flags, message, tiny_smolvlm, boxed_world, tiny_world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "no boxes").symlink_to(tiny_world)
    monkeypatch.setattr(modeling.AutoModelForImageTextToText, "from_pretrained", None)
    with pytest.raises(UserError, match=message):
        run_main(monkeypatch, train_sft, *flags_for(tiny_smolvlm, boxed_world, "out"), *flags)
    assert not list((tmp_path / "out").glob("*"))  # nothing is left behind


@pytest.mark.parametrize("name", ["base_model", "dataset_path", "the base of base_model"])
def test_the_output_does_not_replace_what_the_run_reads(name, tmp_path, monkeypatch):
    """The result's weights would take the place of the base's, which the adapter is nothing without."""
    base, data, adapter = tmp_path / "base", tmp_path / "data", tmp_path / "adapter"
    for folder in (base, data, adapter):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model, output = adapter if "of" in name else base, data if name == "dataset_path" else base
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"is also {name}, which would be replaced"):
        run_main(monkeypatch, train_sft, *flags_for(model, data, output.name))
    assert list(output.iterdir()) == []


def test_an_image_that_cannot_be_decoded_is_named(tiny_smolvlm, boxed_world, tmp_path):
    """Its header is good."""
    rows = load_rows(str(boxed_world)).to_list()
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:-999]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"1 rows cannot be trained on, question_id {rows[2]['question_id']!r};"):
        make_trainer(tmp_path, PolicyArguments(base_model=str(tiny_smolvlm), dataset_path=str(tmp_path / "data")))


def test_processes_share_the_rows_that_measure(tiny_world, monkeypatch):
    """Each row is measured once; of seven rows and two processes the first measures four."""
    rows = datasets.load_from_disk(str(tiny_world))["test"].select(range(7))
    args = object.__new__(TrainerArguments)
    args.eval_dataset_path = str(tiny_world)
    args.eval_split = "test"
    accuracy = evaluation.CropAccuracy(args, rows, None, None)
    monkeypatch.setattr(accuracy, "_score_batch", lambda policy, processor, rows: [row["question_id"] for row in rows])
    shares = [accuracy(None, None, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(shares[0] + shares[1]) == sorted(rows["question_id"])
