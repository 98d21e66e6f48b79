"""The training sets on the Hugging Face Hub: the licences of their sources, and both parts with their card."""

import contextlib
from pathlib import Path

from datasets import load_from_disk
from huggingface_hub import HfApi

from cropvlm.data.catalog import locate
from cropvlm.errors import failure

UNKNOWN_LICENCE = "see the source"


def licence(dataset_path: str) -> str:
    """Return the licence on a data set's page, several with commas; `UNKNOWN_LICENCE` if none can be read there."""
    source = locate(dataset_path).source
    with contextlib.suppress(Exception):  # the client and the parser of cards raise exceptions of a dozen kinds
        if not Path(source).exists():
            declared = HfApi().dataset_info(source, timeout=10).card_data["license"]
            names = [declared] if isinstance(declared, str) else [name for name in declared if isinstance(name, str)]
            return ", ".join(" ".join(name.split()) for name in names) or UNKNOWN_LICENCE
    return UNKNOWN_LICENCE


def push(repo: str, folders: dict[str, Path]) -> None:
    """Send the card and the report, then the saved parts (name -> folder), as configurations that the card lists.

    Raises `UserError`; what is saved here stays.
    """
    with failure(f"the data set cannot be sent to {repo}; all is saved here, push again with --from_journal"):
        options = {"repo_id": repo, "repo_type": "dataset", "allow_patterns": ["README.md", "teacher_report.*"]}
        HfApi().upload_folder(folder_path=folders["sft"], **options)
        for part, folder in folders.items():
            load_from_disk(folder).push_to_hub(repo, config_name=part, split="train")
