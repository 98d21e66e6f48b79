"""An adapter that is accepted computes what it computes in PEFT; any other is rejected in one line."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from cropvlm import modeling
from cropvlm.encoding import model_inputs, prepare
from cropvlm.errors import UserError
from cropvlm.models.adapters import adapter_base, adapter_bases
from cropvlm.prompts import answerer_messages

TARGETS = ["q_proj", "v_proj", "fc1", "proj"]


def make_adapter(base, folder, config):
    """Save an adapter whose weights are all random, and return the model with it."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(modeling.load_full_model(str(base), torch.float32), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def logits_of(model, processor):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    prompts = [(answerer_messages("What is this?", 1), [Image.fromarray(pixels)])]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model(**model_inputs(base, prepare(processor, prompts), 0)).logits


ACCEPTED = {
    "plain": {},
    "dora": {"use_dora": True},
    "convolution": {"target_modules": ["q_proj", "patch_embedding"]},
    "every linear": {"target_modules": "all-linear"},
    "ranks by module": {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 16}},
    "biases, and the output layer no longer tied": {"bias": "all", "modules_to_save": ["lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "a parameter": {"target_modules": [], "target_parameters": ["model.text_model.layers.0.mlp.up_proj.weight"]},
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_loaded_adapter_computes_what_it_computes_in_peft(kind, tiny_smolvlm, tmp_path):
    config = LoraConfig(**{"r": 4, "target_modules": TARGETS} | ACCEPTED[kind])
    adapted = make_adapter(tiny_smolvlm, tmp_path / "a", config)
    processor = modeling.load_processor(tiny_smolvlm)
    expected = logits_of(adapted, processor)
    merged = modeling.load_model(str(tmp_path / "a"), device="cpu")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert (logits_of(merged, processor) - expected).abs().max() < 1e-4
    assert (logits_of(modeling.load_model(tiny_smolvlm, device="cpu"), processor) - expected).abs().max() > 0.01
    merged.save_pretrained(tmp_path / "merged")
    again = modeling.load_model(str(tmp_path / "merged"), device="cpu")
    assert (logits_of(again, processor) - expected).abs().max() < 1e-4


REJECTED = {
    # The miniature's input and output embeddings are one tensor: merged, one adapter would change both.
    "tied embeddings": (LoraConfig(r=4, target_modules=["embed_tokens"]), "shares its weights with another part"),
    "a bias without a place": (LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True), "cannot be merged"),
    "ia3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "adapter of type IA3; expected LORA"),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_an_adapter_that_cannot_be_merged_exactly_is_one_line(kind, tiny_smolvlm, tmp_path):
    config, message = REJECTED[kind]
    make_adapter(tiny_smolvlm, tmp_path / "adapter", config)
    with pytest.raises(UserError, match=message) as caught:
        modeling.load_model(str(tmp_path / "adapter"), device="cpu")
    assert "\n" not in str(caught.value)


def rewrite(folder, change=lambda weights: weights, **fields):
    """Change the weights' names in an adapter's file, and fields of its configuration."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(change(load_file(file)), file)
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


TOWER = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model."}
OLDER = {  # names of today -> those that earlier versions of transformers gave the same parts
    "qwen": ("tiny_qwen", {"model.language_model.": "model.", "model.visual.": "visual."}),
    "llava": ("tiny_llava", TOWER | {"model.multi_modal_projector.": "multi_modal_projector."}),
    "llava later": ("tiny_llava", {"model.vision_tower.": "model.vision_tower.vision_model."}),
}


@pytest.mark.parametrize("layout", OLDER)
@pytest.mark.parametrize("fields", [{}, {"bias": "all", "modules_to_save": ["lm_head"], "use_dora": True}])
def test_an_adapter_of_an_older_layout_computes_the_same(layout, fields, request, tmp_path):
    family, names = OLDER[layout]
    base = request.getfixturevalue(family)
    linears = ["q_proj", "down_proj", "linear_1", "proj", "fc1"]
    adapted = make_adapter(base, tmp_path / "a", LoraConfig(r=4, target_modules=linears, **fields))
    processor = modeling.load_processor(base)

    def older(weights):
        for new, old in names.items():
            prefix = "base_model.model."
            weights = {key.replace(prefix + new, prefix + old, 1): value for key, value in weights.items()}
        return weights

    rewrite(tmp_path / "a", older)
    expected = logits_of(adapted, processor)
    got = logits_of(modeling.load_model(str(tmp_path / "a"), device="cpu"), processor)
    assert (got - expected).abs().max() < 1e-4
    assert (logits_of(modeling.load_model(base, device="cpu"), processor) - expected).abs().max() > 0.01


def test_a_scale_that_the_older_layout_names_is_not_lost(tiny_qwen, tmp_path):
    make_adapter(tiny_qwen, tmp_path / "a", LoraConfig(r=4, target_modules=["q_proj"]))
    change = lambda weights: {key.replace("model.language_model.", "model."): weights[key] for key in weights}  # noqa: E731
    rewrite(tmp_path / "a", change, alpha_pattern={"^model.layers.0.self_attn.q_proj": 64})
    with pytest.raises(UserError, match="names modules that the base does not have, .*layers.0.self_attn.q_proj first"):
        modeling.load_model(str(tmp_path / "a"))


def test_an_adapter_on_an_adapter_adds_to_it(tiny_smolvlm, tmp_path):
    """Merged one after the other; trained further, only the last one learns."""
    processor = modeling.load_processor(tiny_smolvlm)
    make_adapter(tiny_smolvlm, tmp_path / "first", LoraConfig(r=4, target_modules=["q_proj"]))
    modeling.load_model(str(tmp_path / "first"), device="cpu").save_pretrained(tmp_path / "merged")
    expected = make_adapter(tmp_path / "merged", tmp_path / "last", LoraConfig(r=2, target_modules=["q_proj", "fc1"]))
    rewrite(tmp_path / "last", base_model_name_or_path=str(tmp_path / "first"))
    shutil.rmtree(tmp_path / "merged")
    last = str(tmp_path / "last")
    policy = modeling.load_policy(last, LoraConfig(), torch.float32).eval()
    for model in (modeling.load_model(last, device="cpu"), modeling.load_full_model(last, torch.float32), policy):
        assert (logits_of(model, processor) - logits_of(expected, processor)).abs().max() < 1e-4
    assert {p.shape[0] for name, p in policy.named_parameters() if p.requires_grad and "lora_A" in name} == {2}
    assert list(adapter_bases(last)) == [str(tmp_path / "first"), str(tiny_smolvlm)]
    assert modeling.load_processor(last).tokenizer.get_vocab() == processor.tokenizer.get_vocab()

    rewrite(tmp_path / "first", base_model_name_or_path=last)
    for path in (last, str(tmp_path / "first")):
        with pytest.raises(UserError, match="an adapter that is its own base"):
            modeling.load_model(path)

    rewrite(tmp_path / "last", base_model_name_or_path="someone/base", revision="v2")
    assert adapter_base(last) == "someone/base@v2"


LAYER_99 = {"base_model.model.model.text_model.layers.99.self_attn.q_proj.lora_A.weight": torch.zeros(4, 128)}
ANOTHER = "adapter of another base than .*, or damaged"
DAMAGE = {
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), None),
    "another rank": (lambda folder: rewrite(folder, r=8), ANOTHER),
    "cut weights": (lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000), ANOTHER),
    "half": (lambda folder: rewrite(folder, lambda held: dict([*held.items()][::2])), rf"{ANOTHER} \(\d+ .* missing"),
    "more": (lambda folder: rewrite(folder, lambda held: held | LAYER_99), rf"{ANOTHER} \(\d+ .* unknown"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    "load", [modeling.load_model, lambda path: modeling.load_policy(path, LoraConfig(), torch.float32)]
)
def test_a_damaged_adapter_is_one_line(damage, message, load, tiny_smolvlm, tmp_path):
    make_adapter(tiny_smolvlm, tmp_path, LoraConfig(r=4, target_modules=TARGETS))
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
