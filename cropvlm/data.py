"""Data sets: the table of benchmarks, loading from the hub or from disk, and the one row schema. No torch in here.

Inside, every row has `image`, `question` (str), `question_id` (str or int, unique), `answers` (list of str, empty
where there are no references) and whatever other columns its source has (`bbox` in the SFT part). Images stay
encoded: `{"bytes": ..., "path": ...}`, which `cropvlm.crops.open_image` opens.
"""

import base64
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub.errors import HTTPError

from cropvlm.benchmarks import BENCHMARKS, LETTERS, ROW_NUMBER, Benchmark, benchmark_by_columns
from cropvlm.cli import UserError

logger = logging.getLogger(__name__)

NEEDED = ("image", "question", "question_id")


def load_rows(
    dataset_path: str | Path,
    split: str | None = None,
    max_samples: int | None = None,
    *,
    dataset: str | None = None,
    default_split: str | None = None,
    need: tuple[str, ...] = NEEDED,
) -> datasets.Dataset:
    """The rows of a data set in the one row schema, images still encoded.

    Args:
        dataset_path: name in `BENCHMARKS`, hub id, `id:config`, folder written by `save_to_disk` (with or without
            splits), or a folder with a copy of a hub repository.
        split: None takes `default_split`, else the benchmark's own, else the only one.
        max_samples: the first so many rows; None takes all.
        dataset: name in `BENCHMARKS` whose mapping is used on `dataset_path`. Without it, a known hub id or the
            columns tell.
        default_split: the split to take where none is asked for and the data set has it; a warning says if not.
        need: columns of the schema that the caller uses; without `image` that column stays as published.

    Returns: a `Dataset`, memory-mapped; iterating over it holds one row at a time.
    Raises `UserError` for a missing folder, data set, split or column, no rows, doubled ids.
    """
    if max_samples is not None and max_samples < 1:
        raise UserError(f"max_samples is {max_samples}; expected at least 1")
    raw, benchmark, source = _load_raw(dataset_path, split, dataset, default_split)
    rows = _map_columns(raw, benchmark, str(dataset_path), need)
    if max_samples is not None:
        rows = rows.select(range(min(max_samples, len(rows))))
    return _encoded_images(rows, benchmark, source) if "image" in need else rows


def dataset_name(dataset_path: str | Path, dataset: str | None = None) -> str:
    """The `{name}` of a data set's files: the benchmark's, else the folder's or the last part of the hub id."""
    source, config = _location(dataset_path)
    known = _known(dataset_path, dataset)
    if known:
        return known.name
    name = Path(source).resolve().name if Path(source).is_dir() else source.rsplit("/", 1)[-1]
    return f"{name}_{config}" if config else name


def benchmark_for(
    dataset_path: str | Path, dataset: str | None = None, split: str | None = None, default_split: str | None = None
) -> Benchmark:
    """The entry of `BENCHMARKS` for a data set; for one with the schema's own columns that of textvqa.

    A folder or an unknown hub id is told by its columns, for which the split is opened as by `load_rows`.
    """
    return _known(dataset_path, dataset) or _load_raw(dataset_path, split, default_split=default_split)[1]


def metric_for(dataset_path: str | Path, dataset: str | None = None, split: str | None = None) -> str:
    """The data set's own metric: vqa, anls or letter."""
    return benchmark_for(dataset_path, dataset, split).metric


def _known(dataset_path: str | Path, dataset: str | None) -> Benchmark | None:
    """The benchmark that is named, or whose hub id this is. The owner is not compared: hub ids move."""
    name = dataset or str(dataset_path)
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if dataset:
        raise UserError(f"no benchmark is called {dataset!r}; there are {', '.join(BENCHMARKS)}")
    source, config = _location(dataset_path)
    if Path(source).is_dir():
        return None
    for benchmark in BENCHMARKS.values():
        same_repository = benchmark.hub_id.rsplit("/", 1)[-1].lower() == source.rsplit("/", 1)[-1].lower()
        if same_repository and benchmark.config == config:
            return benchmark
    return None


def _location(dataset_path: str | Path) -> tuple[str, str | None]:
    """Folder or hub id, and configuration."""
    path = str(dataset_path)
    if path in BENCHMARKS:
        return BENCHMARKS[path].hub_id, BENCHMARKS[path].config
    if not Path(path).exists() and ":" in path:
        source, config = path.rsplit(":", 1)
        return source, config or None
    return path, None


