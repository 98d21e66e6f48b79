"""Figures and claims as data: what was reported, for which benchmark, answerer and cropper. See `scripts/claims/`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cropvlm.data.catalog import dataset_name
from cropvlm.errors import UserError, shorten

MEAN = "mean"  # as a figure's benchmark: over all benchmarks of the file
FIRST_SEED = 42  # of `scripts/configs/`

checked = dataclass(frozen=True, config={"extra": "forbid", "strict": True})
Names = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]  # YAML has lists
Key = str | bool | int  # of a table; `true` is a switch to YAML
Keys = Annotated[list[Key], Field(min_length=1)] | None
Count = Annotated[int, Field(ge=1)]
Points = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bar = Annotated[float, Field(allow_inf_nan=False)]
# `stage: true`, for a true box, is a switch to YAML.
Words = Annotated[str, BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)]
Metric = Literal["score", "refusals", "crops", "over_random"]


@checked
class Benchmark:
    """A data set as the figures use it. split, rows: what a comparable file covers; None where it does not matter.

    path: of the data set, where its name is not that of a benchmark. metric: that it is scored by.
    """

    name: str
    split: str | None = None
    metric: str | None = None
    rows: Count | None = None
    path: str | None = None


@checked
class Data:
    """A training set: its sources, and what the folders of its two parts begin with.

    rows: of each part; grpo_rows: of the second one, where it has more. flags: more, of step 1.
    """

    name: str
    sources: Names
    output: str
    rows: Count | None = None
    grpo_rows: Count | None = None
    flags: str = ""

    @property
    def names(self) -> list[str]:
        return [dataset_name(source) for source in self.sources]


@checked
class Answerer:
    """A frozen VLM and the size (px) at which it sees images. api: it is behind a server. flags: more, of step 5.

    assumed: what the paper does not say of it.
    """

    name: str
    title: str
    model: str
    longest_edge: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    max_new_tokens: Count | None = None
    dtype: str | None = None
    api: bool = False
    flags: str = ""
    assumed: str = ""


@checked
class Cropper:
    """A source of boxes. What its run records of it has to agree; without a record, the model that a meta file names.

    longest_edge: px. trained_on: a training set of the file. training: the trainer's flags; None where nothing trains
    it. base: the cropper that GRPO starts from. crop_cost: of its GRPO. need: its boxes record the need of each. hours:
    that its training took, as reported. teacher: of the boxes that step 1 gives the test rows, in place of a cropper,
    more of its flags; BENCHMARK in `model` is one's name.
    """

    name: str
    title: str
    stage: Words
    model: str
    reward: str | None = None
    longest_edge: Count | None = None
    trained_on: str | None = None
    training: str | None = None
    base: str | None = None
    crop_cost: Points | None = None
    need: bool = False
    seed: int | None = None
    hours: Points | None = None
    teacher: str | None = None

    def model_on(self, benchmark: str) -> str:
        return self.model.replace("BENCHMARK", benchmark)


@checked
class Setting:
    """Models and data behind a score. cropper: None for the full image alone. control: instead of the cropper's box.

    need_threshold: no crop where a box's need is below it; None for a crop of every box.
    """

    benchmark: Benchmark
    answerer: Answerer
    cropper: Cropper | None
    control: str | None = None
    need_threshold: float | None = None

    @property
    def models(self) -> str:
        cropper = self.cropper.title if self.cropper else "no crop"
        decided = "" if self.need_threshold is None else f", crops where the need is at least {self.need_threshold:g}"
        return f"{self.answerer.title}, {cropper}{decided}" + (f", control {self.control}" if self.control else "")

    @property
    def title(self) -> str:
        return f"{self.benchmark.name}: {self.models}"


@checked
class Figure:
    """A reported score (or share of refusals), 0 to 100.

    margin: how far (points) another result may lie from it to be called the same: all of the 95% interval has to lie
    within. tolerance: the same for the score alone, which says nothing about other questions.
    settings: the one that it is of; several if it is a mean over benchmarks. unknown: why it can never be judged.
    """

    settings: tuple[Setting, ...]
    reported: Annotated[Points, Field(le=100)]
    margin: Points | None = None
    tolerance: Points | None = None
    metric: Metric = "score"
    unknown: str | None = None

    @property
    def title(self) -> str:
        benchmark = self.settings[0].benchmark.name if len(self.settings) == 1 else MEAN
        refusals = ", refusals in percent" if self.metric == "refusals" else ""
        return f"{benchmark}: {self.settings[0].models}{refusals}"

    @property
    def columns(self) -> list[tuple[Setting, ...]]:
        """The setting of each benchmark."""
        return [(setting,) for setting in self.settings]

    @property
    def bars(self) -> list[tuple[int, float]]:
        """What a value must be at least (1) and at most (-1)."""
        margin = self.tolerance if self.margin is None else self.margin
        return [(1, self.reported - margin), (-1, self.reported + margin)]

    @property
    def bar(self) -> float:
        return self.reported

    nearest = bar  # what the difference is from
    strict = False  # the bars themselves are good enough


@checked
class Claim:
    """A sentence and the comparison that it stands for; each tuple has one setting per benchmark.

    The value is the score, or its difference from `over`, or that difference in percent of the one between `of` and
    `over`. Its 95% interval must lie at or above `at_least`, at or below `at_most`; without a bar, above 0.

    metric: of `crops` it is the percent of the rows that get one; of `over_random` what `score` has over as many crops
    at random, where no row (`over`) and every row (`of`) gets one. widths: only rows whose `true_bbox` is from so many
    to so many percent wide.
    """

    says: str
    score: tuple[Setting, ...]
    over: tuple[Setting, ...] = ()
    of: tuple[Setting, ...] = ()
    at_least: Bar | None = None
    at_most: Bar | None = None
    metric: Metric = "score"
    widths: Annotated[tuple[Points, Points], Strict(False)] | None = None

    @property
    def columns(self) -> list[tuple[Setting, ...]]:
        """For each benchmark the settings of `score`, `over` and `of`."""
        return list(zip(*filter(None, (self.score, self.over, self.of)), strict=True))

    @property
    def title(self) -> str:
        return self.says

    @property
    def bars(self) -> list[tuple[int, float]]:
        """What a value must be at least (1) and at most (-1); without a bar above 0, see `strict`."""
        given = [(sign, bar) for sign, bar in ((1, self.at_least), (-1, self.at_most)) if bar is not None]
        return given or [(1, 0.0)]

    @property
    def strict(self) -> bool:
        return self.at_least is None and self.at_most is None

    @property
    def bar(self) -> str:
        """The bar in words."""
        return (
            "above 0" if self.strict else " and ".join(f"at {'least' if s > 0 else 'most'} {b:g}" for s, b in self.bars)
        )

    @property
    def nearest(self) -> float | None:
        return None if self.strict else self.bars[0][1]


@checked
class Claims:
    """A claims file.

    margin: of its figures, and reason: why that much. also: settings to run beside those of figures and claims.
    command: what produces all settings; None where each has commands of its own.
    """

    title: str
    source: str = ""
    margin: Points | None = None
    reason: str = ""
    command: str | None = None
    unknown_mean: str | None = None
    benchmarks: dict[str, Benchmark] = field(default_factory=dict)
    answerers: dict[str, Answerer] = field(default_factory=dict)
    croppers: dict[Any, Cropper] = field(default_factory=dict)
    data: dict[str, Data] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    also: tuple[Setting, ...] = ()
    examples: Setting | None = None

    @property
    def settings(self) -> list[Setting]:
        """All settings that are to be run, each once, in the file's order."""
        of_claims = [part for claim in self.claims for part in (claim.score, claim.over, claim.of)]
        parts = [*(figure.settings for figure in self.figures), *of_claims, self.also]
        return list(dict.fromkeys(chain.from_iterable(parts)))

    def known(self, benchmark: str) -> list[Setting]:
        """All settings that the file can name on a benchmark, without controls."""
        if benchmark not in self.benchmarks:
            return []
        croppers = [None, *self.croppers.values()]
        return [Setting(self.benchmarks[benchmark], a, c) for a in self.answerers.values() for c in croppers]

    def bases(self, cropper: Cropper) -> list[Cropper]:
        """The croppers that a cropper's training starts from, the first one first."""
        base = self.croppers.get(cropper.base)
        return [*self.bases(base), base] if base else []


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(
                f"the key {twice[0]!r} is given twice, last in line {node.value[-1][0].start_mark.line + 1}"
            )
        return super().construct_mapping(node, deep)


