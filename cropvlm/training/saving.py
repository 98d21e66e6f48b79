"""What a training run leaves behind: model, processor, model card, merged model, a copy on the hub."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import Trainer

from cropvlm.cli import UserError
from cropvlm.modeling import adapter_base, load_model, load_processor
from cropvlm.runtime.provenance import library_versions
from cropvlm.training.arguments import PolicyArguments, TrainerArguments, frozen_dtype

logger = logging.getLogger(__name__)

CARD = """---
{card_data}
---

# {name}

A cropper of [CropVLM](https://huggingface.co/papers/2511.19820), trained by {stage}: it reads an image and a question
and writes the box, in percent of width and height, that helps another vision-language model to answer.

```bash
python3 generate_bbox.py --model_path {path} --longest_edge {longest_edge}
```

## Origin

- base model: `{base}`
- trained from: `{start}`
- data: `{data}`, {rows} rows

## Figures after {steps} steps

{figures}

## Settings

{settings}

## Versions

{versions}
"""


class CardMixin:
    """A trainer that writes this project's model card wherever TRL would write its own."""

    policy_arguments: PolicyArguments  # set before training

    def create_model_card(self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None) -> None:
        """Write `README.md` into the output folder: origin, figures, settings, versions."""
        if self.is_world_process_zero():
            card = ModelCard(model_card(self, model_name or Path(self.args.output_dir).name))
            card.save(Path(self.args.output_dir) / "README.md")


def model_card(trainer: Any, name: str) -> str:
    """The text of the model card as the run stands now."""
    args, policy = trainer.args, trainer.policy_arguments
    base = adapter_base(policy.base_model) or policy.base_model
    data = ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        datasets=None if Path(policy.dataset_path).is_dir() else [policy.dataset_path.split(":")[0]],
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        pipeline_tag="image-text-to-text",
        tags=sorted({"cropvlm", *trainer._tag_names}),
    )
    names = TrainerArguments.__annotations__ | type(args).__annotations__
    own_settings = {name: getattr(args, name) for name in names}
    return CARD.format(
        card_data=data.to_yaml(),
        name=name,
        stage=trainer._name,
        path=trainer.hub_model_id or args.output_dir,
        longest_edge=policy.longest_edge,
        base=base,
        start=policy.base_model,
        data=policy.dataset_path,
        rows=len(trainer.train_dataset),
        steps=trainer.state.global_step,
        figures=_listed(latest_figures(trainer.state.log_history)),
        settings=_listed(vars(policy) | own_settings),
        versions=_listed(library_versions()),
    )


def latest_figures(log_history: list[dict[str, Any]]) -> dict[str, Any]:
    """The last logged value of each figure."""
    latest = {key: value for entry in log_history for key, value in entry.items() if isinstance(value, (int, float))}
    return {key: f"{value:.4g}" for key, value in latest.items() if key != "step"}


def _listed(values: dict[str, Any]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in values.items()) or "- none"


def finish(trainer: Trainer, policy: PolicyArguments) -> None:
    """Save adapter (or model), processor and card; merge and push where asked for."""
    trainer.save_model()
    trainer.create_model_card()
    if policy.merge and trainer.is_world_process_zero():
        merge(Path(trainer.args.output_dir), frozen_dtype(trainer.args))
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def merge(folder: Path, dtype: Any) -> Path:
    """Write the adapter in `folder`, merged into its base, to `folder/merged`, with its processor; return that path."""
    merged = folder / "merged"
    load_model(str(folder), device="cpu", dtype=dtype).save_pretrained(merged)
    load_processor(str(folder)).save_pretrained(merged)
    logger.info("merged model: %s", merged)
    return merged


@contextmanager
def disk_errors(output_dir: str) -> Iterator[None]:
    """Turn a full disk into one line.

    Raises:
        UserError: no space was left while something was written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save names no reason.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "PytorchStreamWriter" in str(error):
            raise UserError(
                f"{output_dir}: the disk is full; make room and go on with --resume_from_checkpoint True"
            ) from error
        raise
