"""One step on a toy model, before data and models are loaded: settings that cannot be trained with end a run at once.

What TRL, transformers, peft and accelerate refuse is refused by themselves, whichever setting it is: a package that is
missing, an unknown loss, an optimizer's argument, a sampler that needs what rows do not have.
"""

import contextlib
import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import save_model
from transformers import (
    AutoConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from cropvlm.errors import failure
from cropvlm.modeling import adapter_base
from cropvlm.models.loading import NO_CODE

NEW_TOKENS = 2
WIDTH = 8


def rehearse(args: TrainingArguments, policy: Any, make_trainer: Callable[[TrainingArguments, Any], Trainer]) -> None:
    """Take one step with a toy model and toy rows in place of the real ones; seed again afterwards.

    args, policy: the settings, which stay as they are, for `make_trainer`.
    Raises `UserError` where the trainer cannot be made or a step cannot be taken.
    """
    processor = policy.load_processor()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        toy_rows(getattr(args, "generation_batch_size", 16)).save_to_disk(f"{folder}/rows")
        toys = _with_toy_rows(args, f"{folder}/rows"), _with_toy_models(policy, processor, f"{folder}/model")
        toys[1].dataset_path = f"{folder}/rows"
        with failure("these settings cannot be trained with"):
            _take_one_step(make_trainer(*toys))
    set_seed(args.seed)


def _with_toy_rows(args: TrainingArguments, rows: str) -> TrainingArguments:
    """A copy of the settings that names the toy rows, and writes and reports nothing."""
    args = copy.copy(args)
    vars(args).update({k: copy.deepcopy(v) for k, v in vars(args).items() if isinstance(v, dict | list)})
    args.output_dir, args.report_to, args.push_to_hub = rows, [], False
    args.dataloader_num_workers, args.dataloader_prefetch_factor, args.dataloader_persistent_workers = 0, None, False
    if args.eval_dataset_path is not None:
        args.eval_dataset_path, args.eval_split, args.eval_max_samples = rows, None, 1
    if hasattr(args, "max_completion_length"):
        args.max_completion_length = NEW_TOKENS
    return args


def _with_toy_models(policy: Any, processor: Any, folder: str) -> Any:
    """A copy of the settings that loads toys, kept in `folder`: TRL looks there for the reference of a whole model."""
    with failure(f"{policy.base_model}: its configuration cannot be read"):
        config = AutoConfig.from_pretrained(adapter_base(policy.base_model) or policy.base_model, **NO_CODE)

    def load(dtype: torch.dtype, device: Any = "cpu") -> Any:
        model = toy_model(processor, config.tie_word_embeddings).to(device, dtype)
        if policy.attn_implementation is not None:
            model.set_attn_implementation(policy.attn_implementation)
        # Not `model.save_pretrained`, which writes in the first of several processes alone.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        save_model(model, f"{folder}/model.safetensors", metadata={"format": "pt"})
        model.config.name_or_path = folder
        return model

    def load_policy(dtype: torch.dtype, processor: Any) -> Any:
        lora = policy.lora_config()
        return load(torch.float32) if lora is None else get_peft_model(load(dtype), lora)

    toy = copy.copy(policy)
    toy.split = toy.max_samples = None
    toy.load_processor, toy.load_policy = lambda: processor, load_policy
    toy.load_answerer = lambda dtype, device: (load(dtype, device).eval(), processor)
    toy.log_crops_every = 0
    return toy


def _take_one_step(trainer: Trainer) -> None:
    args = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:  # one engine a process
        return
    args.max_steps, args.save_strategy, args.eval_strategy, args.eval_on_start = 1, "no", "no", False
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()


def toy_rows(number: int) -> datasets.Dataset:
    """Rows of the schema, with boxes, that show a white image."""
    row = {"image": Image.new("RGB", (8, 8), "white"), "question": "What is it?", "answers": ["paper"]}
    return datasets.Dataset.from_list([{**row, "question_id": i, "bbox": [0, 0, 50, 50]} for i in range(number)])


def toy_model(processor: Any, tie_word_embeddings: bool) -> Idefics3ForConditionalGeneration:
    """An Idefics3 of one layer that takes what `processor` makes."""
    tile = processor.image_processor.max_image_size["longest_edge"]
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"model_type": "llama", "num_key_value_heads": 1, "max_position_embeddings": 8192, **sizes}
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    config = Idefics3Config(
        vision_config={"image_size": tile, "patch_size": tile // math.isqrt(processor.image_seq_len), **sizes},
        text_config=text | tokens,
        scale_factor=1,
        tie_word_embeddings=tie_word_embeddings,
        image_token_id=processor.image_token_id,
        pad_token_id=tokens["pad_token_id"],
    )
    return Idefics3ForConditionalGeneration(config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars: the real trainer gives them again."""
    bars = not datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()