def read_claims(path: str | Path, names: Mapping[str, str] | None = None, seed: int | None = None) -> Claims:
    """Return the content of a claims file.

    names: replace its own for the `{name}`s in it. seed: of every training, instead of that of its configuration.
    Raises `UserError` where the file cannot be read, or a field is missing, unknown or of another form.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
        return _parse(content, names or {}, seed)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; expected a claims file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a claims file: {error}") from error


def _parse(content: Any, names: Mapping[str, str], seed: int | None) -> Claims:
    if not isinstance(content, dict):
        raise ValueError(f"it is {shorten(repr(content))}; expected keys and values")
    own = _build(dict[str, Any], "names", content.pop("names", {}))
    content = _fill(content, _names(own, names))
    kinds = {"benchmarks": Benchmark, "answerers": Answerer, "croppers": Cropper, "data": Data}
    entries = {part: _build(dict[Any, dict], part, content.pop(part, {})) for part in kinds}
    tables = {
        part: {key: _build(kinds[part], f"{part}.{key}", entry, name=str(key)) for key, entry in table.items()}
        for part, table in entries.items()
    }
    croppers = tables["croppers"]
    for key, cropper in croppers.items():
        for part, value, known in (("base", cropper.base, croppers), ("training", cropper.trained_on, tables["data"])):
            if getattr(cropper, part) is not None and value not in known:
                raise ValueError(f"croppers.{key} has {part}, but {value!r} is not in the file")
        if seed is not None and cropper.training is not None:
            croppers[key] = _with_seed(cropper, seed)

    def named(part: str, name: Any, where: str) -> Any:
        if name not in tables[part]:
            raise ValueError(f"{where}: {name!r} is not one of the {part}: {', '.join(map(str, tables[part]))}")
        return tables[part][name]

    def settings(entry: Any, covered: Sequence[str] | None, where: str) -> tuple[Setting, ...]:
        """The settings of an entry on benchmarks, all without any."""
        part = _build(_Part, where, entry)
        answerer = named("answerers", part.answerer, where)
        cropper = None if part.cropper == "none" else named("croppers", part.cropper, where)
        if (part.control or part.need_threshold is not None) and cropper is None:
            raise ValueError(f"{where} has a control or a threshold without a cropper; expected both")
        benchmarks = tables["benchmarks"] if covered is None else covered
        models = (answerer, cropper, part.control, part.need_threshold)
        return tuple(Setting(named("benchmarks", name, where), *models) for name in benchmarks)

    def figure(entry: dict, where: str) -> Figure:
        on = _build(Key, f"{where}.benchmark", entry.pop("benchmark", None))
        part = {key: entry.pop(key) for key in ("answerer", "cropper", "control") if key in entry}
        if "margin" not in entry and "tolerance" not in entry:
            entry["margin"] = content.get("margin")
        unknown = content.get("unknown_mean") if on == MEAN else None
        over = settings(part, None if on == MEAN else [on], where)
        made = _build(Figure, where, entry, settings=over, unknown=unknown)
        if (made.margin is None) == (made.tolerance is None):
            raise ValueError(f"{where} has no margin, or a tolerance as well; expected one of them")
        return made

    def claim(entry: dict, where: str) -> Claim:
        covered = _build(Keys, f"{where}.benchmarks", entry.pop("benchmarks", None))
        parts = {key: settings(entry.pop(key), covered, where) for key in ("score", "over", "of") if key in entry}
        made = _build(Claim, where, entry, **parts)
        bars = [bar for bar in (made.at_least, made.at_most) if bar is not None]
        if made.metric == "over_random" and not (made.over and made.of):
            raise ValueError(f"{where} is of over_random; expected score, over and of")
        if (made.of and not made.over) or (not bars and (not made.over or made.of) and made.metric != "over_random"):
            raise ValueError(f"{where} is no comparison; expected score, and over (with `of` a bar too) or a bar")
        if bars != sorted(bars) or (not made.over and any(not 0 <= bar <= 100 for bar in bars)):
            raise ValueError(f"{where} has the bar {made.bar}; no score can meet it")
        return made

    def each(make: Callable, part: str) -> tuple:
        listed = _build(list[dict], part, content.pop(part, []))
        return tuple(make(dict(entry), f"{part}[{i}]") for i, entry in enumerate(listed))

    made = {"figures": each(figure, "figures"), "claims": each(claim, "claims")}
    made["also"] = tuple(chain.from_iterable(each(lambda entry, where: settings(entry, None, where), "also")))
    if "examples" in content:
        shown = _build(dict[str, Any], "examples", content.pop("examples"))
        (made["examples"],) = settings(shown, [_build(Key, "examples", shown.pop("benchmark", None))], "examples")
    return _build(Claims, "the file", content, **tables, **made)


@checked
class _Part:
    """Answerer and cropper as the file names them."""

    answerer: Key
    cropper: Key
    control: str | None = None
    need_threshold: Bar | None = None


def _with_seed(cropper: Cropper, seed: int) -> Cropper:
    """Return a cropper trained with a seed; under its own name with `FIRST_SEED`, which its configuration has."""
    if seed == FIRST_SEED:
        return replace(cropper, seed=seed)
    run = {name: f"{getattr(cropper, name)}_seed{seed}" for name in ("name", "model")}
    title, training = f"{cropper.title}, seed {seed}", f"{cropper.training} --seed {seed}"
    return replace(cropper, **run, title=title, training=training, seed=seed)


def _names(own: dict[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    if unknown := given.keys() - own.keys():
        raise ValueError(f"it has no name {', '.join(sorted(unknown))}; its names are: {', '.join(own) or 'none'}")
    resolved: dict[str, str] = {}
    for name, default in own.items():
        resolved[name] = given[name] if name in given else _fill(default, resolved)
    return resolved


def _build(kind: Any, where: str, entry: Any, **made: Any) -> Any:
    """Return a value of a type from an entry of the file, each field checked, and from parts that are made."""
    try:
        if not is_dataclass(kind):
            return TypeAdapter(kind).validate_python(entry, strict=True)
        entry = _build(dict[str, Any], where, entry)
        if given := entry.keys() & made.keys():
            raise ValueError(f"{where} has the unknown key {min(given)!r}")
        return kind(**entry, **made)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (where, *first["loc"])))
        raise ValueError(f"{place}: {first['msg']}, got {shorten(repr(first['input']))}") from error


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    """Replace `{name}` in every string of a YAML value, its keys too."""
    if isinstance(value, str) and "{" in value:
        try:
            return value.format_map(names)
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{value!r} has a name that is not under names: {error}") from error
    if isinstance(value, list):
        return [_fill(item, names) for item in value]
    if isinstance(value, dict):
        return {_fill(key, names): _fill(item, names) for key, item in value.items()}
    return value


def each_run(path: Path, names: Sequence[str] = (), seeds: int = 1) -> Iterator[Claims]:
    """Yield the content of a claims file for each of several training runs.

    names: `NAME=VALUE,VALUE...`, a value for each run or one for all. seeds: so many runs, of seeds after 42.
    """
    values = {name: text.split(",") for name, _, text in (entry.partition("=") for entry in names)}
    runs = max([seeds, *map(len, values.values())])
    if seeds > 1 and runs > seeds or any(len(texts) not in (1, runs) for texts in values.values()):
        raise UserError(f"--names {' '.join(names)}: expected one value of each name, or as many as there are runs")
    for i in range(runs):
        chosen = {name: texts[i % len(texts)] for name, texts in values.items()}
        yield read_claims(path, chosen, None if seeds == 1 else FIRST_SEED + i)
