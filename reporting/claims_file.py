"""Claims files: YAML, read with each field checked, once or for each of several trainings."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from cropvlm.errors import UserError, shorten
from reporting.claims import FIRST_SEED, Claims


class _Loader(yaml.SafeLoader):
    """Rejects a key that is given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key {twice[0]!r} is given twice, before line {node.end_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_claims(path: str | Path, names: Mapping[str, str] | None = None, seed: int | None = None) -> Claims:
    """Return the content of a claims file.

    names: replace its own for the `{name}`s in it. seed: of every training, instead of that of its configuration.
    Raises `UserError` where the file cannot be read, or a field is missing, unknown or of another form.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
        if not isinstance(content, dict):
            raise ValueError(f"it is {shorten(repr(content))}; expected keys and values")
        own, given = content.pop("names", {}), names or {}
        if not isinstance(own, dict) or given.keys() - own.keys():
            raise ValueError(f"its names are {shorten(repr(own))}; expected a table, and {', '.join(given)} in it")
        values: dict[str, str] = {}
        for name, default in own.items():  # which may use those before it
            values[name] = _fill(given.get(name, str(default)), values)
        # By way of JSON, whose lists and objects are tuples and dataclasses to a strict check.
        values = {name: json.dumps(value)[1:-1] for name, value in values.items()}
        text = _fill(json.dumps(content, default=str, ensure_ascii=False), values)
        return TypeAdapter(Claims).validate_json(text).resolve(seed)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a claims file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        told = f"{place}: {first['msg']}, got {shorten(repr(first['input']))}"
        raise UserError(f"{path} is not a claims file: {told}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a claims file: {error}") from error


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Replace each `{name}` in a text."""
    if unknown := [name for name in re.findall(r"\{(\w+)\}", text) if name not in values]:
        raise ValueError(f"{{{unknown[0]}}} is not under names")
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], text)


def each_run(path: Path, names: Sequence[str] = (), seeds: int = 1) -> list[Claims]:
    """Return the content of a claims file for each of several training runs.

    names: `NAME=VALUE,VALUE...`, a value for each run or one for all. seeds: the number of runs, with seeds from 42 on.
    """
    values = {name: text.split(",") for name, _, text in (entry.partition("=") for entry in names)}
    runs = max([seeds, *map(len, values.values())])
    if seeds > 1 and runs > seeds or any(len(texts) not in (1, runs) for texts in values.values()):
        raise UserError(f"--names {' '.join(names)}: expected one value of each name, or as many as there are runs")
    chosen = [{name: texts[i % len(texts)] for name, texts in values.items()} for i in range(runs)]
    return [read_claims(path, each, None if seeds == 1 else FIRST_SEED + i) for i, each in enumerate(chosen)]
