"""Files that a training run leaves behind: model, processor, model card, merged model, a copy on the Hub.

All files of a result are written into a folder of their own and moved to their places when they are whole, the weights
after the others and the run's record last. Without weights no loader takes the folder for a model, and without its
record nobody takes the run for finished.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import Trainer, TrainingArguments

from cropvlm.errors import failure
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.adapters import adapter_base
from cropvlm.runs.files import open_to_group, replacing
from cropvlm.runs.hub import create_repository
from cropvlm.runs.provenance import library_versions
from cropvlm.trainers.checkpoints import RECORD, given, need_learnt, write_record
from cropvlm.trainers.settings import TrainerArguments

logger = logging.getLogger(__name__)

UNFINISHED = "_unfinished"  # in the output folder; the Hub's upload leaves out what begins with an underscore
MERGED = "merged"
WEIGHTS = ("adapter_model*", "model*.safetensors*")
CONFIGS = ("adapter_config.json", "config.json", "generation_config.json")


def save_card(trainer: Any, folder: str | Path, name: str) -> None:
    """Write the model card of a run, as it stands now, into a folder."""
    args, policy, stage = trainer.args, trainer.policy_arguments, trainer._name
    path, base = args.hub_model_id or args.output_dir, adapter_base(policy.base_model) or policy.base_model
    data = ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        datasets=None if Path(policy.dataset_path).is_dir() else [policy.dataset_path.split(":")[0]],
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        pipeline_tag="image-text-to-text",
        tags=sorted({"cropvlm", *trainer._tag_names}),
    )
    need = ""
    if learnt := need_learnt(policy):
        setting = f"`{learnt['answerer']}` at {learnt['longest_edge']} px"
        need = f"\n- whether to crop: learnt for {setting}; another answerer or size needs other crops"
    names = TrainerArguments.__annotations__ | type(args).__annotations__
    lists = {
        f"Figures after {trainer.state.global_step} steps": latest_figures(trainer.state.log_history),
        "Settings": given(vars(policy)) | {name: getattr(args, name) for name in names},
        "Versions": library_versions(),
    }
    sections = [
        f"## {title}\n\n" + ("\n".join(f"- {key}: {value}" for key, value in values.items()) or "- none")
        for title, values in lists.items()
    ]
    card = f"""---
{data.to_yaml()}
---

# {name}

A cropper of [CropVLM](https://huggingface.co/papers/2511.19820), trained by {stage}: it reads an image and a question
and writes the box, in percent of width and height, that helps another vision-language model to answer.

```bash
python3 generate_bbox.py --model_path {path} --longest_edge {policy.longest_edge}
```

```python
from cropvlm import Cropper
from cropvlm.data.images import open_image

cropper = Cropper("{path}", longest_edge={policy.longest_edge})
images = cropper.views(open_image("sign.jpg"), "What is written on the sign?")  # the image and its crop
```

## Origin

- base model: `{base}`
- trained from: `{policy.base_model}`
- data: `{policy.dataset_path}`, {len(trainer.train_dataset)} rows{need}

"""
    ModelCard(card + "\n\n".join(sections) + "\n").save(Path(folder) / "README.md")


def latest_figures(log_history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last logged value of each figure."""
    latest = {key: value for entry in log_history for key, value in entry.items() if isinstance(value, (int, float))}
    # `train_runtime` and the like are sums over the time since the last resume.
    return {key: f"{value:.4g}" for key, value in latest.items() if key != "step" and not key.startswith("train_")}


def save_result(trainer: Trainer, run: dict[str, dict]) -> None:
    """Put adapter (or model), processor, card and record into the output folder, whole or not at all."""
    folder = Path(trainer.args.output_dir)
    new = folder / UNFINISHED
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")  # TRL's frozen copy of the SFT adapter: only checkpoints need it
    if trainer.args.should_save:
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed here
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(new), _internal_call=True)  # the call of a user would push what is there so far
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        save_card(trainer, new, folder.absolute().name)
        _put_in_place(new, folder, run)


def _put_in_place(new: Path, folder: Path, run: dict[str, dict]) -> None:
    """Replace the result in `folder` by the one in `new`."""
    open_to_group(new)
    (folder / RECORD).unlink(missing_ok=True)  # until the new one is whole, this run is not finished
    for pattern in (*WEIGHTS, *CONFIGS):  # an adapter may replace a whole model, or the other way round
        for old in folder.glob(pattern):
            old.unlink()
    weights = sorted(path for pattern in WEIGHTS for path in new.glob(pattern))  # an index comes after its shards
    others = [path for path in new.iterdir() if path not in weights]
    if (folder / MERGED).exists():
        (folder / MERGED).rename(new / MERGED)
    for path in (*others, *weights):
        path.replace(folder / path.name)
    shutil.rmtree(new)
    # Without the card, which a user may edit.
    write_record(folder, run, (Path(path.name) for path in (*others, *weights) if path.name != "README.md"))


def add_merged(folder: Path, dtype: Any) -> None:
    """Write a finished adapter, merged into its base, with its processor to `folder/merged` unless it is there."""
    if not (folder / MERGED).exists():
        with replacing(folder / MERGED) as new:
            load_model(str(folder), device="cpu", dtype=dtype).save_pretrained(new)
            load_processor(str(folder)).save_pretrained(new)
            open_to_group(new)
        logger.info("merged model written")


def create_repo(args: TrainingArguments) -> str:
    """Make the run's repository on the Hub unless it is there; return its full name."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return create_repository(name, "model", args.hub_private_repo)


def push(args: TrainingArguments, repo_id: str) -> None:
    """Upload the result, without checkpoints, to its repository on the Hub."""
    with failure(f"{args.output_dir} is whole, but cannot be pushed to {repo_id} on the Hub"):
        HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=args.output_dir,
            commit_message="End of training",
            ignore_patterns=["_*", "checkpoint-*", ".*"],
            revision=args.hub_revision,
        )
