"""The training sets on the Hugging Face hub: licences of the sources, and sending both parts with their card."""

import contextlib
from pathlib import Path

from datasets import load_from_disk
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from cropvlm.benchmarks import BENCHMARKS
from cropvlm.cli import UserError

UNKNOWN_LICENCE = "see the source"
HUB_ERRORS = (OSError, ValueError, HTTPError, LocalTokenNotFoundError)


def licence(dataset_path: str) -> str:
    """The licence that a data set's page on the hub declares, several with commas; `UNKNOWN_LICENCE` if it does not."""
    known = BENCHMARKS.get(dataset_path)
    hub_id = known.hub_id if known else dataset_path.split(":")[0]
    if not Path(dataset_path).exists():
        with contextlib.suppress(*HUB_ERRORS):
            card = HfApi().dataset_info(hub_id, timeout=10).card_data
            if card and (declared := card.get("license")):
                return declared if isinstance(declared, str) else ", ".join(declared)
    return UNKNOWN_LICENCE


def prepare_repository(repo: str) -> None:
    """Create the data set repository, private, if it is not there: before hours of the teacher's work, not after.

    Raises `UserError` if it cannot be written to.
    """
    try:
        HfApi().create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
    except HUB_ERRORS as error:
        raise UserError(
            f"--push_to_hub {repo}: {error}; log in with `hf auth login` and name a repository of yours"
        ) from error


def push(repo: str, folders: dict[str, Path]) -> None:
    """Send the saved parts (name -> folder) as configurations of the repository, then the card and the report.

    Raises `UserError`; what is saved here stays.
    """
    try:
        for part, folder in folders.items():
            load_from_disk(str(folder)).push_to_hub(repo, config_name=part, split="train")
        first = next(iter(folders.values()))
        card = DatasetCard.load(first / "README.md")
        # The hub's card already lists the configurations and their files.
        card.data = DatasetCardData(**{**card.data.to_dict(), **DatasetCard.load(repo).data.to_dict()})
        card.push_to_hub(repo, repo_type="dataset")
        for path in sorted(first.glob("teacher_report.*")):
            HfApi().upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repo, repo_type="dataset")
    except HUB_ERRORS as error:
        raise UserError(f"--push_to_hub {repo}: {error}; all is saved here, push again with --from_journal") from error
