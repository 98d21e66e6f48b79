"""Both parts of the training data saved together or not at all, and nothing else touched."""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from cropvlm.errors import UserError, failure, one_line
from cropvlm.runs.files import open_to_group
from cropvlm.runs.processes import rank
from cropvlm.runs.provenance import INPUTS, differences, rows_checksum
from cropvlm.sets import hub
from cropvlm.sets.need_labels import gap_settings
from cropvlm.sets.sources import Source

logger = logging.getLogger(__name__)

# What a saved part consists of; cache and tmp are what datasets leaves there when a training script reads it.
OWN_FILES = ("*.arrow", "dataset_info.json", "state.json", "README.md", "sources.json", "teacher_report.*")
OWN_FILES += (INPUTS, "cache-*", "tmp*")
ANOTHER = "name another --output_path"
MARKER = ".made_by_create_dataset"  # tells a folder that an interrupted run left from one of the user's


def output_folders(target: str, sources: Sequence[Source]) -> dict[str, Path]:
    """Return `{target}_sft` and `{target}_grpo`: free, or saved before and to be replaced.

    Raises `UserError` where the user's own files would be replaced: a source, a folder within or around one, a link,
    or a folder with anything else in it.
    """
    folders = {part: Path(f"{target}_{part}") for part in ("sft", "grpo")}
    with failure(f"cannot save to {target}; {ANOTHER}"):  # such as a name that is too long
        for folder in folders.values():
            _check_replaceable(folder)
            for source in sources:
                _check_apart(folder, source)
    return folders


def _check_replaceable(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link, which would be replaced; {ANOTHER}")
    if not folder.exists():
        return
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder} exists and is not a saved data set; {ANOTHER}")
    if others := sorted(
        file.name for file in folder.iterdir() if not any(fnmatch(file.name, own) for own in OWN_FILES)
    ):
        told = f"{folder} holds {others[0]}, which is not part of a saved data set and would be lost"
        raise UserError(f"{told}; {ANOTHER}")


def _check_apart(folder: Path, source: Source) -> None:
    """Folder and source may be links or relative, and one may lie in the other."""
    for path in (source.path, source.path.rpartition(":")[0]):  # of a folder with a configuration the part before it
        if not path or not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
            continue
        there, here = Path(path).resolve(), folder.resolve()
        if there == here or there in here.parents or here in there.parents:
            told = f"{folder} and the source {path} are the same folder, or one lies in the other"
            raise UserError(f"{told}; {ANOTHER}")


def describe_inputs(
    args: argparse.Namespace, settings: dict[str, Any], rows: dict[str, Dataset], keys: dict[str, list[int]]
) -> dict[str, Any]:
    """What determines the parts: the settings of the responses, what is made of them, and the rows of each part.

    args: the flags. keys: of the rows of each part, see `cropvlm.runs.provenance.row_keys`.
    """
    need = gap_settings(args) | {"threshold": args.need_threshold} if args.label_need else None
    made = {"growth": args.growth, "teacher_box_format": args.teacher_box_format, "need": need}
    names = {"sources": [source.name for source in args.dataset_path]}
    return settings | made | names | {f"{part}_rows": rows_checksum(rows[part], keys[part]) for part in rows}


def code_before(folders: dict[str, Path], inputs: dict[str, Any], repository: str | None = None) -> int | None:
    """The exit code of the run that saved these parts from the same inputs; None where they are to be made.

    They are to be made where a part is missing or comes from other inputs, and where rows failed that are asked again.
    repository: where the parts are sent then.
    """
    records = []
    for folder in folders.values():
        with contextlib.suppress(OSError, ValueError):
            records.append(json.loads((folder / INPUTS).read_text()))
    inputs = json.loads(json.dumps(inputs))  # tuples become lists
    same = [not record["to_ask_again"] and not differences(record["inputs"], inputs) for record in records]
    if len(same) < len(folders) or not all(same):
        return None
    logger.info("%s: done before", " and ".join(map(str, folders.values())))
    if repository and rank() == 0:
        hub.prepare_repository(repository)
        hub.push(repository, folders)
    return records[0]["exit_code"] if rank() == 0 else 0


def save_whole(target: str, parts: dict[str, Dataset], files: dict[str, dict[str, bytes]]) -> None:
    """Save each part in `{target}_{part}`, with its files by name: complete beside the targets, then moved there.

    Raises `UserError`; what the folders held before is then still there.
    """
    folders = {part: Path(f"{target}_{part}") for part in parts}
    work = Path(target).with_name(f".{Path(target).name}.tmp")
    try:
        _clear(work, folders.values())
        work.mkdir()
        (work / MARKER).touch()
        for part, rows in parts.items():
            # The fingerprint is by default made of times and of the order of sets, which change from run to run.
            rows = rows.cast_column("image", Image(), new_fingerprint=_fingerprint(rows))
            rows.save_to_disk(work / part)
            for name, content in files[part].items():
                (work / part / name).write_bytes(content)
        open_to_group(work)
        for folder in folders.values():
            if folder.exists():
                folder.rename(work / f"{folder.name}.old")
        for part, folder in folders.items():
            (work / part).rename(folder)
    except UserError:
        raise
    except Exception as error:  # a full disk has many names: OSError, ArrowInvalid, RuntimeError
        told = f"cannot save {' and '.join(map(str, folders.values()))}: {one_line(error)}"
        raise UserError(f"{told}; {ANOTHER}") from error
    finally:
        with contextlib.suppress(OSError, UserError):  # what went wrong was said above
            _clear(work, folders.values())


def _clear(work: Path, folders: Iterable[Path]) -> None:
    """Remove the folder that a run works in, now or before it was killed; what it had moved there goes back."""
    if not os.path.lexists(work):
        return
    is_folder = work.is_dir() and not work.is_symlink()
    contents = [path for path in work.iterdir() if path.name != MARKER] if is_folder else []
    if not is_folder or (contents and not (work / MARKER).exists()):
        raise UserError(f"{work} is in the way: this script did not make it; {ANOTHER}")
    for folder in folders:
        old = work / f"{folder.name}.old"
        if old.exists() and not folder.exists():
            old.rename(folder)
    for path in contents:
        shutil.rmtree(path, ignore_errors=True)
    (work / MARKER).unlink(missing_ok=True)  # last: killed before, the next run still knows the folder
    work.rmdir()


def _fingerprint(rows: Dataset) -> str:
    """The same for the same rows, whose images may be gigabytes and are known by their ids here."""
    known = ("source", "question_id", "question", "answers", "bbox", "teacher_response")
    content = json.dumps([[name, list(rows[name])] for name in known if name in rows.column_names])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
