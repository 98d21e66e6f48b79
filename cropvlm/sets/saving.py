"""Both parts of the training data saved, whole, and nothing else touched."""

import argparse
import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from cropvlm.data.catalog import locate
from cropvlm.errors import UserError, failure
from cropvlm.runs.files import open_to_group, replacing
from cropvlm.runs.provenance import INPUTS, differences, rows_checksum
from cropvlm.sets.flags import Source
from cropvlm.sets.need_labels import gap_settings

logger = logging.getLogger(__name__)

# What a saved part consists of; cache and tmp are what datasets leaves there when a training script reads it.
OWN_FILES = ("*.arrow", "dataset_info.json", "state.json", "README.md", "sources.json", "teacher_report.*")
OWN_FILES += (INPUTS, "cache-*", "tmp*")
ANOTHER = "name another --output_path"


def output_folders(target: str, sources: Sequence[Source]) -> dict[str, Path]:
    """Return `{target}_sft` and `{target}_grpo`: free, or saved before and to be replaced.

    Raises `UserError` where the user's own files would be replaced: a source, a folder within or around one, a link,
    or a folder with anything else in it.
    """
    folders = {part: Path(f"{target}_{part}") for part in ("sft", "grpo")}
    with failure(f"cannot save to {target}; {ANOTHER}"):  # such as a name that is too long
        for folder in folders.values():
            if problem := _loss(folder, sources):
                raise UserError(f"{problem}; {ANOTHER}")
    return folders


def _loss(folder: Path, sources: Sequence[Source]) -> str | None:
    """Why the user's own files would be lost if a part were saved in `folder`; None where nothing would be."""
    if folder.is_symlink():
        return f"{folder} is a symbolic link, which would be replaced"
    if folder.exists():
        if not (folder / "dataset_info.json").is_file():
            return f"{folder} exists and is not a saved data set"
        names = sorted(file.name for file in folder.iterdir())
        if others := [name for name in names if not any(fnmatch(name, own) for own in OWN_FILES)]:
            return f"{folder} holds {others[0]}, which is not part of a saved data set and would be lost"
    here = folder.resolve()
    for source in sources:
        there = Path(locate(source.path).source)
        if there.exists() and (here.is_relative_to(there.resolve()) or there.resolve().is_relative_to(here)):
            return f"{folder} and the source {there} are the same folder, or one lies in the other"
    return None


def describe_inputs(
    args: argparse.Namespace, settings: dict[str, Any], rows: dict[str, Dataset], keys: dict[str, list[int]]
) -> dict[str, Any]:
    """Everything that determines the parts: settings and rows. keys: `row_keys` of each part."""
    need = gap_settings(args) | {"threshold": args.need_threshold} if args.label_need else None
    made = {"growth": args.growth, "teacher_box_format": args.teacher_box_format, "need": need}
    names = {"sources": [source.name for source in args.dataset_path]}
    return settings | made | names | {f"{part}_rows": rows_checksum(rows[part], keys[part]) for part in keys}


def code_before(folders: dict[str, Path], inputs: dict[str, Any]) -> int | None:
    """The exit code of the run that saved these parts; None to make them.

    They are made if a part is missing or comes from other inputs, or if rows failed that are asked again.
    """
    records = []
    for folder in folders.values():
        with contextlib.suppress(OSError, ValueError):
            records.append(json.loads((folder / INPUTS).read_text()))
    same = [not record["to_ask_again"] and not differences(record["inputs"], inputs) for record in records]
    if len(same) < len(folders) or not all(same):
        return None
    logger.info("%s: done before", " and ".join(map(str, folders.values())))
    return records[0]["exit_code"]


def save_whole(target: str, parts: dict[str, Dataset], files: dict[str, dict[str, bytes]]) -> None:
    """Save each part in `{target}_{part}`, with its files by name; all are complete before the first is in its place.

    Raises `UserError`; what the folders held before is then still there.
    """
    with failure(f"cannot save to {target}; {ANOTHER}"), contextlib.ExitStack() as stack:
        for part, rows in parts.items():
            new = stack.enter_context(replacing(f"{target}_{part}"))
            # By default the fingerprint is made of times and of the order of sets, which change from run to run. This
            # one is the same for the same rows, whose images may be gigabytes and are known by their ids here.
            names = ("source", "question_id", "question", "answers", "bbox", "teacher_response", "needed")
            content = json.dumps([[name, list(rows[name])] for name in names if name in rows.column_names])
            fingerprint = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
            rows.cast_column("image", Image(), new_fingerprint=fingerprint).save_to_disk(new)
            for name, file in files[part].items():
                (new / name).write_bytes(file)
            open_to_group(new)