def _load_raw(
    dataset_path: str | Path, split: str | None, dataset: str | None = None, default_split: str | None = None
) -> tuple[datasets.Dataset, Benchmark, str]:
    """The data set as published, its benchmark, and the folder or hub id that image paths are relative to."""
    known = _known(dataset_path, dataset)
    source, config = _location(dataset_path)
    wanted = [default_split, known.split if known else None]
    if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
        raw, chosen = _from_disk(source, split, wanted)
    else:
        raw, chosen = _from_repository(source, config, known, split, wanted)
    if len(raw) == 0:
        raise UserError(f"{dataset_path} has no rows (split {raw.split})")
    if default_split and not split and chosen not in (None, default_split):
        logger.warning("%s has no split %s: its rows are of %s", dataset_path, default_split, chosen)
    return raw, known or benchmark_by_columns(raw.column_names), source


def _from_disk(source: str, split: str | None, wanted: list[str | None]) -> tuple[datasets.Dataset, str | None]:
    """The rows and the name of their split, None where none is kept."""
    folder = Path(source)
    try:
        if (folder / "dataset_dict.json").is_file():
            there = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            split = _choose_split(source, split, wanted, there)
            return datasets.load_from_disk(str(folder / split)), split
        saved = datasets.load_from_disk(source)
    except UserError:
        raise
    except IndexError as error:  # what datasets makes of a saved data set of no rows
        raise UserError(f"{source} has no rows") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is no readable data set ({_one_line(error)}); save it again") from error
    if split and str(saved.split) != split:
        raise UserError(f"{source} has no splits, {split!r} was asked for; leave the split out")
    return saved, None if saved.split is None else str(saved.split)


def _from_repository(
    source: str, config: str | None, known: Benchmark | None, split: str | None, wanted: list[str | None]
) -> tuple[datasets.Dataset, str]:
    """Load from the hub, or from a folder with a copy of a hub repository: the rows and the name of their split."""
    looks_local = source.count("/") > 1 or source.startswith((".", "/", "~", "datasets/"))
    if not Path(source).is_dir() and (looks_local or Path(source).exists()):
        raise UserError(f"no data set at {source}: no such folder")
    files = _unlisted_files(source, config, known)
    with _hub_errors(source):
        if known and known.config and not config and known.config in datasets.get_dataset_config_names(source):
            config = known.config
        split = split or next((name for name in wanted if name in files), None)
        if split not in files:
            there = [*datasets.get_dataset_split_names(source, config), *files]
            split = _choose_split(source, split, wanted, there)
        if split in files:
            return datasets.load_dataset(source, data_files={split: files[split]}, split=split), split
        return datasets.load_dataset(source, config, split=split), split


def _unlisted_files(source: str, config: str | None, known: Benchmark | None) -> dict[str, str]:
    """Split -> files, of splits that the card does not list. A folder with a copy need not hold them all."""
    if not Path(source).is_dir():
        return dict(known.data_files) if known else {}
    copied = known or next((entry for entry in BENCHMARKS.values() if config and entry.config == config), None)
    files = copied.data_files if copied else {}
    # The split that a benchmark is scored on is read from these files or not at all: V*'s others inflate the score.
    return {split: glob for split, glob in files.items() if split == copied.split or any(Path(source).glob(glob))}


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn what goes wrong with the hub, or with a copy of a repository, into one line.

    The hub client's own dozen lines about its retries are kept back.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError, HTTPError) as error:
        what = "is no readable data set" if Path(source).is_dir() else "is no folder here nor to be had from the hub"
        names = ", ".join(BENCHMARKS)
        raise UserError(f"{source} {what}: {_one_line(error)}; give a folder, a hub id or one of {names}") from error
    finally:
        logger.setLevel(level)


def _choose_split(source: str, split: str | None, wanted: list[str | None], there: list[str]) -> str:
    for name in [split] if split else wanted:
        if name in there:
            return name
    if not split and len(there) == 1:
        return there[0]
    problem = f"has no split {split!r}; there are" if split else "has several splits; choose one"
    raise UserError(f"{source} {problem}: {', '.join(dict.fromkeys(there))}")


