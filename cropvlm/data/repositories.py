"""One split of a data set as it is published: from a saved folder, a copy of a repository, or the Hugging Face Hub.

A split's files are those that the card lists, else the tables with its name (`train.jsonl`, `test/1.csv`), by the rule
of `datasets`; image names are ignored. Only these files are downloaded.
"""

import atexit
import functools
import glob
import itertools
import json
import logging
import os
import posixpath
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import huggingface_hub
from datasets.data_files import FILES_TO_IGNORE, _get_data_files_patterns, sanitize_patterns
from datasets.exceptions import DatasetGenerationError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate

from cropvlm.data.catalog import BENCHMARKS, LETTERS, MIRRORS, Benchmark, benchmark_by_columns, find_benchmark, locate
from cropvlm.errors import UserError, listed, one_line

logger = logging.getLogger(__name__)

# Read as text from CSV files: pandas makes numbers of "1.50" and "007", and a missing value of "None" and "N/A".
TEXT_COLUMNS = ("question", "text", "answers", "answer", "label", *LETTERS)
CSV = {"keep_default_na": False, "na_values": [""], "converters": dict.fromkeys(TEXT_COLUMNS, str)}
REFERENCES = {"answers", "answer", "label"}
# Columns whose JSON values datasets changes: where types are mixed it reads the text "007" as 7, and all dates as such.
RETYPED = re.compile(r"Json\(|'(timestamp|date|time|duration)")
READERS = {
    ".csv": (datasets.Dataset.from_csv, CSV),
    ".tsv": (datasets.Dataset.from_csv, CSV | {"sep": "\t"}),
    ".parquet": (datasets.Dataset.from_parquet, {}),
} | dict.fromkeys((".json", ".jsonl", ".ndjson"), (datasets.Dataset.from_json, {}))
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
STRINGS = (datasets.Value("string"), datasets.Value("large_string"))
CARD_OPTIONS = ("sep", "delimiter", "field")  # options of a card's configuration that the readers accept


@dataclass(frozen=True)
class Repository:
    """Files of a folder, or of a data set on the Hub at one commit; relative paths, sorted, without hidden ones."""

    source: str
    files: tuple[str, ...]
    commit: str | None = None
    folder: Path | None = None

    def fetch(self, files: Iterable[str]) -> Path:
        """Folder with those of `files` that exist; from the Hub, only these are downloaded."""
        return self.folder or _download(self.source, self.commit, files)


def open_repository(source: str, revision: str | None = None) -> Repository:
    """List the files of a folder, or of a Hub id at a revision; from the cache if the Hub cannot be reached."""
    if Path(source).is_dir():
        return Repository(source, _files_in(source), folder=Path(source))
    if source.count("/") > 1 or source.startswith((".", "/", "~", "datasets/")) or Path(source).exists():
        raise UserError(f"no data set at {source}: no such folder")
    return _on_the_hub(source, revision)


@functools.cache  # one commit for all that a process reads
def _on_the_hub(source: str, revision: str | None) -> Repository:
    folder = _download(source, revision, ["README.md"])  # from the cache if the Hub does not answer
    try:
        files = huggingface_hub.list_repo_files(source, revision=folder.name, repo_type="dataset")
    except Exception:  # offline, unreachable, or no longer published
        logger.warning("%s is not available on the Hub: rows are read from the cache", source)
        return Repository(source, _files_in(folder), folder.name, folder)
    return Repository(source, tuple(sorted(files)), folder.name)


def _download(source: str, revision: str | None, files: Iterable[str]) -> Path:
    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": [glob.escape(file) for file in files]}
    return Path(huggingface_hub.snapshot_download(source, **options))


def _files_in(folder: str | Path) -> tuple[str, ...]:
    paths = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return tuple(sorted(path.as_posix() for path in paths if not re.search(r"(^|/)(\.|__.*/)", path.as_posix())))


def load_published(
    dataset_path: str | Path, split: str | None = None, dataset: str | None = None, default_split: str | None = None
) -> tuple[datasets.Dataset, Benchmark, Repository]:
    """Rows of one split as published, their benchmark, and the repository that image paths are relative to.

    Arguments as of `load_rows`. Without a configuration, the benchmark's or the only one is taken. Raises `UserError`
    if the split cannot be loaded or has no rows.
    """
    (source, config, revision), known = locate(dataset_path), find_benchmark(dataset_path, dataset)
    wanted = [split] if split else [default_split, known.split if known else None]
    try:
        if any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            repository = Repository(source, (), folder=Path(source))
            rows, chosen = _from_disk(source, split, wanted)
        else:
            repository = open_repository(source, revision)
            rows, chosen = _from_files(repository, config, known, split, wanted)
    except UserError:
        raise
    except Exception as error:  # the parsers of cards and tables raise exceptions of many kinds
        raise UserError(_failure(source, revision, error)) from error
    if len(rows) == 0:
        raise UserError(f"{source} has no rows (split {rows.split})")
    if default_split and not split and chosen not in (None, default_split):
        logger.warning("%s has no split %s: its rows are of %s", source, default_split, chosen)
    return rows, known or benchmark_by_columns(rows.column_names), repository


