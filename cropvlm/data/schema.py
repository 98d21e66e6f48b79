"""The one row schema: published columns become `question`, `question_id`, `answers` and encoded `image`."""

import ast
import base64
import contextlib
import io
import itertools
import json
import logging
import os
import re
import tokenize
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cropvlm.data.catalog import LETTERS, Benchmark
from cropvlm.data.images import image_size, open_image
from cropvlm.data.repositories import Repository, cache_dir
from cropvlm.errors import UnreadableImage, UserError, failure, shorten

logger = logging.getLogger(__name__)

ENCODED = datasets.Image(decode=False)
# An array, a set, a tensor and so on, as Python or pandas prints it; a list that was turned into text twice.
OPENED = re.compile(r"[\[{]\s*[\"'\[{]")  # the beginning of a list or an object, perhaps cut off
PRINTED = re.compile(r"[\w.]+\([\[({].*\)\Z|<\w*array>|([\"'])[\[{].*[\]}]\1\Z", re.DOTALL | re.IGNORECASE)


def map_columns(raw: datasets.Dataset, benchmark: Benchmark, path: str, need: tuple[str, ...]) -> datasets.Dataset:
    """Replace the published text columns by the schema's; images are neither read nor copied.

    path: of the data set, for messages. need: required columns; missing ids become row numbers. Raises `UserError` for
    a missing column, a question or id of the wrong type, or references in an unknown form.
    """
    names = raw.column_names
    sources = benchmark.source_columns(names)
    if missing := [name for name in need if name not in {*sources, *names, "question_id"}]:
        raise UserError(f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(names)}")
    columns = {}
    if "question" in sources:
        columns["question"] = pa.array(_questions(raw, benchmark, sources["question"], path), pa.string())
    if "question_id" in {*sources, *need}:
        ids = _question_ids(raw, benchmark, sources.get("question_id"), path)
        beyond_int64 = isinstance(ids[0], int) and max(ids) >= 2**63
        columns["question_id"] = pa.array(ids, pa.uint64() if beyond_int64 else None)
    if "answers" in sources:
        columns["answers"] = pa.array(_references(raw, sources["answers"], path), pa.list_(pa.string()))
    replaced = {*columns, *sources.values(), *(LETTERS if benchmark.options else ())}
    others = raw.remove_columns([name for name in names if name in replaced])
    text = datasets.Dataset.from_dict(columns)
    return datasets.concatenate_datasets([others, text], split=raw.split, axis=1) if others.column_names else text


def _questions(raw: datasets.Dataset, benchmark: Benchmark, source: str, path: str) -> list[str]:
    """Questions with their options, one per line; null or blank options are left out."""
    questions = list(raw[source])
    for i, question in enumerate(questions):
        if not isinstance(question, str):
            raise UserError(f"{path}: row {i} has the question {shorten(repr(question))}; expected a string")
    if benchmark.options and set(benchmark.options) <= set(raw.column_names):
        for letter in filter(raw.column_names.__contains__, LETTERS):
            for i, text in enumerate(raw[letter]):
                if not _is_missing(text):
                    questions[i] += f"\n{letter}. {text}"
    elif benchmark.instruction:  # V* has it in the text already; the prompt adds it once
        questions = [question.removesuffix(benchmark.instruction).rstrip() for question in questions]
    return questions


def _is_missing(value: Any) -> bool:
    """Whether a cell is null, NaN (a blank among the numbers of a CSV file) or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _question_ids(raw: datasets.Dataset, benchmark: Benchmark, source: str | None, path: str) -> list[str] | list[int]:
    """Published ids, or row numbers (with a warning) if any are missing or duplicated."""
    ids = list(raw[source]) if source else []
    if any(value is None or value != value for value in ids):  # NaN: a blank among the numbers of a CSV file
        reason = "rows without a question_id"
    else:
        for i, value in enumerate(ids):
            if type(value) not in (str, int) or type(value) is not type(ids[0]):
                seen = f"row {i} has the question_id {shorten(repr(value))}"
                raise UserError(f"{path}: {seen}; expected a string or an integer, of one type in all rows")
        if benchmark.options and "cycle_category" in raw.column_names and len(set(ids)) < len(ids):
            ids = [f"{i}_{cycle}" for i, cycle in zip(ids, raw["cycle_category"], strict=True)]  # HR-Bench
        if ids and len(set(ids)) == len(ids):
            return ids
        reason = "duplicate question_ids" if ids else "no question_id"
    logger.warning("%s has %s: the row numbers serve as ids", path, reason)
    return list(range(len(raw)))


def _references(raw: datasets.Dataset, source: str, path: str) -> list[list[str]]:
    """References of each row as non-empty strings, nulls and blanks dropped.

    Accepted: a string, a number, a class label, an object with `answer` or `text`, and a list of these, also as JSON or
    Python text in a CSV cell.
    """
    feature = raw.features[source]
    while hasattr(feature, "feature"):  # the elements of a list
        feature = feature.feature
    references, plain, bare = [], None, None
    for i, value in enumerate(raw[source]):
        try:
            parsed = _parse_cell(value)
            references.append(list(_flatten(parsed, feature)))
        except (TypeError, IndexError, ValueError) as error:
            expected = 'expected strings, numbers or {"answer": ...} objects, or lists of them, e.g. ["stop", "halt"]'
            raise UserError(f"{path}: row {i} has the answers {shorten(repr(value))}; {expected}") from error
        if isinstance(value, str) and parsed is value:
            plain = plain or value.strip()
        elif isinstance(value, str) and references[-1] and not re.search("[\"']", value):
            bare = value
    if plain and bare:
        seen = f"{shorten(bare)} and, in another row, {shorten(plain)}: the first may be a list or a text"
        raise UserError(f'{path} has the answers {seen}; expected e.g. ["stop", "halt"] in all rows')
    return references


def _flatten(value: Any, feature: Any) -> Iterator[str]:
    labels = getattr(feature, "names", None)  # of a ClassLabel
    match value:
        case {"answer": nested} | {"text": nested}:
            yield from _flatten(nested, feature)
        case list():
            for item in value:
                yield from _flatten(item, feature)
        case _ if _is_missing(value):
            return
        case int() if labels:
            yield from _flatten(labels[value] if value >= 0 else None, None)
        case float() if value.is_integer():
            yield str(int(value))
        case float() if getattr(feature, "dtype", None) == "float32":
            yield str(np.float32(value))  # 0.1, not 0.10000000149011612
        case str() | int() | float() | Decimal() if not isinstance(value, bool):
            yield str(value).encode(errors="replace").decode()  # half a surrogate pair cannot be written as UTF-8
        case _:
            raise TypeError(value)


def _parse_cell(value: Any) -> Any:
    """List or object written as JSON or Python text; any other value as it is.

    Raises `ValueError` for a text that only looks like one: numpy omits the commas, and Python would read `['a' 'b']`
    as `['ab']`.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not (text and text[0] + text[-1] in ("[]", "{}", "()") or PRINTED.match(text) or OPENED.match(text)):
        return value
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(text, parse_float=lambda number: float(number) if repr(float(number)) == number else number)
        if not isinstance(parsed, str):
            return parsed
    with contextlib.suppress(Exception):  # SyntaxError, MemoryError and so on: not Python's notation
        parsed = ast.literal_eval(text)
        if isinstance(parsed, list | tuple | dict) and _tokens(repr(parsed)) == _tokens(text):
            return list(parsed) if isinstance(parsed, tuple) else parsed
    if text[0] == "(":  # "(a)"
        return value
    raise ValueError("looks like a list")


