"""The training sets on the Hugging Face Hub: licences of the sources, and sending both parts with their card.

The client, the cards' YAML and datasets raise exceptions of a dozen kinds: all are caught, and told in one line.
"""

import contextlib
import os
from pathlib import Path

from datasets import load_from_disk
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from cropvlm.data.catalog import locate
from cropvlm.errors import failure

UNKNOWN_LICENCE = "see the source"


def licence(dataset_path: str) -> str:
    """Return the licence on a data set's page, several with commas; `UNKNOWN_LICENCE` if none can be read there."""
    with contextlib.suppress(Exception):
        if not os.path.exists(dataset_path):  # noqa: PTH110 (a name may be too long for a path)
            declared = HfApi().dataset_info(locate(dataset_path).source, timeout=10).card_data["license"]
            names = [declared] if isinstance(declared, str) else [name for name in declared if isinstance(name, str)]
            return ", ".join(" ".join(name.split()) for name in names) or UNKNOWN_LICENCE
    return UNKNOWN_LICENCE


def prepare_repository(repo: str) -> None:
    """Create the data set repository, private, if it is not there: before hours of the teacher's work, not after.

    Raises `UserError` if it cannot be written to.
    """
    login = "log in with `hf auth login` and name a repository of yours"
    with failure(f"the repository {repo} cannot be made; {login}"):
        HfApi().create_repo(repo, repo_type="dataset", private=True, exist_ok=True)


def push(repo: str, folders: dict[str, Path]) -> None:
    """Send the saved parts (name -> folder) as configurations of the repository, then the card and the report.

    Raises `UserError`; what is saved here stays.
    """
    again = "all is saved here, push again with --from_journal"
    with failure(f"the data set cannot be sent to {repo}; {again}"):
        for part, folder in folders.items():
            load_from_disk(str(folder)).push_to_hub(repo, config_name=part, split="train")
        first = next(iter(folders.values()))
        card = DatasetCard.load(first / "README.md")
        # The Hub's card already lists the configurations and their files.
        card.data = DatasetCardData(**{**card.data.to_dict(), **DatasetCard.load(repo).data.to_dict()})
        card.push_to_hub(repo, repo_type="dataset")
        for path in sorted(first.glob("teacher_report.*")):
            HfApi().upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repo, repo_type="dataset")