def _failure(source: str, revision: str | None, error: Exception) -> str:
    """Message for an error raised while a data set was opened."""
    if type(error) is DatasetGenerationError and error.__cause__:  # its own message is generic
        error = error.__cause__
    if isinstance(error, StopIteration | IndexError):  # raised by datasets for an empty file or saved data set
        return f"{source} has no rows"
    if Path(source).is_dir():
        return f"{source} is not a readable data set: {one_line(error)}; expected tables or what save_to_disk writes"
    owner, _, name = source.rpartition("/")
    mirror = f" (it may be published as {MIRRORS[owner]}/{name} as well)" if owner in MIRRORS else ""
    what = f"is neither a local folder nor available on the Hub{f' at {revision}' if revision else ''}{mirror}"
    return f"{source} {what}: {one_line(error)}; expected a folder, a Hub id or one of {', '.join(BENCHMARKS)}"


def _from_disk(folder: str, split: str | None, wanted: list[str | None]) -> tuple[datasets.Dataset, str | None]:
    """Rows that `save_to_disk` wrote, and the name of their split (None if none was saved)."""
    listed_in = Path(folder) / "dataset_dict.json"
    if listed_in.is_file():  # load_from_disk would open all splits, and fails if one is empty
        there = json.loads(listed_in.read_text(encoding="utf-8"))["splits"]
        chosen = _choose_split(folder, split, wanted, there)
        return datasets.load_from_disk(f"{folder}/{chosen}"), chosen
    saved = datasets.load_from_disk(folder)
    name = None if saved.split is None else str(saved.split)
    if split and name != split:
        raise UserError(f"{folder} has no splits, but {split!r} was asked for; leave --split out")
    return saved, name


def _choose_split(source: str, split: str | None, wanted: Iterable[str | None], there: Iterable[str]) -> str:
    there = list(there)
    if chosen := next((name for name in wanted if name in there), there[0] if not split and len(there) == 1 else None):
        return chosen
    problem = f"has no split {split!r}; there are" if split else "has several splits; name one with --split"
    raise UserError(f"{source} {problem}: {', '.join(there)}")


def _from_files(
    repository: Repository, config: str | None, known: Benchmark | None, split: str | None, wanted: list[str | None]
) -> tuple[datasets.Dataset, str]:
    """Rows of one split of a repository, and the name of the split."""
    # 1. The card: configurations with their files, features and numbers of rows.
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    if "README.md" in repository.files:
        card = huggingface_hub.DatasetCard.load(repository.fetch(["README.md"]) / "README.md").data
        configs, infos = (kind.from_dataset_card_data(card) for kind in (MetadataConfigs, DatasetInfosDict))
    entry = known or next((entry for entry in BENCHMARKS.values() if config and entry.config == config), None)
    if entry and entry.config in configs:  # a copy may have been published without it
        config = config or entry.config
    config = config or configs.get_default_config_name()
    if not (config in configs if configs else config is None or (entry and entry.data_files)):
        problem = f"has no configuration {config}" if config else "has several configurations; choose one, as ID:NAME"
        raise UserError(f"{repository.source} {problem}: {', '.join(configs) or 'it has none'}")
    # 2. The files of the split: those of a benchmark's splits that the card does not list come first.
    params, info = configs.get(config, {}), infos.get(config or "default")
    tables = [file for file in repository.files if Path(file).name not in FILES_TO_IGNORE and _suffix(file) in READERS]
    if not tables:
        raise UserError(f"{repository.source} has no table; expected {', '.join(READERS)} or what save_to_disk writes")
    unlisted = entry.data_files if entry else {}
    found = {name: _matching(tables, [pattern]) for name, pattern in unlisted.items()}
    if entry and found.get(entry.split) == []:  # scored on these or not at all: V*'s other files inflate the score
        raise UserError(f"{repository.source} has no file {unlisted[entry.split]}")
    splits = {name: files for name, files in found.items() if files}
    if {*splits}.isdisjoint(wanted):
        splits = _listed_splits(repository.source, tables, params) | splits
    else:
        info = None
    chosen = _choose_split(repository.source, split, wanted, splits)
    # 3. The rows.
    options = {name: params[name] for name in CARD_OPTIONS if name in params}
    rows = _read(repository, splits[chosen], chosen, options | ({"features": info.features} if info else {}))
    counted = info.splits[chosen].num_examples if info and chosen in (info.splits or {}) else None
    if counted and counted != len(rows):
        raise UserError(f"{repository.source} has {len(rows)} rows of {chosen}; its card says {counted}")
    return rows, chosen


