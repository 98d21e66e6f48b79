"""Identity of the models, data and libraries behind an output."""

import contextlib
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

# The files of a folder that from_pretrained reads.
MODEL_FILES = (
    *("*.safetensors", "*.bin", "*.index.json", "*config.json", "*.model", "*.jinja", "chat_template.json"),
    *("tokenizer*", "*tokens*.json", "vocab.*", "merges.txt"),
)
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "pillow")


def fingerprint(path: str | None) -> str | None:
    """A hash that changes with the model in a local folder, or the commit of a Hub id; None where neither is known.

    Only files of a model, its tokenizer and processor count: a run may write its own files beside them.
    """
    if path is None or not Path(path).is_dir():
        return path and hub_commit(path)
    files = sorted({file for pattern in MODEL_FILES for file in Path(path).glob(pattern) if file.is_file()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hash_of(repr(stats))


def hub_commit(path: str) -> str | None:
    """The commit that a Hub id stands for now, or offline the one in the cache; None for anything else."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    with contextlib.suppress(Exception):  # loaders go on with the cache as well, whatever the Hub answers
        return HfApi().model_info(path, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
    with contextlib.suppress(Exception):  # no Hub id at all
        folder = repo_folder_name(repo_id=path, repo_type="model")
        return Path(constants.HF_HUB_CACHE, folder, "refs", "main").read_text()
    return None


def data_settings(source: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Identity of rows: their source, and a hash of their ids and questions.

    source: keyword arguments of `cropvlm.data.rows.load_rows`. rows: what it returned.
    """
    columns = [list(rows["question_id"]), list(rows["question"])]
    return {
        "dataset_path": source["dataset_path"],
        "questions": hash_of(json.dumps(columns)),
        "dataset": source["dataset"],
        "split": source["split"],
    }


def hash_of(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that affect what a model says."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions
