"""Processors and models: loading from a hub id, a folder or an adapter, LoRA, the answer log-likelihood."""

import contextlib
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_greater_or_equal
from transformers.utils.peft_utils import find_adapter_config_file

from cropvlm.cli import UserError
from cropvlm.encoding import chat_text, drop_token, model_inputs, prepare
from cropvlm.prompts import answer_completion, answerer_messages

logger = logging.getLogger(__name__)

END_OF_UTTERANCE = "<end_of_utterance>"
# Every linear of language model, vision encoder and connector but SigLIP's `out_proj` (paper, training details).
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "proj"]
# What from_pretrained raises where no whole model lies: files missing, truncated or of another kind.
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def device_and_dtype(gpu: int | None = 0) -> tuple[torch.device, torch.dtype]:
    """Return GPU number `gpu` with bfloat16, or the CPU with float32 where CUDA or that GPU is missing.

    Args:
        gpu: index of the GPU; None or a negative number asks for the CPU.

    Raises:
        UserError: there are GPUs, but not this one.
    """
    if gpu is None or gpu < 0 or not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32
    if gpu >= torch.cuda.device_count():
        raise UserError(f"--gpu {gpu}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}; name one of them")
    return torch.device("cuda", gpu), torch.bfloat16


def load_processor(
    path: str,
    longest_edge: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    remedy: str = "leave --longest_edge out",
) -> ProcessorMixin:
    """Return the processor of a model, ready for batches (padding on the left).

    Args:
        path: hub id, `save_pretrained` folder, or PEFT adapter folder (its base's if it holds none).
        longest_edge: pixels of the longer side that an image is resized to (Idefics3 and SmolVLM).
        min_pixels, max_pixels: bounds on width x height of the resized image (Qwen2-VL and Qwen2.5-VL).
        remedy: what the user is told where a `longest_edge` cannot be set.

    Raises:
        UserError: no processor there, or its image sizes cannot be set in this way.
    """
    # torchvision has LANCZOS as PIL does, several times faster; before 0.27 it fell back to bicubic.
    backend = "torchvision" if is_torchvision_greater_or_equal("0.27") else "pil"
    processor = _first_processor([path, adapter_base(path)], path, backend)
    processor.tokenizer.padding_side = "left"
    _set_image_size(processor, path, longest_edge, min_pixels, max_pixels, remedy)
    return processor


def _first_processor(candidates: list[str | None], path: str, backend: str) -> ProcessorMixin:
    reason = "only a tokenizer there"
    for candidate in filter(None, candidates):
        try:
            processor = AutoProcessor.from_pretrained(candidate, backend=backend)
        except LOADING_ERRORS as error:
            reason = error
            continue
        if isinstance(processor, ProcessorMixin):
            return processor
    raise UserError(f"{path}: no processor there ({first_line(reason)}); name a hub id or a folder that holds one")


