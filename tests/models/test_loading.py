"""Model folders of any content: one line, no code run, no pickle read; and what a loader is told."""

import builtins
import json
import os
import pickle
import shutil

import pytest
import torch

from cropvlm import modeling
from cropvlm.errors import UserError

CODE = "open('ran', 'w')\nfrom transformers import PretrainedConfig\nclass C(PretrainedConfig): pass\n"


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_code(folder):
    """The classes of the model, its processor, its tokenizer and its image processor."""
    (folder / "evil.py").write_text(CODE)
    automatic = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.C", "AutoProcessor": "evil.C"}
    edit(folder / "config.json", model_type="evil", auto_map=automatic)
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"] |= {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.C"}}
    config |= {"processor_class": None, "auto_map": {"AutoProcessor": "evil.C"}}
    (folder / "processor_config.json").write_text(json.dumps(config))
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.C", "evil.C"]})


def with_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))


def writing(name, text):
    return lambda folder: (folder / name).write_text(text)


NONSENSE = {
    "code": with_code,
    "no template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "a text model": writing("config.json", '{"model_type": "llama"}'),
    "a pickle": with_a_pickle,
    "nothing": lambda folder: shutil.rmtree(folder),
    "cut weights": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "a list as adapter": writing("adapter_config.json", "[]"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_folder_of_nonsense_is_one_line(kind, tiny_smolvlm, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_smolvlm, tmp_path / "model")
    NONSENSE[kind](folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # `yes |`, when transformers asks whether to run code
    with pytest.raises(UserError) as caught:  # as the scripts do, the processor first
        modeling.load_processor(str(folder)), modeling.load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_attention_is_the_one_asked_for(tiny_smolvlm, sft_adapter):
    lora = modeling.LoraConfig(r=2, target_modules=["q_proj"])
    for given, expected in ((None, "sdpa"), ("eager", "eager")):
        models = [
            modeling.load_model(str(tiny_smolvlm), device="cpu", attn_implementation=given),
            modeling.load_model(str(sft_adapter), device="cpu", attn_implementation=given),
            modeling.load_adapter(str(sft_adapter), attn_implementation=given),
            modeling.load_policy(str(tiny_smolvlm), lora, torch.float32, attn_implementation=given),
        ]
        assert {model.config._attn_implementation for model in models} == {expected}
    with pytest.raises(UserError, match="cannot be loaded"):
        modeling.load_model(str(tiny_smolvlm), device="cpu", attn_implementation="flash_attention_2")


def test_an_fp8_checkpoint_is_float32_throughout_on_a_cpu(tiny_llava, tmp_path):
    folder = shutil.copytree(tiny_llava, tmp_path / "fp8")
    quantised = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    edit(folder / "config.json", quantization_config=quantised)
    model = modeling.load_full_model(str(folder), torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