def _map_columns(raw: datasets.Dataset, benchmark: Benchmark, path: str, need: tuple[str, ...]) -> datasets.Dataset:
    """Replace the published text columns by the schema's. The images are neither read nor copied."""
    names = raw.column_names
    sources = benchmark.sources(names)
    if missing := [name for name in need if name not in sources and name not in names]:
        raise UserError(f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(names)}")
    makers = {"question": _questions, "question_id": _question_ids, "answers": _answers}
    columns = {name: makers[name](raw, benchmark, source) for name, source in sources.items()}
    _check_ids_and_questions(columns, path)
    text_type = datasets.Value("string")
    types = {"question": text_type, "answers": datasets.List(text_type), "question_id": text_type}
    if not isinstance(columns.get("question_id", [""])[0], str):
        types["question_id"] = datasets.Value("int64")
    text = datasets.Dataset.from_dict(columns, features=datasets.Features({name: types[name] for name in columns}))
    replaced = {*columns, *sources.values(), *benchmark.options} & set(names)
    others = raw.remove_columns(list(replaced))
    return datasets.concatenate_datasets([others, text], axis=1) if others.column_names else text


def _questions(raw: datasets.Dataset, benchmark: Benchmark, source: str) -> list[str]:
    questions = list(raw[source])
    if benchmark.options and set(benchmark.options) <= set(raw.column_names):
        options = zip(*(raw[letter] for letter in benchmark.options), strict=True)
        return [
            "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True))])
            for question, texts in zip(questions, options, strict=True)
        ]
    if benchmark.instruction:  # V* has it in the text already; the prompt adds it once
        return [question.removesuffix(benchmark.instruction).rstrip() for question in questions]
    return questions


def _question_ids(raw: datasets.Dataset, benchmark: Benchmark, source: str) -> list[str | int]:
    if source == ROW_NUMBER:
        return list(range(len(raw)))
    ids = list(raw[source])
    if benchmark.options and len(set(ids)) < len(ids):  # one index for all cycles of a question
        return [f"{i}_{cycle}" for i, cycle in zip(ids, raw["cycle_category"], strict=True)]
    return ids


def _answers(raw: datasets.Dataset, benchmark: Benchmark, source: str) -> list[list[str]]:
    """The references as a list; empty where none are published."""
    return [[answers] if isinstance(answers, str) else [str(a) for a in answers or []] for answers in raw[source]]


def _check_ids_and_questions(columns: dict[str, list], path: str) -> None:
    ids = columns.get("question_id", [])
    if doubled := [i for i, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path} has {len(doubled)} doubled question_ids, such as {doubled[0]!r}; make them unique")
    for i, question_id in enumerate(ids):
        if not isinstance(question_id, str | int):
            raise UserError(f"{path}: row {i} has the question_id {question_id!r}; expected a string or an integer")
    for i, question in enumerate(columns.get("question", [])):
        if not isinstance(question, str):
            raise UserError(f"{path}: row {i} has the question {question!r}; expected a string")


def _encoded_images(rows: datasets.Dataset, benchmark: Benchmark, source: str) -> datasets.Dataset:
    """Let `image` yield `{"bytes": ..., "path": ...}`, whether it is published encoded, as base64 or as a path."""
    undecoded = datasets.Image(decode=False)
    if rows.features["image"] not in (datasets.Value("string"), datasets.Value("large_string")):
        try:
            return rows.cast_column("image", undecoded)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"{source}: the column image holds no images but {rows.features['image']}") from error
    if benchmark.options:  # HR-Bench: megabytes of base64 a row, so decoded only when a row is read
        return rows.with_transform(_decode_base64)
    folder = Path(source)
    if not folder.is_dir():
        with _hub_errors(source):
            folder = Path(huggingface_hub.snapshot_download(source, repo_type="dataset"))
    paths = [None if path is None else {"path": str(folder / path), "bytes": None} for path in rows["image"]]
    images = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": undecoded}))
    return datasets.concatenate_datasets([rows.remove_columns("image"), images], axis=1)


def then_transform(rows: datasets.Dataset, transform: Callable[[dict], dict]) -> datasets.Dataset:
    """`rows` read through `transform`, after the transform that they have; `with_transform` would replace that one."""
    first = rows.format["format_kwargs"].get("transform")
    return rows.with_transform(transform if first is None else lambda batch: transform(first(batch)))


def _decode_base64(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "image" in batch:
        batch["image"] = [{"bytes": _base64_bytes(text), "path": None} for text in batch["image"]]
    return batch


def _base64_bytes(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "")
    except ValueError:  # binascii.Error is one; a character beyond ASCII raises it bare
        return b""  # opening it reports this row's image as unreadable


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
