"""The one row schema: published columns become `question`, `question_id`, `answers` and encoded `image`."""

import ast
import base64
import glob
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa

from cropvlm.benchmarks import Benchmark
from cropvlm.cli import UserError, one_line, shorten
from cropvlm.crops import UnreadableImage, image_size, open_image

logger = logging.getLogger(__name__)

TEXT = datasets.Value("string")
ENCODED = datasets.Image(decode=False)


def map_columns(raw: datasets.Dataset, benchmark: Benchmark, path: str, need: tuple[str, ...]) -> datasets.Dataset:
    """Replace the published text columns by the schema's. The images are neither read nor copied.

    path: what messages call the data set. need: columns that must be there; ids are made where none are published.
    Raises `UserError` for a missing column, a question or id of the wrong type, and references in an unknown form.
    """
    names = raw.column_names
    sources = benchmark.source_columns(names)
    if missing := [name for name in need if name not in {*sources, *names, "question_id"}]:
        raise UserError(f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(names)}")
    columns, types = {}, {}
    if "question" in sources:
        columns["question"], types["question"] = _questions(raw, benchmark, sources["question"], path), TEXT
    if "question_id" in {*sources, *need}:
        columns["question_id"] = ids = _question_ids(raw, benchmark, sources.get("question_id"), path)
        number = datasets.Value("uint64" if max(ids) >= 2**63 else "int64") if isinstance(ids[0], int) else None
        types["question_id"] = number or TEXT
    if "answers" in sources:
        columns["answers"], types["answers"] = _references(raw, sources["answers"], path), datasets.List(TEXT)
    if not columns:
        return raw
    features = datasets.Features(types)
    # As Arrow arrays: datasets itself fails on integers beyond int64.
    arrays = {name: pa.array(columns[name], type=features.arrow_schema.field(name).type) for name in columns}
    text = datasets.Dataset.from_dict(arrays, features=features)
    replaced = {*columns, *sources.values(), *benchmark.options}
    others = raw.remove_columns([name for name in names if name in replaced])
    return datasets.concatenate_datasets([others, text], axis=1) if others.column_names else text


def _questions(raw: datasets.Dataset, benchmark: Benchmark, source: str, path: str) -> list[str]:
    """The questions, with their options one per line; an option that is null or blank is left out."""
    questions = list(raw[source])
    for i, question in enumerate(questions):
        if not isinstance(question, str):
            raise UserError(f"{path}: row {i} has the question {shorten(repr(question))}; expected a string")
    if benchmark.options and set(benchmark.options) <= set(raw.column_names):
        options = zip(*(raw[letter] for letter in benchmark.options), strict=True)
        for i, texts in enumerate(options):
            named = zip(benchmark.options, texts, strict=True)
            lines = [f"{letter}. {text}" for letter, text in named if not _is_missing(text)]
            questions[i] = "\n".join([questions[i], *lines])
    elif benchmark.instruction:  # V* has it in the text already; the prompt adds it once
        questions = [question.removesuffix(benchmark.instruction).rstrip() for question in questions]
    return questions


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN (a blank among the numbers of a CSV file) or white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _question_ids(raw: datasets.Dataset, benchmark: Benchmark, source: str | None, path: str) -> list[str] | list[int]:
    """The published ids; the row numbers where some are missing or two rows share one, which a warning says."""
    ids = list(raw[source]) if source else []
    wrong = [i for i, value in enumerate(ids) if not isinstance(value, str | int) or isinstance(value, bool)]
    if any(_is_missing(ids[i]) for i in wrong):
        reason = "rows without a question_id"
    elif wrong:
        seen = shorten(repr(ids[wrong[0]]))
        raise UserError(f"{path}: row {wrong[0]} has the question_id {seen}; expected a string or an integer")
    elif len({isinstance(value, str) for value in ids}) == 2:
        raise UserError(f"{path}: the column {source} mixes strings and integers; expected one type")
    else:
        if benchmark.options and "cycle_category" in raw.column_names and len(set(ids)) < len(ids):
            ids = [f"{i}_{cycle}" for i, cycle in zip(ids, raw["cycle_category"], strict=True)]  # HR-Bench
        if ids and len(set(ids)) == len(ids):
            return ids
        reason = "several rows with one question_id" if ids else "no question_id"
    logger.warning("%s has %s: the row numbers serve as ids", path, reason)
    return list(range(len(raw)))


def _references(raw: datasets.Dataset, source: str, path: str) -> list[list[str]]:
    """The references of each row as non-empty strings; an empty list where none are published.

    Known forms: a string, a number, an object with `answer` or `text`, a list of these (also written as JSON or Python
    text, as CSV files hold it), a class label. Nulls and blanks do not count.
    """
    feature = raw.features[source]
    while hasattr(feature, "feature"):  # of a list
        feature = feature.feature
    labels = feature.names if isinstance(feature, datasets.ClassLabel) else None
    values = _parse_lists(list(raw[source]))
    references = []
    for i, value in enumerate(values):
        try:
            references.append(list(_flatten(value, labels)))
        except (TypeError, IndexError) as error:
            expected = 'expected strings, numbers, or lists or {"answer": ...} objects of them'
            raise UserError(f"{path}: row {i} has the answers {shorten(repr(value))}; {expected}") from error
    return references


def _flatten(value: Any, labels: list[str] | None) -> Iterator[str]:
    if isinstance(value, dict):
        if not {"answer", "text"} & value.keys():
            raise TypeError(value)
        yield from _flatten(value.get("answer", value.get("text")), labels)
    elif isinstance(value, list):
        for item in value:
            yield from _flatten(item, labels)
    elif isinstance(value, bool | bytes):
        raise TypeError(value)
    elif not _is_missing(value):
        if not isinstance(value, str | int | float | Decimal):
            raise TypeError(value)
        if labels:
            value = labels[value] if value >= 0 else ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value != "":
            yield str(value)