def _set_image_size(processor, path, longest_edge, min_pixels, max_pixels, remedy) -> None:
    image_processor = processor.image_processor
    size = _image_size(processor)
    by_area = {"shortest_edge", "longest_edge"} <= size.keys()  # Qwen's names for the bounds on the area
    if longest_edge is not None:
        if longest_edge_of(processor) is None:
            raise UserError(f"{path} resizes images by {size}, not to a longest edge of {longest_edge} px; {remedy}")
        image_processor.size = {"longest_edge": longest_edge}
    if min_pixels is not None or max_pixels is not None:
        if not by_area:
            raise UserError(f"--min_pixels/--max_pixels: {path} resizes images by {size}; leave the flags out")
        bounds = {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
        image_processor.size = bounds


def longest_edge_of(processor: ProcessorMixin) -> int | None:
    """Pixels of the longer side that an image is resized to (Idefics3, SmolVLM); None where another rule holds."""
    size = _image_size(processor)
    return None if "shortest_edge" in size else size.get("longest_edge")


def _image_size(processor: ProcessorMixin) -> dict[str, int]:
    return {key: value for key, value in dict(processor.image_processor.size).items() if value is not None}


def load_model(
    path: str,
    base_model_path: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
):
    """Return a model in evaluation mode; an adapter is merged into its base.

    Args:
        path: hub id, `save_pretrained` folder, or PEFT adapter folder (or one of its checkpoints).
        base_model_path: the adapter's base, where the one that its configuration names has moved.
        device: defaults to the first GPU, else the CPU.
        dtype: defaults to bfloat16 on a GPU and float32 on the CPU.

    Raises:
        UserError: no model there, or the adapter was trained on another base.
    """
    default_device, default_dtype = device_and_dtype()
    dtype = dtype or default_dtype
    if is_adapter(path):
        # Merged in fp32: in bf16 the sum would round most of a small adapter away.
        model = load_adapter(path, base_model_path, dtype=torch.float32).merge_and_unload()
        for parameter in model.parameters():  # the buffers stay: rotary frequencies are float32 in every dtype
            parameter.data = parameter.data.to(dtype)
    else:
        if base_model_path:
            logger.warning("%s is a whole model, no adapter: %s is not used", path, base_model_path)
        model = load_full_model(path, dtype)
    return model.to(device or default_device).eval()


def load_full_model(path: str, dtype: torch.dtype):
    """Return the image-text-to-text model at a hub id or in a `save_pretrained` folder, on the CPU.

    Raises:
        UserError: no model there, or some of its weights are missing.
    """
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except LOADING_ERRORS as error:
        raise UserError(
            f"{path}: cannot be loaded as an image-text-to-text model ({first_line(error)}); "
            "name a hub id or a save_pretrained folder"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; the model is incomplete")
    return model


def load_adapter(path: str, base_model_path: str | None = None, dtype=torch.float32, is_trainable=False) -> PeftModel:
    """Return the adapter at `path` on its base, on the CPU; the adapter's own weights are always float32.

    Raises:
        UserError: the base cannot be found, or the adapter was trained on another one.
    """
    base = base_model_path or adapter_base(path)
    if not base:
        raise UserError(f"{path}: adapter_config.json names no base model; add it there as base_model_name_or_path")
    model = load_full_model(base, dtype)
    _check_adapter_fits(model, path, base)
    try:
        return PeftModel.from_pretrained(model, path, is_trainable=is_trainable)
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: no adapter of {base} ({first_line(error)})") from error


@functools.cache
def check_model_path(path: str) -> None:
    """Ask once whether there is anything at `path`, before a loader looks for a dozen files one by one.

    Raises:
        UserError: no such folder, and no hub id that can be reached or lies in the cache.
    """
    if Path(path).is_dir():
        return
    # `models/sft_512` could be a hub id, but where there is a folder `models` the user means a folder.
    parent = Path(path).parent
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) or (parent.name and parent.is_dir()):
        raise UserError(f"{path}: no such folder; name a hub id or the folder of a model or adapter")
    try:
        if any(isinstance(try_to_load_from_cache(path, name), str) for name in ("config.json", "adapter_config.json")):
            return
        hf_hub_download(path, "config.json")
    except RemoteEntryNotFoundError:  # the repository is there: an adapter has no config.json
        return
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: no such folder, nor a hub id at hand ({first_line(error)})") from error


def is_adapter(path: str) -> bool:
    """Whether `path` (hub id or folder) holds a PEFT adapter rather than a whole model."""
    check_model_path(path)
    if Path(path).is_dir():
        return (Path(path) / "adapter_config.json").is_file()
    with contextlib.suppress(*LOADING_ERRORS):
        return find_adapter_config_file(path) is not None
    return False


def adapter_base(path: str) -> str | None:
    """The base model that an adapter's configuration names; None if `path` is no adapter."""
    if not is_adapter(path):
        return None
    try:
        return PeftConfig.from_pretrained(path).base_model_name_or_path
    except LOADING_ERRORS as error:
        raise UserError(f"{path}: adapter_config.json cannot be read ({first_line(error)})") from error


def _check_adapter_fits(model, path: str, base: str) -> None:
    """Compare every LoRA matrix with its linear; PEFT skips in silence what has no place in the base."""
    weights = Path(path) / "adapter_model.safetensors"
    if not weights.is_file():
        return
    modules = dict(model.named_modules())
    try:
        with safe_open(weights, "pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{weights}: damaged ({first_line(error)}); take another checkpoint") from error
    for name, shape in shapes.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").split(".lora_A.")[0]
        in_features = getattr(modules.get(module), "in_features", None)
        if in_features != shape[1]:
            raise UserError(
                f"{path}: adapter of another base than {base}: {module} takes {in_features} features there, "
                f"{shape[1]} in the adapter; name the right base model"
            )


def stop_token_ids(model, processor) -> list[int]:
    """The ids that end a turn: `<end_of_utterance>` where the tokenizer has it, else what the model names.

    Idefics3 pads with `<|im_end|>`; its text configuration also calls that the end of sequence, it is not.
    """
    tokenizer = processor.tokenizer
    if END_OF_UTTERANCE in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)]
    named = model.generation_config.eos_token_id
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    return sorted({*named, tokenizer.eos_token_id} - {None})


