"""SFT on SmolVLM's real tokens, tiles and widths, with random weights and two layers instead of 12 and 30."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

import train_sft
from cropvlm.trainers.settings import PolicyArguments

pytestmark = pytest.mark.slow
BOXES = [[0, 5, 100, 95], [12, 0, 13, 100]]
TURNS = [" [0, 5, 100, 95].<end_of_utterance>", " [12, 0, 13, 100].<end_of_utterance>"]


@pytest.fixture(scope="module")
def processor_path(real_smolvlm):
    return str(real_smolvlm)


@pytest.fixture(scope="module")
def base_model(processor_path, tmp_path_factory):
    config = AutoConfig.from_pretrained(processor_path)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("real") / "base"
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two rows, their images 1:1 and 4:1."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in [(150, 150), (60, 240)]]
    columns = {"question": ["What time is it?", "Who: him?"], "question_id": [0, 1], "bbox": BOXES}
    rows = Dataset.from_dict({"image": images, "answers": [["10:30"] * 10, ["Zoë"]], **columns})
    folder = tmp_path_factory.mktemp("data") / "rows"
    rows.cast_column("image", ImageFeature()).save_to_disk(str(folder))
    return str(folder)


def sft_trainer(base_model, processor_path, data, output, longest_edge, **options):
    policy = PolicyArguments(base_model, processor_path, data, longest_edge=longest_edge)
    options = {"max_steps": 1, "gradient_accumulation_steps": 1, "save_strategy": "no", "warmup_steps": 0} | options
    args = train_sft.SFTArguments(output_dir=str(output), report_to="none", use_cpu=True, **options)
    return train_sft.make_trainer(args, policy)


def test_sft_at_512(base_model, processor_path, data, tmp_path):
    """bfloat16 compute, float32 adapter: a step at GRPO's rate of 5e-6, which bfloat16 weights would round away."""
    trainer = sft_trainer(base_model, processor_path, data, tmp_path, 512, bf16=True, learning_rate=5e-6)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])
    assert [image["pixel_values"].shape for image in batch["images"]] == [(1, 1, 3, 512, 512)] * 2
    tokenizer = trainer.processing_class.tokenizer
    assert [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]] == TURNS
    assert (batch["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum(1).tolist() == [64, 64]
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)
    frozen = {weight.dtype for name, weight in trainer.model.named_parameters() if name not in trained}
    assert frozen == {torch.bfloat16}
    # The gradient of every A is zero while its B is.
    assert moved == {name for name in trained if "lora_B" in name}


@pytest.mark.parametrize(("longest_edge", "tiles"), [(1024, [5, 3]), (2048, [17, 5])])
def test_forward_of_mixed_tile_counts(longest_edge, tiles, base_model, processor_path, data, tmp_path):
    """1:1 and 4:1 are 2 x 2 and 2 x 1 tiles at 1024 px, 4 x 4 and 4 x 1 at 2048 px, beside the image as a whole."""
    trainer = sft_trainer(base_model, processor_path, data, tmp_path, longest_edge)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])
    image_tokens = (batch["input_ids"] == trainer.model.config.image_token_id).sum(1)
    assert image_tokens.tolist() == [64 * n for n in tiles]
    batch = trainer._micro_step(batch)
    assert batch["pixel_values"].shape == (sum(tiles), 1, 3, 512, 512)
    with torch.no_grad():
        assert math.isfinite(trainer.model(**batch).loss.item())