def _matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Files that match a pattern, in order of the patterns."""
    matches = [re.compile(glob_translate(pattern)).match for pattern in patterns]
    return list(dict.fromkeys(file for match in matches for file in files if match(file)))


def _listed_splits(source: str, tables: list[str], params: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> tables, as a configuration on the card lists them, else by their own names."""
    prefix = f"{params['data_dir'].strip('/')}/" if params.get("data_dir") else ""
    if "data_files" in params:
        patterns = sanitize_patterns(params["data_files"])
        found = {str(split): _matching(tables, [prefix + path for path in paths]) for split, paths in patterns.items()}
        return {split: files for split, files in found.items() if files}
    tables = [file for file in tables if file.startswith(prefix)]
    patterns = _get_data_files_patterns(lambda pattern: _matching(tables, [pattern]))
    splits = {str(split): _matching(tables, paths) for split, paths in patterns.items()}
    if left := sorted({*tables}.difference(*splits.values())):
        there = "; ".join(f"{name}: {listed(files, 2)}" for name, files in splits.items())
        words = "%s: by their names, these files belong to no split and are left out: %s; the splits are %s"
        logger.warning(words, source, listed(left, 5), there)
    return splits


@functools.cache
def cache_dir() -> str:
    """Cache of `datasets`, or a temporary folder if that cannot be written to."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    if os.access(next(folder for folder in (cache, *cache.parents) if folder.exists()), os.W_OK):
        return str(cache)
    logger.warning("%s cannot be written to: conversions are not kept; set HF_DATASETS_CACHE to keep them", cache)
    folder = tempfile.TemporaryDirectory(prefix="cropvlm_")
    atexit.register(folder.cleanup)
    return folder.name


def _suffix(file: str) -> str:
    path = Path(file)
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def _json_column(path: Path, name: str, field: str | None) -> list[Any]:
    """Values of a column of a JSON file, as they are written there."""
    with fsspec.open(path, compression="infer", encoding="utf-8-sig", mode="rt") as file:
        text = file.read()
    try:
        content = json.loads(text)
    except ValueError:
        content = [json.loads(line) for line in text.split("\n") if line.strip()]
    content = content[field] if field else content
    return [row.get(name) for row in (content if isinstance(content, list) else [content])]


def _read(repository: Repository, files: list[str], split: str, options: dict[str, Any]) -> datasets.Dataset:
    """Rows of tables, in order. Paths in `image` or `file_name` may be relative to the table; they become relative to
    the repository.
    """
    if len({READERS[_suffix(file)][0] for file in files}) > 1:
        raise UserError(f"{repository.source} has tables of several kinds: {listed(files, 5)}; expected one kind")
    folder, listing, parts = repository.fetch(files).absolute(), frozenset(repository.files), []
    for (parent, suffix), group in itertools.groupby(files, key=lambda file: (posixpath.dirname(file), _suffix(file))):
        (read, defaults), names = READERS[suffix], list(group)
        paths = [glob.escape(str(folder / name)) for name in names]  # datasets takes each for a pattern
        rows = read(paths, split=datasets.NamedSplit(split), cache_dir=cache_dir(), **defaults | options)
        for name in REFERENCES & set(rows.column_names) if read is datasets.Dataset.from_json else ():
            if RETYPED.search(repr(rows.features[name])):
                values = [[v] for file in names for v in _json_column(folder / file, name, options.get("field"))]
                if len(values) != len(rows):
                    raise UserError(f"{repository.source}: {name} has values of several types; expected one type")
                rows = rows.remove_columns(name).add_column(name, list(map(json.dumps, values)))
        if "image" not in rows.column_names and "file_name" in rows.column_names:
            rows = rows.rename_column("file_name", "image")
        if parent and "image" in rows.column_names and rows.features["image"] in STRINGS:
            paths = list(rows["image"])
            beside = [path and posixpath.normpath(f"{parent}/{path}") for path in paths]
            # os.path.isfile, since such a text may be base64 and too long for a path; links are not listed.
            there = [path and (path in listing or os.path.isfile(folder / path)) for path in beside]  # noqa: PTH113
            paths = [b if found else path for path, b, found in zip(paths, beside, there, strict=True)]
            rows = rows.remove_columns("image").add_column("image", paths)
        parts.append(rows)
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
