"""Figures and claims as data: what was reported, for which benchmark, answerer and cropper. See `scripts/claims/`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from cropvlm.errors import UserError

METRICS = ("score", "refusals")
MEAN = "mean"  # as a figure's benchmark: over all benchmarks of the file


@dataclass(frozen=True)
class Benchmark:
    """A data set as the figures use it. split, rows: what a comparable file covers; None where it does not matter.

    path: of the data set, where its name is not that of a benchmark.
    """

    name: str
    split: str | None = None
    rows: int | None = None
    path: str | None = None


@dataclass(frozen=True)
class Data:
    """A training set: its sources, and what the folders of its two parts begin with.

    rows: of each part. flags: more, of step 1.
    """

    sources: tuple[str, ...]
    output: str
    rows: int | None = None
    flags: str = ""


@dataclass(frozen=True)
class Answerer:
    """A frozen VLM and the size (px) at which it sees images. api: it is behind a server. flags: more, of step 5."""

    name: str
    title: str
    model: str
    longest_edge: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    api: bool = False
    flags: str = ""


@dataclass(frozen=True)
class Cropper:
    """A source of boxes, recognised by the model that their meta file names.

    stage and reward say what it is; longest_edge (px) and trained_on must agree too for figures to be comparable.
    training: the trainer's flags; None where nothing trains it. base: the cropper that GRPO starts from.
    """

    name: str
    title: str
    stage: str
    model: str
    reward: str | None = None
    longest_edge: int | None = None
    trained_on: str | None = None
    training: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Setting:
    """Models and data behind a score. cropper: None for the full image alone."""

    benchmark: Benchmark
    answerer: Answerer
    cropper: Cropper | None

    @property
    def title(self) -> str:
        cropper = self.cropper.title if self.cropper else "no crop"
        return f"{self.benchmark.name}: {self.answerer.title}, {cropper}"


@dataclass(frozen=True)
class Figure:
    """A reported score (or share of refusals), 0 to 100, and how far (points) ours may lie from it.

    settings: the one that it is of; several if it is a mean over benchmarks. unknown: why it can never be judged.
    """

    settings: tuple[Setting, ...]
    reported: float
    tolerance: float
    metric: str = "score"
    unknown: str | None = None

    @property
    def title(self) -> str:
        cropper = self.settings[0].cropper
        benchmark = self.settings[0].benchmark.name if len(self.settings) == 1 else MEAN
        refusals = ", refusals in percent" if self.metric == "refusals" else ""
        return f"{benchmark}: {self.settings[0].answerer.title}, {cropper.title if cropper else 'no crop'}{refusals}"


@dataclass(frozen=True)
class Claim:
    """A sentence and the comparison that it stands for; each tuple has one setting per benchmark.

    The value is the score, or its difference from `over`, or that difference in percent of the one between `of` and
    `over`. It must be at least or at most a bar; without one, the 95% interval of the difference must lie above 0.
    """

    says: str
    score: tuple[Setting, ...]
    over: tuple[Setting, ...] = ()
    of: tuple[Setting, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    metric: str = "score"


@dataclass(frozen=True)
class Claims:
    """A claims file.

    also: settings to run beside those of figures and claims. command: what produces all settings; None where each has
    commands of its own.
    """

    title: str
    source: str
    benchmarks: dict[str, Benchmark]
    answerers: dict[str, Answerer]
    croppers: dict[str, Cropper]
    data: dict[str, Data]
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    also: tuple[Setting, ...]
    command: str | None
    examples: Setting | None

    @property
    def settings(self) -> list[Setting]:
        """All settings that are to be run, each once, in the file's order."""
        of_claims = [part for claim in self.claims for part in (claim.score, claim.over, claim.of)]
        parts = [*(figure.settings for figure in self.figures), *of_claims, self.also]
        return list(dict.fromkeys(setting for part in parts for setting in part))

    def combinations(self, benchmark: str) -> list[Setting]:
        """All settings that the file can name on a benchmark; none if it does not know it."""
        if benchmark not in self.benchmarks:
            return []
        croppers = [None, *self.croppers.values()]
        return [Setting(self.benchmarks[benchmark], a, c) for a in self.answerers.values() for c in croppers]


