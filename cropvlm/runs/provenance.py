"""Identity by content: which model, which rows, which code, and whether two runs are the same."""

import contextlib
import functools
import hashlib
import json
import platform
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import data_commit
from cropvlm.errors import shorten
from cropvlm.models.revisions import split_revision

# The files of a folder that from_pretrained reads.
MODEL_FILES = ["*.safetensors", "*.bin", "*.index.json", "*config.json", "*.model", "*.jinja", "chat_template.json"]
MODEL_FILES += ["tokenizer*", "*tokens*.json", "vocab.*", "merges.txt"]
SOURCES = "sources.json"  # in the folder of a training set
INPUTS = "inputs.json"  # there too: what it was made from
RECORD = "run.json"  # of a finished training or a checkpoint, in its folder
LIBRARIES = ["torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "trl", "pillow", "numpy"]
LIBRARIES += ["qwen-vl-utils", "rapidfuzz"]
# Settings that name something by a path, and the setting that says what it holds: a copied folder is the same model.
HELD_BY = dict.fromkeys(("model_path", "base_model_path", "vqa_model_path", "reward_model"), "model_files")
HELD_BY["dataset_path"] = "questions"


def differences(theirs: Mapping, ours: Mapping, contents: Sequence[Mapping] | None = None) -> list[str]:
    """The settings in which two runs differ, in words; a missing one counts as None, a tuple as a list.

    contents: for each run, checksums of what its paths hold, by setting; by default as `HELD_BY` says. A path counts by
    what it holds, where both runs know that.

    >>> differences({"size": 64, "model_path": "a", "model_files": 7}, {"model_path": "b", "model_files": 7})
    ['size 64 there, None here']
    """
    theirs, ours = json.loads(json.dumps([theirs, ours]))  # as they are read back from a file
    if contents is None:  # same names are left to the setting of their content
        held_by = {name: key for name, key in HELD_BY.items() if theirs.get(name) != ours.get(name)}
        contents = [{name: run.get(key) for name, key in held_by.items()} for run in (theirs, ours)]
    found = []
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(name), ours.get(name)
        held = [known.get(name) for known in contents]
        if (there == here) if None in held else (held[0] == held[1]):
            continue
        seen = "has changed" if there == here else f"there, {shorten(repr(here))} here"
        found.append(f"{name} {shorten(repr(there))} {seen}")
    return found


def model_checksum(path: str | None, base: str | None = None) -> str | None:
    """A checksum of the model in a local folder, or the commit of a Hub id; None where neither is known.

    Only the files of a model, its tokenizer and processor count: a run may write its own files beside them. An adapter
    includes its base: `base`, or the one that its configuration names.
    """
    if path is None:
        return None
    if not Path(path).is_dir():
        from huggingface_hub import resolve_revision

        name, revision = split_revision(path)
        with contextlib.suppress(Exception):  # else neither the Hub nor the cache knows it
            own = resolve_revision(name, revision=revision).resolved
            return hash_of(f"{own} {model_checksum(base)}") if base else own
        return None
    if base is None:
        with contextlib.suppress(Exception):  # no such file, or not the JSON of an adapter
            named = json.loads((Path(path) / "adapter_config.json").read_text())["base_model_name_or_path"]
            base = named if isinstance(named, str) else None
    files = {file for pattern in MODEL_FILES for file in Path(path).glob(pattern) if file.is_file()}
    held = sorted((file.name, file_checksum(file)) for file in files if file.name != "training_args.bin")
    return hash_of(repr((held, base and (model_checksum(base) or base))), digits=64)


def describe_model(path: str, base: str | None = None) -> dict[str, Any]:
    """The checksum of a model and `training` of the record of its training (docs/files.md)."""
    return {"checksum": model_checksum(path, base)} | training_record(path).get("training", {})


def seen_rows(path: str) -> set[str]:
    """The `row_hashes` of the rows on which a model, or one that it started from, was trained, as far as known."""
    return set(training_record(path).get("seen_rows", "").split())


def training_record(path: str) -> dict[str, Any]:
    """The record of the training that made a model; empty without one for its weights."""
    from huggingface_hub import hf_hub_download

    with contextlib.suppress(Exception):  # no record, or none of this form
        folder = Path(path)
        if not folder.is_dir():
            name, revision = split_revision(path)
            folder = Path(hf_hub_download(name, RECORD, revision=revision)).parent
        elif folder.name == "merged" and not (folder / RECORD).exists():
            folder = folder.parent
        record = json.loads((folder / RECORD).read_text())
        weights = {name: checksum for name, checksum in record["files"].items() if name.endswith(".safetensors")}
        if all(file_checksum(folder / name) == checksum for name, checksum in weights.items() if Path(path).is_dir()):
            return record if isinstance(record["training"], dict) else {}
    return {}


def file_checksum(file: Path) -> str:
    """The SHA-256 of a file, which is read again only if it has changed."""
    stat = file.stat()
    return _checksum(file.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _checksum(file: Path, *_: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def image_checksums(rows: Any) -> list[int]:
    """A checksum of each row's image file, embedded or a file of its own; nothing is decoded."""
    from tqdm import tqdm

    from cropvlm.data.images import encoded_image

    if "image" not in rows.column_names:
        return [0] * len(rows)
    images = rows.select_columns(["image"]).with_format(None)["image"]  # without what rows are read through
    return [zlib.crc32(encoded_image(image)) for image in tqdm(images, desc="checksums", delay=5)]


def row_keys(rows: Any) -> list[int]:
    """A checksum of each row's question and image file."""
    questions = (question.encode(errors="surrogatepass") for question in rows.with_format(None)["question"])
    return [zlib.crc32(question, image) for question, image in zip(questions, image_checksums(rows), strict=True)]


def row_hashes(rows: Any, keys: list[int]) -> set[str]:
    """A hash of each row's question and image, the same in every data set. keys: of `row_keys`."""
    # 40 bits confuse one of 10,000 rows with one of 100,000 others once in a thousand times.
    questions = rows.with_format(None)["question"]
    return {hash_of(repr((key, question)), digits=10) for key, question in zip(keys, questions, strict=True)}


def rows_checksum(rows: Any, keys: list[int] | None = None) -> str:
    """A checksum of the rows' ids, questions, references, boxes, labels and images, in order. keys: of `row_keys`."""
    names = [name for name in ("question_id", "answers", "bbox", "needed") if name in rows.column_names]
    columns = {name: list(rows.with_format(None)[name]) for name in names}
    return hash_of(json.dumps([columns, keys or row_keys(rows)]), digits=64)


def sources_of(path: str, rows: Any) -> list[dict[str, Any]]:
    """Where rows come from: `name`, `path`, `split` and `commit` of each source.

    path: of the data set. What create_dataset.py made says so itself, in `sources.json`.
    """
    with contextlib.suppress(OSError, ValueError):
        return json.loads((Path(path) / SOURCES).read_text())
    source = {"name": dataset_name(path), "path": path, "split": rows.split and str(rows.split), "commit": None}
    with contextlib.suppress(Exception):  # the Hub does not answer any more
        source["commit"] = data_commit(path)
    return [source]


def saved_rows(path: str | Path) -> str | None:
    """A hash of what a saved data set says of its own rows, none of which is read; None for anything else."""
    # The fingerprint of create_dataset.py is made of the rows' texts and boxes; its `inputs.json` knows the images.
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        known = [json.loads((Path(path) / "state.json").read_text())["_fingerprint"]]
        with contextlib.suppress(OSError):
            inputs = json.loads((Path(path) / INPUTS).read_text())["inputs"]
            known += [inputs.get("sft_rows"), inputs.get("grpo_rows")]
        return hash_of(json.dumps(known))
    return None


def rows_changed(record: Mapping[str, Any], path: str | Path) -> bool:
    """Whether a saved data set holds other rows than when a training recorded them, as far as both are known."""
    before, now = record.get("saved_rows"), saved_rows(path)
    return None not in (before, now) and before != now


def questions_hash(rows: Any) -> str:
    """A hash of the ids and questions of rows."""
    return hash_of(json.dumps([list(rows["question_id"]), list(rows["question"])]))


def references_hash(rows: Any) -> str | None:
    """A hash of the ids and references of rows; None for rows without references."""
    if "answers" not in rows.column_names:
        return None
    return hash_of(json.dumps([list(rows["question_id"]), list(rows["answers"])]))


def hash_of(text: str, digits: int = 16) -> str:
    """The first hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


@functools.cache
def library_versions() -> dict[str, str]:
    """The versions of Python and the libraries, this project's commit, and the name of the GPU."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    root = Path(__file__).resolve().parents[2]
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]  # `+`: files differ from it
    if (root / ".git").exists():  # not the repository of a folder around this one
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.check_output(describe, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=10)
            versions["cropvlm"] = said.strip()
    with contextlib.suppress(Exception):  # no torch, no driver
        import torch

        versions["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return versions


def peak_memory() -> dict[str, float]:
    """`peak_memory_gib`: the most GPU memory that this process's tensors took; empty without any."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return {"peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if used else {}
