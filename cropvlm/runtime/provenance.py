"""What identifies the models, data and libraries behind an output."""

import contextlib
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

# What from_pretrained reads of a folder.
MODEL_FILES = ("*.safetensors", "*.bin", "*.index.json", "*config.json", "*.model", "*.jinja", "chat_template.json")


MODEL_FILES += ("tokenizer*", "*tokens*.json", "vocab.*", "merges.txt")


def fingerprint(path: str | None) -> str | None:
    """What tells whether the model in a local folder has changed under its name; None for a hub id.

    Only files of a model, its tokenizer and processor count: a run may write its own files beside them.
    """
    if path is None or not Path(path).is_dir():
        return None
    files = sorted({file for pattern in MODEL_FILES for file in Path(path).glob(pattern) if file.is_file()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def questions_key(rows: Any) -> str:
    """What tells whether a data set has other rows than before under its name: a hash of its ids and questions."""
    columns = [list(rows["question_id"]), list(rows["question"])]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:16]


LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "pillow")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide what a model says, as installed."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions
