"""One split of a data set as it is published: from a saved folder, a copy of a repository, or the Hugging Face Hub."""

import contextlib
import glob
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import datasets
from datasets.data_files import DataFilesDict
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache

from cropvlm.data.catalog import BENCHMARKS, LETTERS, Benchmark
from cropvlm.errors import UserError, one_line

logger = logging.getLogger(__name__)

# Read as text from CSV files: pandas makes numbers of "1.50" and "007", and a missing value of "None" and "N/A".
TEXT_COLUMNS = {"question", "text", "answers", "answer", "label", *LETTERS}


def load_published(
    source: str, config: str | None, known: Benchmark | None, split: str | None, default_split: str | None
) -> datasets.Dataset:
    """The rows of one split, columns and types as published.

    Args:
        source: folder or Hub id. config: configuration in the repository; None takes the benchmark's, or the only one.
        known: the benchmark that the data set is, where that is known.
        split: None takes `default_split`, else the benchmark's own, else the only one.

    Raises `UserError` for whatever keeps the split from being loaded, and for one without rows.
    """
    wanted = [split] if split else [default_split, known.split if known else None]
    is_saved = (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file()
    client_logger = logging.getLogger("huggingface_hub")
    level = client_logger.level
    client_logger.setLevel(logging.ERROR)  # else it tells of each try
    try:
        if is_saved:
            rows, chosen = _from_disk(Path(source), split, wanted)
        else:
            rows, chosen = _from_repository(source, config, known, split, wanted)
    except UserError:
        raise
    except Exception as error:  # those who parse cards, tables and archives raise whatever they like
        if type(error) is DatasetGenerationError and error.__cause__:  # says nothing itself
            error = error.__cause__
        if isinstance(error, StopIteration):  # what datasets makes of an empty file
            raise UserError(f"{source} has no rows") from error
        local = Path(source).is_dir()
        what = "is not a readable data set" if local else "is neither a local folder nor available on the Hub"
        expected = f"expected a folder, a Hub id or one of {', '.join(BENCHMARKS)}"
        raise UserError(f"{source} {what}: {one_line(error)}; {expected}") from error
    finally:
        client_logger.setLevel(level)
    if len(rows) == 0:
        raise UserError(f"{source} has no rows (split {rows.split})")
    if default_split and not split and chosen not in (None, default_split):
        logger.warning("%s has no split %s: its rows are of %s", source, default_split, chosen)
    return rows


def _from_disk(folder: Path, split: str | None, wanted: list[str | None]) -> tuple[datasets.Dataset, str | None]:
    """The rows that `save_to_disk` wrote and the name of their split, None where none is kept."""
    chosen = None
    if (folder / "dataset_dict.json").is_file():
        there = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        chosen = _choose_split(str(folder), split, wanted, there)
        folder = folder / chosen
    try:
        saved = datasets.load_from_disk(str(folder))
    except IndexError as error:  # what datasets makes of a saved data set of no rows
        raise UserError(f"{folder} has no rows") from error
    name = chosen or (None if saved.split is None else str(saved.split))
    if split and name != split:
        raise UserError(f"{folder} has no splits, but {split!r} was asked for; leave the split out")
    return saved, name


def _choose_split(source: str, split: str | None, wanted: Iterable[str | None], there: Iterable[str]) -> str:
    there = list(dict.fromkeys(there))
    for name in wanted:
        if name in there:
            return name
    if not split and len(there) == 1:
        return there[0]
    problem = f"has no split {split!r}; there are" if split else "has several splits; choose one"
    raise UserError(f"{source} {problem}: {', '.join(there)}")


def _from_repository(
    source: str, config: str | None, known: Benchmark | None, split: str | None, wanted: list[str | None]
) -> tuple[datasets.Dataset, str]:
    """The rows of one split of a repository, on the Hub or copied into a folder, and the name of the split.

    Where the Hub does not answer, a split that was loaded before comes from the cache.
    """
    looks_local = source.count("/") > 1 or source.startswith((".", "/", "~", "datasets/"))
    if not Path(source).is_dir() and (looks_local or Path(source).exists()):
        raise UserError(f"no data set at {source}: no such folder")
    try:
        return _open_split(source, config, known, split, wanted)
    except UserError:
        raise
    except Exception:
        with contextlib.suppress(Exception):  # the first error says more than that nothing is cached
            cached = _open_cached_split(source, config, known, split, wanted)
            logger.warning("%s cannot be opened on the Hub: its rows come from the cache", source)
            return cached
        raise


def _open_split(
    source: str, config: str | None, known: Benchmark | None, split: str | None, wanted: list[str | None]
) -> tuple[datasets.Dataset, str]:
    """The rows of one split and its name, where the folder or the Hub can be read."""
    local = Path(source).is_dir()
    path = str(Path(source).absolute()) if local else source  # a bare `json` names one of datasets' own loaders
    # 1. The configuration: a benchmark's own, unless a copy has been published without it.
    if known and known.config and not config and known.config in datasets.get_dataset_config_names(path):
        config = known.config
    # 2. The split and its files: those that the card does not list come first. No rows are downloaded yet.
    unlisted = _unlisted_files(source, config, known)
    chosen = next((name for name in wanted if name in unlisted), None)
    if chosen:
        builder = datasets.load_dataset_builder(path, data_files={chosen: unlisted[chosen]})
    else:
        builder = datasets.load_dataset_builder(path, config)
        if not (local or builder.repo_id):  # such a loader, which takes whatever lies in the current folder
            raise ValueError(f"{source} is a kind of file")
        listed = [name for name, files in (builder.config.data_files or builder.info.splits or {}).items() if files]
        chosen = _choose_split(source, split, wanted, [*listed, *unlisted])
    # 3. The rows.
    return _convert_split(builder, chosen, config), chosen


def _open_cached_split(
    source: str, config: str | None, known: Benchmark | None, split: str | None, wanted: list[str | None]
) -> tuple[datasets.Dataset, str]:
    """The cached result of `_convert_split` for a repository on the Hub. Raises some exception without one."""
    owner, name = source.split("/")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}"
    for prefix in filter(None, (config, known and known.config, "default")):
        found = {path.name.removeprefix(f"{prefix}-"): path for path in cache.glob(f"{glob.escape(prefix)}-*")}
        if found:
            break
    chosen = _choose_split(source, split, wanted, sorted(found))
    newest = max(found[chosen].glob("*/*/dataset_info.json"), key=lambda path: path.stat().st_mtime)
    *_, version, sha, _ = newest.parts
    names = {"repo_id": source, "dataset_name": name, "config_name": found[chosen].name}
    return Cache(**names, version=version, hash=sha).as_dataset(split=chosen), chosen


