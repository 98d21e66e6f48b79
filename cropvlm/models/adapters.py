"""LoRA adapters: found, loaded so that they compute what PEFT computes, or rejected."""

import contextlib
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils.peft_utils import find_adapter_config_file

from cropvlm.errors import UserError, failure
from cropvlm.models.loading import check_model_path


def is_adapter(path: str) -> bool:
    """Whether `path` (Hub id or folder) holds a PEFT adapter rather than a whole model."""
    check_model_path(path)
    if Path(path).is_dir():
        return (Path(path) / "adapter_config.json").is_file()
    with contextlib.suppress(Exception):  # no such file, or no way to ask for it: then the model's loader will tell
        return find_adapter_config_file(path) is not None
    return False


def adapter_base(path: str) -> str | None:
    """Return the base model that an adapter's configuration names; None if `path` holds no adapter."""
    return _read_config(path).base_model_name_or_path if is_adapter(path) else None


def _read_config(path: str) -> PeftConfig:
    with failure(f"{path}: adapter_config.json cannot be read"):
        return PeftConfig.from_pretrained(path)


def attach_adapter(model: torch.nn.Module, path: str, base: str, is_trainable: bool) -> PeftModel:
    """Return `model` with the LoRA adapter at `path` on it, every weight of the adapter loaded.

    base: what `model` was loaded from, for messages. Raises `UserError`: the adapter was trained on another base, some
    of its weights are missing or have no place in the base, or it is not a LoRA.
    """
    kind = _read_config(path).peft_type
    if kind != PeftType.LORA:
        raise UserError(f"{path}: an adapter of type {getattr(kind, 'value', kind)}; expected LORA")
    with failure(f"{path}: adapter of another base than {base}, or damaged"):
        with warnings.catch_warnings(action="ignore"):
            adapted = PeftModel.from_pretrained(model, path, is_trainable=is_trainable, torch_device="cpu")
        # Loaded once more for the result, which from_pretrained keeps to itself: missing weights are only a warning
        # there, and what has no place in the base is passed over.
        renamed = getattr(model, "_checkpoint_conversion_mapping", {})
        options = {"is_trainable": is_trainable, "torch_device": "cpu", "key_mapping": renamed}
        result = adapted.load_adapter(path, adapted.active_adapter, **options)
        for problem, names in (("missing", result.missing_keys), ("unknown there", result.unexpected_keys)):
            if names:
                raise ValueError(f"{len(names)} weights are {problem}, {names[0]} first")
    return adapted


def merge_adapter(adapted: PeftModel, path: str) -> torch.nn.Module:
    """Return the base model with the adapter at `path` added to its weights, which computes what the adapter computes.

    Raises `UserError` where it cannot be merged: it depends on the prompt, or changes one of two tied weights.
    """
    parameters = [id(parameter) for _, parameter in adapted.named_parameters(remove_duplicate=False)]
    for name, layer in adapted.named_modules():
        weight = getattr(layer.get_base_layer(), "weight", None) if isinstance(layer, BaseTunerLayer) else None
        if parameters.count(id(weight)) > 1:  # merged, it would change the other one as well
            raise UserError(f"{path}: cannot be merged, {name} shares its weights with another part of the base")
    with failure(f"{path}: the adapter cannot be merged into its base"):
        return adapted.merge_and_unload()
