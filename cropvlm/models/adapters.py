"""LoRA adapters: found, loaded so that they compute what PEFT computes, or rejected."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils.peft_utils import find_adapter_config_file

from cropvlm.errors import UserError, failure
from cropvlm.models.loading import check_model_path
from cropvlm.models.revisions import split_revision

PREFIX = "base_model.model."  # of every weight in an adapter's file, before its name in the base


def is_adapter(path: str) -> bool:
    """Whether `path` (Hub id or folder) holds a PEFT adapter rather than a whole model."""
    check_model_path(path)
    with contextlib.suppress(Exception):  # no such file or no connection: the model's loader reports it
        name, revision = split_revision(str(path))
        return find_adapter_config_file(name, revision=revision) is not None
    return False


def adapter_base(path: str) -> str | None:
    """Return the base that an adapter's configuration names, as `name@revision` if it has one; None for a model."""
    if not is_adapter(path):
        return None
    config = _read_config(path)
    base = config.base_model_name_or_path
    fixed = base and config.revision and "@" not in base and not Path(base).is_dir()
    return f"{base}@{config.revision}" if fixed else base


def adapter_bases(path: str) -> Iterator[str]:
    """Yield the base of an adapter, the base of that base if it is an adapter too, and so on; nothing for a model.

    Raises `UserError` for an adapter that is its own base, directly or through others.
    """
    seen, base = {Path(path).resolve()}, adapter_base(path)
    while base:
        if (place := Path(base).resolve()) in seen:
            raise UserError(f"{path}: an adapter that is its own base, by its adapter_config.json")
        yield base
        try:
            seen, base = seen | {place}, adapter_base(base)
        except UserError as error:
            told = f"{path}: adapter_config.json names a base model that is not there; {error}"
            raise UserError(f"{told}; correct that file, or name the base with --base_model_path") from error


def base_of(path: str) -> str:
    """Return the base that an adapter's configuration names. Raises `UserError` for none or for the adapter itself."""
    bases = list(adapter_bases(path))
    if not bases:
        raise UserError(f"{path}: adapter_config.json has no base_model_name_or_path; add the base model there")
    return bases[0]


def _read_config(path: str) -> PeftConfig:
    name, revision = split_revision(str(path))
    with failure(f"{path}: adapter_config.json cannot be read"):
        return PeftConfig.from_pretrained(name, revision=revision)


def attach_adapter(model: torch.nn.Module, path: str, base: str, is_trainable: bool) -> PeftModel:
    """Return `model` with the LoRA adapter at `path` on it, every weight of the adapter loaded.

    base: path of `model`, for messages. Raises `UserError` if the adapter was trained on another base, some of its
    weights are missing or have no place in the base, or it is not a LoRA.
    """
    config = _read_config(path)
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(f"{path}: an adapter of type {kind}; expected LORA")
    config.inference_mode = not is_trainable
    name, revision = split_revision(str(path))
    with (
        failure(f"{path}: adapter of another base than {base}, or damaged"),
        warnings.catch_warnings(action="ignore"),
    ):
        saved = load_peft_weights(name, device="cpu", revision=revision)
        weights = _in_todays_layout(saved, model)
        adapted = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config)
        if weights.keys() != saved.keys():
            _check_patterns(adapted, config)
        # Not `PeftModel.from_pretrained`, which only warns of missing weights and ignores those without a place.
        result = set_peft_model_state_dict(adapted, weights)
        missing = [key for key in result.missing_keys if "lora_" in key]
        if config.bias != "none":
            own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            missing += [key for key in own if key.endswith("bias") and key not in weights]
        for problem, names in (("missing", missing), ("unknown there", result.unexpected_keys)):
            if names:
                raise ValueError(f"{len(names)} weights are {problem}, {names[0]} first")
    return adapted


def _in_todays_layout(weights: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights of the adapter under the current names of the parts of `model`.

    Transformers has moved them: `model.layers` of a Qwen2.5-VL of 2025 is `model.language_model.layers`.
    """
    places = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    mapping = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [renaming for renaming in mapping if isinstance(renaming, WeightRenaming)]

    def has_place(name: str) -> bool:
        return name.split(".lora_")[0].replace(".base_layer", "") in places

    def today(key: str) -> str:
        name = key.removeprefix(PREFIX)
        for renaming in renamings:
            if has_place(name):
                break
            name, _ = renaming.rename_source_key(name)
        return PREFIX + name if has_place(name) else key

    return {today(key): value for key, value in weights.items()}


def _check_patterns(adapted: PeftModel, config: PeftConfig) -> None:
    """Raise `ValueError` for a rank or scale of single modules under an older name, which PEFT would ignore."""
    modules = [name for name, layer in adapted.named_modules() if isinstance(layer, BaseTunerLayer)]
    for patterns in (config.rank_pattern, config.alpha_pattern):
        found = {get_pattern_key(patterns.keys(), name) for name in modules}
        if unmatched := [pattern for pattern in patterns if pattern not in found]:
            raise ValueError(f"its configuration names modules that the base does not have, {unmatched[0]} first")


def merge_adapter(adapted: PeftModel, path: str) -> torch.nn.Module:
    """Return the base model with the adapter at `path` merged into its weights; it computes the same as the adapter.

    Raises `UserError` if it cannot be merged, because it depends on the prompt or changes one of two tied weights.
    """
    parameters = [id(parameter) for _, parameter in adapted.named_parameters(remove_duplicate=False)]
    for name, layer in adapted.named_modules():
        weight = getattr(layer.get_base_layer(), "weight", None) if isinstance(layer, BaseTunerLayer) else None
        if parameters.count(id(weight)) > 1:  # merged, it would change the other one as well
            raise UserError(f"{path}: cannot be merged, {name} shares its weights with another part of the base")
    with failure(f"{path}: the adapter cannot be merged into its base"):
        return adapted.merge_and_unload()