def read_claims(path: str | Path, names: Mapping[str, str] | None = None) -> Claims:
    """Return the content of a claims file. names: replace its own for the `{name}`s in it.

    Raises `UserError` where the file cannot be read, or holds an unknown key, name or value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a claims file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _parse(content, names or {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"missing or unknown: {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not a claims file: {reason}") from error


def _parse(content: dict[str, Any], names: Mapping[str, str]) -> Claims:
    own = content.pop("names", {})
    if unknown := names.keys() - own.keys():
        raise ValueError(f"it has no name {', '.join(sorted(unknown))}; its names are: {', '.join(own) or 'none'}")
    resolved = {}
    for name, default in own.items():
        resolved[name] = names[name] if name in names else default.format_map(resolved)
    content = _fill(content, resolved)
    benchmarks = {name: Benchmark(name, **entry) for name, entry in content.pop("benchmarks").items()}
    answerers = {name: Answerer(name, **entry) for name, entry in content.pop("answerers").items()}
    croppers = {name: Cropper(name, **entry) for name, entry in content.pop("croppers", {}).items()}

    data = {name: Data(tuple(e.pop("sources")), **e) for name, e in content.pop("data", {}).items()}
    for cropper in croppers.values():
        if cropper.base is not None and cropper.base not in croppers:
            raise ValueError(f"the cropper {cropper.name} has the base {cropper.base!r}, which is not in the file")
        if cropper.training is not None and cropper.trained_on not in data:
            raise ValueError(
                f"the cropper {cropper.name} is trained on {cropper.trained_on!r}, which is not under data"
            )
    unknown_mean = content.pop("unknown_mean", None)

    def settings(entry: dict, covered: list[str]) -> tuple[Setting, ...]:
        if unknown := entry.keys() - {"answerer", "cropper"}:
            raise ValueError(f"unknown key {', '.join(sorted(unknown))} in {entry}")
        cropper = None if entry["cropper"] == "none" else croppers[entry["cropper"]]
        return tuple(Setting(benchmarks[name], answerers[entry["answerer"]], cropper) for name in covered)

    def figure(entry: dict) -> Figure:
        entry, chosen = dict(entry), entry["benchmark"]
        pair = {key: entry.pop(key) for key in ("answerer", "cropper")}
        if entry.pop("benchmark") == MEAN:
            return _checked(Figure(settings(pair, [*benchmarks]), **entry, unknown=unknown_mean))
        return _checked(Figure(settings(pair, [chosen]), **entry))

    def claim(entry: dict) -> Claim:
        entry = dict(entry)
        covered = entry.pop("benchmarks", [*benchmarks])
        parts = {key: settings(entry.pop(key), covered) for key in ("score", "over", "of") if key in entry}
        return _checked(Claim(**parts, **entry))

    figures = tuple(figure(entry) for entry in content.pop("figures", []))
    claims = tuple(claim(entry) for entry in content.pop("claims", []))
    also = tuple(s for entry in content.pop("also", []) for s in settings(entry, [*benchmarks]))
    examples = content.pop("examples", None)
    if examples:
        (examples,) = settings({k: v for k, v in examples.items() if k != "benchmark"}, [examples["benchmark"]])
    head = {key: content.pop(key, None) for key in ("title", "source", "command")}
    if content:
        raise ValueError(f"unknown key {', '.join(sorted(content))}")
    return Claims(**head, benchmarks=benchmarks, answerers=answerers, croppers=croppers, data=data, figures=figures,
                  claims=claims, also=also, examples=examples)  # fmt: skip


def _checked(item: Figure | Claim) -> Figure | Claim:
    if item.metric not in METRICS:
        raise ValueError(f"metric is {item.metric!r}; expected one of {', '.join(METRICS)}")
    numbers = {field.name: getattr(item, field.name) for field in fields(item) if field.type in ("float", float)}
    numbers |= {name: getattr(item, name, None) for name in ("at_least", "at_most")}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {value!r}; expected a number")
    if isinstance(item, Claim):
        has_bar = item.at_least is not None or item.at_most is not None
        if not has_bar and (not item.over or item.of):
            raise ValueError(f"the claim {item.says!r} has no bar; expected at_least or at_most")
        if item.of and not item.over:
            raise ValueError(f"the claim {item.says!r} has `of` without `over`")
    return item


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    """Replace `{name}` in every string of a YAML value, its keys too."""
    if isinstance(value, str):
        return value.format_map(names) if "{" in value else value
    if isinstance(value, list):
        return [_fill(item, names) for item in value]
    if isinstance(value, dict):
        return {_fill(key, names): _fill(item, names) for key, item in value.items()}
    return value