def _parse_lists(values: list) -> list:
    """Lists for a column of texts that are all lists, such as '["stop", "halt"]'; any other column as it is."""
    texts = [value for value in values if not _is_missing(value)]
    if not texts or not all(isinstance(text, str) and text.strip()[0] + text.strip()[-1] == "[]" for text in texts):
        return values
    for parse in (json.loads, ast.literal_eval):
        try:
            return [None if _is_missing(value) else parse(value.strip()) for value in values]
        except Exception:  # not of this notation
            continue
    return values


def encode_images(rows: datasets.Dataset, source: str, to_save: bool) -> datasets.Dataset:
    """Let `image` yield `{"bytes": ..., "path": ...}`, whether it is published encoded, as base64 or as a path.

    source: folder or hub id that paths are relative to. to_save: see `cropvlm.data.load_rows`.
    Raises `UserError` for a column of another kind, or without a single readable image.
    """
    if rows.features["image"] in (TEXT, datasets.Value("large_string")):
        if any(map(_is_base64_image, itertools.islice(filter(None, rows["image"]), 100))):
            rows = _save_base64(rows) if to_save else rows.with_transform(_decode_base64)
        else:
            rows = _open_paths(rows, source, to_save)
    else:
        try:
            rows = rows.cast_column("image", ENCODED)
        except Exception as error:
            raise UserError(f"{source}: expected images in the column image, not {rows.features['image']}") from error
        if to_save:
            folders = [source, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
            _refuse_outside(_paths_without_bytes(rows), folders, source)
    _require_readable_image(rows, source)
    return rows


def _is_base64_image(text: str | None) -> bool:
    try:
        return bool(image_size({"bytes": _base64_bytes(text), "path": None}))
    except UnreadableImage:
        return False


def _base64_bytes(text: str | None) -> bytes:
    """The bytes that base64 or a data URL holds, padded or not; empty for any other text."""
    try:
        return base64.b64decode((text or "").rpartition("base64,")[2] + "==")
    except ValueError:  # binascii.Error is one; a character beyond ASCII raises it bare
        return b""  # opening it reports this row's image as unreadable


def _decode_base64(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "image" in batch:
        batch["image"] = [{"bytes": _base64_bytes(text), "path": None} for text in batch["image"]]
    return batch


def _save_base64(rows: datasets.Dataset) -> datasets.Dataset:
    """Decode a column of base64 into the cache of `datasets`, since a transform cannot be saved."""
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cropvlm"
    cache.mkdir(parents=True, exist_ok=True)
    images = rows.select_columns(["image"])
    images = images.map(
        _decode_base64,
        batched=True,
        batch_size=16,
        features=datasets.Features({"image": ENCODED}),
        cache_file_name=str(cache / f"{images._fingerprint}.arrow"),
        desc="base64 images",
    )
    return datasets.concatenate_datasets([rows.remove_columns("image"), images], axis=1)


def _open_paths(rows: datasets.Dataset, source: str, to_save: bool) -> datasets.Dataset:
    """Turn a column of paths into images. Of a repository on the hub, just the files that are named are downloaded."""
    paths = list(rows["image"])
    folder = Path(source)
    is_remote = not folder.is_dir()
    if is_remote:
        try:
            named = [glob.escape(path) for path in paths if path]
            folder = Path(huggingface_hub.snapshot_download(source, repo_type="dataset", allow_patterns=named))
        except Exception as error:
            raise UserError(f"{source}: its images cannot be downloaded: {one_line(error)}") from error
    # Not joined to a URL, so that messages show it as it is.
    full = [path if path is None or "://" in path else str(folder / path) for path in paths]
    if to_save or is_remote:
        _refuse_outside(enumerate(full), [folder], source)
    images = [None if path is None else {"path": path, "bytes": None} for path in full]
    column = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": ENCODED}))
    return datasets.concatenate_datasets([rows.remove_columns("image"), column], axis=1)


def _paths_without_bytes(rows: datasets.Dataset) -> Iterator[tuple[int, str]]:
    """(row, path) of each image that is not in the table itself. Read from the table, so that no image is copied."""
    i = 0
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(1000):
        for chunk in batch["image"].chunks:
            for missing, path in zip(chunk.field("bytes").is_null(), chunk.field("path"), strict=True):
                if missing.as_py() and path.as_py():
                    yield i, path.as_py()
                i += 1


def _refuse_outside(paths: Iterable[tuple[int, str | None]], folders: Iterable[Any], source: str) -> None:
    """Raise `UserError` for a path that leaves all of `folders`: a data set could publish the user's own files."""
    roots = tuple(os.path.normpath(Path(folder).absolute()) + os.sep for folder in folders)
    for i, path in paths:
        # Links are not resolved: those of the hub's cache, and of users, lead elsewhere.
        if path and "://" not in path and not os.path.normpath(Path(path).absolute()).startswith(roots):
            raise UserError(f"{source}: row {i} names the image {shorten(path)}, which lies outside of the data set")


def _require_readable_image(rows: datasets.Dataset, source: str) -> None:
    """Raise `UserError` where no image opens; stops at the first that does."""
    reason = None
    for row in rows.select_columns(["image"]):
        try:
            open_image(row["image"])
            return
        except UnreadableImage as error:
            reason = reason or error
    raise UserError(f"{source}: none of the {len(rows)} images can be read; the first is an {reason}")
