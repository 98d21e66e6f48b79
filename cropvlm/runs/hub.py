"""Repositories on the Hugging Face Hub."""

from huggingface_hub import HfApi

from cropvlm.errors import failure


def create_repository(name: str, repo_type: str, private: bool | None) -> str:
    """Make a repository unless it is there, before hours of work and not after; return its full name.

    repo_type: `model` or `dataset`. Raises `UserError` where it cannot be made or reached.
    """
    login = "log in with `hf auth login` and name a repository of yours"
    with failure(f"cannot make or reach the repository {name} on the Hub; {login}"):
        return HfApi().create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
