"""The size of a micro-step: TRL's gradient accumulation, as memory allows.

What `per_device_train_batch_size` x `gradient_accumulation_steps` make is the step; `--micro_batch_size` says how it is
divided into micro-steps, whole groups of completions each.
"""

import logging
from typing import Any

import torch
from accelerate.utils import gather_object

from cropvlm.errors import UserError
from cropvlm.models.batches import free_bytes

logger = logging.getLogger(__name__)

GPU_SHARE = 0.75  # of the memory that models and optimiser leave free
CPU_BYTES = 4 << 30
# Values kept for the backward pass, in multiples of the hidden size, of a text token or vision patch in each layer;
# with dropout (True) its masks and inputs too. Peak memory of SmolVLM-256M's geometry under the release's LoRA.
KEPT_VALUES = {False: (28, 21), True: (33, 25)}
TRAINED_BYTES = 16  # of a trained weight besides itself: gradient, AdamW's two moments, the frozen reference's copy
TEXT_TOKENS = 100  # of a question, its template and its box


def set_micro_batches(args: Any, model: Any, processor: Any) -> None:
    """Divide the step that `args` name into micro-steps of `micro_batch_size` rows (completions in GRPO) at most.

    Changes per_device_train_batch_size, gradient_accumulation_steps and steps_per_generation, but not their product.
    model: the policy, on any device. With a loss of TRL's that would be another one in smaller micro-steps, and under
    DeepSpeed, which has taken the sizes over from `args` already, "auto" changes nothing and a size is a `UserError`.
    """
    given = args.per_device_train_batch_size
    reasons = [f"with --{name} TRL takes a mean over each micro-step" for name in differs_by_micro_batch(args)]
    reasons += ["DeepSpeed has its own"] if args.deepspeed_plugin else []
    if reasons:
        if args.micro_batch_size != "auto" and args.micro_batch_size < given:
            raise UserError(
                f"--micro_batch_size {args.micro_batch_size}: {reasons[0]}; "
                "set --per_device_train_batch_size and --gradient_accumulation_steps instead"
            )
        return
    step = given * args.gradient_accumulation_steps
    generated = given * getattr(args, "steps_per_generation", args.gradient_accumulation_steps)
    group = getattr(args, "num_generations", 1)
    group = group if given % group == 0 else 1  # a group spread over several micro-steps stays so
    sizes = [size for size in range(group, step + 1, group) if step % size == 0 and generated % size == 0]
    most = args.micro_batch_size
    if most == "auto":
        most = _rows_that_fit(args, model, processor, group)
    size = max((size for size in sizes if size <= most), default=sizes[0])
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, step // size
    if hasattr(args, "steps_per_generation"):
        args.steps_per_generation = generated // size
    logger.info("%d of a step's %d rows go through the model at once", size, step)


def differs_by_micro_batch(args: Any) -> list[str]:
    """The settings under which TRL's own loss takes a mean within each micro-step, not over the step."""
    whole_step = {"top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False}
    names = [name for name, value in whole_step.items() if getattr(args, name, value) != value]
    return names + ["loss_type"] * (getattr(args, "loss_type", None) == "bnpo")


def _rows_that_fit(args: Any, model: Any, processor: Any, group: int) -> int:
    """Rows for which the memory should do, the fewest of all processes'."""
    tiles, image_tokens = largest_image(processor)
    dropout = not getattr(args, "disable_dropout", False) and any(
        isinstance(module, torch.nn.Dropout) and module.p for module in model.modules()
    )
    itemsize = 2 if args.bf16 or args.fp16 else 4
    tokens = group * (image_tokens + TEXT_TOKENS)
    group_bytes = activation_bytes(model.config, tokens, tiles, itemsize, dropout)
    free = _free_bytes(args.device, model)
    rows = min(gather_object([group * int(free / group_bytes)]))
    each = group_bytes / group / 2**30
    logger.info("an estimated %.3f GiB a row, %.1f GiB to fill: room for %d rows", each, free / 2**30, rows)
    return rows


def largest_image(processor: Any) -> tuple[int, int]:
    """(tiles, tokens) of a square image, which is the largest that `processor` makes."""
    edge = processor.image_processor.size["longest_edge"]
    tiles = max(1, processor.image_processor.get_number_of_image_patches(edge, edge, {})[0])
    return tiles, tiles * processor.image_seq_len + 2 * tiles + 6  # and the marks around tiles


def activation_bytes(config: Any, tokens: int, tiles: float, itemsize: int, dropout: bool = False) -> int:
    """Return about how many bytes the forward pass of an Idefics3 keeps for the backward pass.

    tokens: of the text model, padding included. tiles: images of the vision encoder. itemsize: bytes of a value.
    dropout: whether the adapter has some.
    """
    text, vision = config.get_text_config(), config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    of_token, of_patch = KEPT_VALUES[dropout]
    text_values = of_token * tokens * text.num_hidden_layers * text.hidden_size
    vision_values = of_patch * tiles * patches * vision.num_hidden_layers * vision.hidden_size
    return int((text_values + vision_values) * itemsize)


def _free_bytes(device: torch.device, model: Any) -> int:
    """Bytes to fill once the model has moved to `device` and the optimiser has its state there."""
    if device.type != "cuda":
        return CPU_BYTES
    weights = list(model.parameters())
    coming = sum(weight.nbytes for weight in weights if weight.device != device)
    coming += sum(TRAINED_BYTES * weight.numel() for weight in weights if weight.requires_grad)
    return max(0, int(GPU_SHARE * (free_bytes(device) - coming)))