def _tokens(text: str) -> list[str]:
    """Tokens of a Python expression, string literals by their value."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [ast.literal_eval(token.string) if token.type == tokenize.STRING else token.string for token in tokens]


def encode_images(rows: datasets.Dataset, repository: Repository, to_save: bool) -> datasets.Dataset:
    """Let `image` yield `{"bytes": ..., "path": ...}`, from encoded images, base64 or paths within `repository`.

    to_save: see `load_rows`. Raises `UserError` for a column of another kind, or one without a readable image.
    """
    source = repository.source
    if getattr(rows.features["image"], "dtype", None) in ("string", "large_string"):
        if not any(map(_is_base64_image, itertools.islice(filter(None, rows["image"]), 100))):
            rows = _open_paths(rows, repository, to_save)
        else:
            cache = Path(cache_dir()) / "cropvlm"
            cache.mkdir(parents=True, exist_ok=True)
            features = datasets.Features(rows.features | {"image": ENCODED})
            options = {"features": features, "cache_file_name": str(cache / f"{rows._fingerprint}.arrow")}
            rows = rows.map(_decode_base64, batched=True, batch_size=16, desc="base64 images", **options)
    else:
        try:
            rows = rows.cast_column("image", ENCODED)
        except Exception as error:
            raise UserError(f"{source}: expected images in the column image, not {rows.features['image']}") from error
        if to_save:
            folders = [source, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
            _refuse_outside(rows, folders, source)
    reason = None
    for row in rows.select_columns(["image"]):  # up to the first that opens
        try:
            open_image(row["image"])
            return rows
        except UnreadableImage as error:
            reason = reason or error
    raise UserError(f"{source}: none of the {len(rows)} images can be read; the first is an {reason}")


def _is_base64_image(text: str) -> bool:
    with contextlib.suppress(UnreadableImage):
        return bool(image_size(base64_bytes(text)))
    return False


def base64_bytes(text: str | None) -> bytes:
    """Bytes of base64 text or a data URL, padded or not; empty for any other text."""
    with contextlib.suppress(ValueError):  # binascii.Error is one; a character beyond ASCII raises it bare
        return base64.b64decode((text or "").rpartition("base64,")[2] + "==")
    return b""


def _decode_base64(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"image": [{"bytes": base64_bytes(text), "path": None} for text in batch["image"]]}


def _open_paths(rows: datasets.Dataset, repository: Repository, to_save: bool) -> datasets.Dataset:
    """Replace a column of paths by images; from a repository on the Hub, only these files are downloaded."""
    paths = list(rows["image"])
    with failure(f"{repository.source}: its images cannot be downloaded"):
        folder = repository.fetch(filter(None, paths))
    # URLs stay as they are, for the message.
    full = (path if path is None or "://" in path else str(folder / path) for path in paths)
    images = [None if path is None else {"path": path, "bytes": None} for path in full]
    rows = rows.remove_columns("image").add_column("image", images, feature=ENCODED)
    if to_save:
        _refuse_outside(rows, [folder], repository.source)
    return rows


def _refuse_outside(rows: datasets.Dataset, folders: Iterable[Any], source: str) -> None:
    """Raise `UserError` for an image file outside of `folders`: a data set could publish the user's own files."""
    roots = tuple(os.path.normpath(Path(folder).absolute()) + os.sep for folder in folders)
    paths = []
    for batch in rows.select_columns(["image"]).with_format("arrow").iter(1000):  # no image is copied
        content, path = (pc.struct_field(batch["image"], name) for name in ("bytes", "path"))
        paths += pc.if_else(pc.is_null(content), path, None).to_pylist()
    for i, path in enumerate(paths):
        # Links are not resolved: those of the Hub's cache, and of users, lead elsewhere.
        if path and "://" not in path and not os.path.normpath(Path(path).absolute()).startswith(roots):
            raise UserError(f"{source}: row {i} names the image {shorten(path)}, which lies outside of the data set")