def _unlisted_files(source: str, config: str | None, known: Benchmark | None) -> dict[str, str]:
    """Split -> files, of splits that the card does not list. A folder with a copy need not hold them all."""
    if not Path(source).is_dir():
        return dict(known.data_files) if known else {}
    copied = known or next((entry for entry in BENCHMARKS.values() if config and entry.config == config), None)
    files = copied.data_files if copied else {}
    # The split that a benchmark is scored on is read from these files or not at all: V*'s others inflate the score.
    return {
        split: pattern for split, pattern in files.items() if split == copied.split or any(Path(source).glob(pattern))
    }


def _convert_split(builder: datasets.DatasetBuilder, split: str, config: str | None) -> datasets.Dataset:
    """Download and convert the files of one split; `load_dataset(split=...)` would take those of all splits.

    The conversion is cached in a folder of its own, where no other program takes it for the whole data set.
    """
    folder = Path(builder.cache_dir)  # .../{data set}/{configuration}/{version}/{hash}
    if builder.config.data_files is not None:  # else a whole data set that was converted earlier
        files = DataFilesDict({split: builder.config.data_files[split]})
        # Of the Hub, the hash is the commit's; folders of equal names and cards may hold other files.
        name = f"{config or 'default'}-{split}" if builder.repo_id else f"{builder.config_id}-{Hasher.hash(files)}"
        folder = folder.parents[1].with_name(name) / folder.parent.name / folder.name
        builder.config.data_files = files
        if builder.info.splits:  # of the card: the number of rows is checked, but the sizes are those of all splits
            builder.info.splits = {split: builder.info.splits[split]} if split in builder.info.splits else None
        builder.info.download_size = builder.info.dataset_size = builder.info.size_in_bytes = None
    if builder.name == "csv":
        builder.config.keep_default_na, builder.config.na_values = False, [""]
        builder.config.converters = dict.fromkeys(TEXT_COLUMNS, str) | (builder.config.converters or {})
    builder.download_and_prepare(str(folder))
    return builder.as_dataset(split=split)