def first_line(error: object) -> str:
    """The first line of an error's message, cut to a length that fits into ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_policy(path: str, lora: LoraConfig | None, dtype: torch.dtype):
    """Return the model to train, on the CPU: its trainable weights are float32, its frozen ones `dtype`.

    Args:
        path: an adapter folder or checkpoint, which is trained on as it is, or a whole model.
        lora: the fresh adapter that a whole model gets; None trains all weights of a whole model.
        dtype: of the frozen weights; the computation follows it through autocast.

    Raises:
        UserError: as the loaders, or an adapter with `lora` None.
    """
    if is_adapter(path):
        if lora is None:
            raise UserError(
                f"{path} is an adapter, so --use_lora False has nothing to train whole; name a merged model"
            )
        return load_adapter(path, dtype=dtype, is_trainable=True)
    if lora is None:
        return load_full_model(path, torch.float32)
    return get_peft_model(load_full_model(path, dtype), lora)


@torch.no_grad()
def answer_log_likelihood(
    model,
    processor: ProcessorMixin,
    images: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    answers: Sequence[str],
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return log p of each answer's whole turn given images and question, (B,) float32, on the CPU.

    The turn is ` {answer.capitalize()}.` and the token that ends it; log p is the sum over its tokens, from one
    forward pass. Prompt and turn are tokenized apart, so that no character of an answer can be taken for the prompt's
    end. Logits are upcast to float32 before the log-softmax.

    Args:
        images: PIL images of each row, (B) lists; the same object in several rows is encoded once a batch.
        questions, answers: as in the data set, (B); an answer may be empty.
        batch_size: rows in one forward pass; None takes all.
    """
    rows = list(zip(images, questions, answers, strict=True))
    size = batch_size or max(1, len(rows))
    parts = [_log_likelihood(model, processor, rows[i : i + size]) for i in range(0, len(rows), size)]
    return torch.cat(parts) if parts else torch.zeros(0)


def _log_likelihood(model, processor, rows: list[tuple]) -> torch.Tensor:
    prompts = [(answerer_messages(question, len(images)), list(images)) for images, question, _ in rows]
    prepared = prepare(processor, prompts, model.dtype)
    turns = [_turn_ids(model, processor, prompt[0], answer) for prompt, (*_, answer) in zip(prompts, rows, strict=True)]
    prepared.input_ids = [ids + turn for ids, turn in zip(prepared.input_ids, turns, strict=True)]
    inputs = model_inputs(model, prepared, processor.tokenizer.pad_token_id)

    # Padding is on the left, so every turn ends where the batch ends.
    longest = max(map(len, turns))
    logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
    logits = logits[:, :-1].float()  # (B, T, V); the last logit has no target
    targets = inputs["input_ids"][:, -longest:]  # (B, T)
    token_log_probs = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (B, T)
    lengths = torch.tensor([len(turn) for turn in turns], device=targets.device)
    in_turn = torch.arange(longest, device=targets.device) >= longest - lengths.unsqueeze(1)  # (B, T)
    return token_log_probs.masked_fill(~in_turn, 0).sum(1).cpu()


def _turn_ids(model, processor, messages, answer: str) -> list[int]:
    """Token ids of the answer's turn, in which an image placeholder would stand for no image.

    A template that leaves a space or line break open gets no second one.
    """
    space = "" if chat_text(processor, messages)[-1].isspace() else " "
    text = drop_token(answer_completion(answer), processor.image_token)
    turn = processor.tokenizer(space + text, add_special_tokens=False)["input_ids"]
    return [*turn, end_of_turn_id(model, processor)]


def end_of_turn_id(model, processor) -> int:
    """The one token that the model is trained to end its turn with."""
    stop = stop_token_ids(model, processor)
    return processor.tokenizer.eos_token_id if processor.tokenizer.eos_token_id in stop else stop[0]
