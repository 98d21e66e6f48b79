"""The content of a claims file: what was reported, for which benchmark, answerer and cropper. See `scripts/claims/`."""

import json
import math
from dataclasses import field, replace
from itertools import chain, product
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from cropvlm.data.catalog import dataset_name

MEAN = "mean"  # as a figure's benchmark: over all benchmarks of the file
FIRST_SEED = 42  # of `scripts/configs/`

checked = dataclass(frozen=True, kw_only=True, config={"extra": "forbid", "strict": True})
# Keys of tables and kinds of boxes are words, of which YAML reads `true` as a switch and `7` as a number.
Key = Annotated[str, BeforeValidator(lambda value: json.dumps(value) if isinstance(value, bool | int) else value)]
Count = Annotated[int, Field(ge=1)]
Points = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bar = Annotated[float, Field(allow_inf_nan=False)]
# A number; a text where --names has filled it in.
Threshold = Annotated[Bar, BeforeValidator(lambda value: float(value) if isinstance(value, str) else value)]
Metric = Literal["score", "refusals", "crops", "over_random"]
Widths = tuple[Points, Points] | None


@checked
class Benchmark:
    """A data set as the figures use it. A comparable file has its split, metric and rows, where they are given."""

    split: str | None = None
    metric: str | None = None
    rows: Count | None = None
    path: str | None = None  # where its key is not the name of a benchmark
    name: str = ""


@checked
class Data:
    """A training set, in two parts."""

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    output: str  # what the folders of its parts begin with
    rows: Count | None = None  # of each part
    grpo_rows: Count | None = None  # of the second one, where it has more
    flags: str = ""  # more flags of step 1
    name: str = ""

    @property
    def names(self) -> list[str]:
        return [dataset_name(source) for source in self.sources]


@checked
class Answerer:
    """A frozen VLM and the size (px) at which it sees images."""

    title: str
    model: str
    longest_edge: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    max_new_tokens: Count | None = None
    dtype: str | None = None
    image_fit: Literal["pad", "crop"] = "pad"
    api: bool = False  # it is behind a server
    flags: str = ""  # more flags of step 5
    assumed: str = ""  # what the paper does not say of it
    name: str = ""


@checked
class Cropper:
    """A source of boxes. What its run recorded has to agree; without a record, the model that a meta file names."""

    title: str
    stage: Key
    model: str  # BENCHMARK in it stands for a benchmark's name
    reward: str | None = None
    longest_edge: Count | None = None
    trained_on: Key | None = None  # of `data`
    training: str | None = None  # the trainer's flags; None where nothing trains it
    base: Key | None = None  # the cropper that GRPO starts from
    crop_cost: Points | None = None  # in GRPO
    need: bool = False  # its boxes record the need of each
    seed: int | None = None
    hours: Points | None = None  # that its training took, as reported
    teacher: str | None = None  # more flags of step 1, which gives the test rows boxes in a cropper's place
    name: str = ""

    def model_on(self, benchmark: Benchmark) -> str:
        return self.model.replace("BENCHMARK", benchmark.name)

    def with_seed(self, seed: int) -> "Cropper":
        """Return the cropper trained with a seed; under its own name with `FIRST_SEED`, which its configuration has."""
        if seed == FIRST_SEED:
            return replace(self, seed=seed)
        run = {name: f"{getattr(self, name)}_seed{seed}" for name in ("name", "model")}
        title, training = f"{self.title}, seed {seed}", f"{self.training} --seed {seed}"
        return replace(self, **run, title=title, training=training, seed=seed)


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
    def answered(self) -> tuple["Setting", ...]:
        """The settings whose answers it consists of: at a threshold, those with every crop and those without any."""
        crop = replace(self, need_threshold=None)
        return (self,) if self.need_threshold is None else (crop, replace(crop, cropper=None, control=None))

    @property
    def models(self) -> str:
        cropper = self.cropper.title if self.cropper else "no crop"
        decided = "" if self.need_threshold is None else f", crops where the need is at least {self.need_threshold:g}"
        return f"{self.answerer.title}, {cropper}{decided}" + (f", control {self.control}" if self.control else "")

    @property
    def title(self) -> str:
        return f"{self.benchmark.name}: {self.models}"


class Item(NamedTuple):
    """A figure or a claim: a value, and the bars between which it must lie.

    The value is the score, or its difference from `over`, or that difference in percent of the one between `of` and
    `over`.
    """

    kind: Literal["figure", "claim"]
    title: str
    columns: tuple[tuple[Setting, ...], ...]  # for each benchmark the settings of the score, `over` and `of`
    reported: float | str  # the figure, or the bar in words
    least: float = -math.inf
    most: float = math.inf
    nearest: float | None = None  # what our difference is from
    margin: float | None = None
    metric: Metric = "score"
    strict: bool = False  # a bar itself is not enough
    alone: bool = False  # the score is judged, and not its interval
    widths: Widths = None
    unknown: str | None = None  # why it can never be judged


@checked
class Part:
    """Answerer and cropper as the file names them."""

    answerer: Key
    cropper: Key
    control: str | None = None
    need_threshold: Threshold | None = None


@checked
class Shown(Part):
    """A part on one benchmark."""

    benchmark: Key


@checked
class Figure(Shown):
    """A reported score (or share of refusals), 0 to 100."""

    reported: Annotated[Points, Field(le=100)]
    margin: Points | None = None  # how far (points) all of the 95% interval may lie from it
    tolerance: Points | None = None  # how far the score alone may, which says nothing about other questions
    metric: Metric = "score"


@checked
class Claim:
    """A sentence and the comparison that it stands for, on `benchmarks` (None: all).

    The 95% interval of its value must lie at or above `at_least`, at or below `at_most`; without a bar, above 0.
    The metric `crops` is the percent of rows that get one, `over_random` the advantage of `score` over the same number
    of crops at random, where no row (`over`) and every row (`of`) gets one.
    """

    says: str
    score: Part
    over: Part | None = None
    of: Part | None = None
    benchmarks: Annotated[tuple[Key, ...], Field(min_length=1)] | None = None
    at_least: Bar | None = None
    at_most: Bar | None = None
    metric: Metric = "score"
    widths: Widths = None  # only rows whose `true_bbox` is so wide, in percent


@dataclass(config={"extra": "forbid", "strict": True})
class Claims:
    """A claims file. `resolve` replaces its names by what they name."""

    title: str
    source: str = ""
    margin: Points | None = None  # of its figures
    reason: str = ""  # for the margin
    command: str | None = None  # what produces all settings; None where each has commands of its own
    unknown_mean: str | None = None  # why means over benchmarks are never judged
    benchmarks: dict[Key, Benchmark] = field(default_factory=dict)
    answerers: dict[Key, Answerer] = field(default_factory=dict)
    croppers: dict[Key, Cropper] = field(default_factory=dict)
    data: dict[Key, Data] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    also: tuple[Part, ...] = ()  # to run beside figures and claims
    examples: Shown | None = None
    items: list[Item] = field(init=False, default_factory=list)  # figures, then claims
    settings: list[Setting] = field(init=False, default_factory=list)  # that are to be run, each once, in this order
    shown: Setting | None = field(init=False, default=None)  # of the examples

    def resolve(self, seed: int | None = None) -> "Claims":
        """Return it with its items and settings; `ValueError` for an unknown name or a comparison without a bar."""
        for part in ("benchmarks", "answerers", "croppers", "data"):
            setattr(self, part, {key: replace(entry, name=key) for key, entry in getattr(self, part).items()})
        for key, cropper in self.croppers.items():
            if cropper.base is not None and cropper.base not in self.croppers:
                raise ValueError(f"croppers.{key}.base: {cropper.base!r} is not in the file")
            if cropper.training is not None and cropper.trained_on not in self.data:
                raise ValueError(f"croppers.{key}.trained_on: {cropper.trained_on!r} is not in the file")
            if cropper.training is not None and seed is not None:
                self.croppers[key] = cropper.with_seed(seed)
        self.items = [self._figure(entry, f"figures[{i}]") for i, entry in enumerate(self.figures)]
        self.items += [self._claim(entry, f"claims[{i}]") for i, entry in enumerate(self.claims)]
        also = [self._setting(benchmark, part, "also") for part in self.also for benchmark in self.benchmarks]
        by_part = [zip(*item.columns, strict=True) for item in self.items]  # the score on all benchmarks, then `over`
        wanted = [*chain.from_iterable(chain.from_iterable(by_part)), *also]
        self.settings = list(dict.fromkeys(chain.from_iterable(setting.answered for setting in wanted)))
        self.shown = self.examples and self._setting(self.examples.benchmark, self.examples, "examples")
        return self

    def _setting(self, benchmark: Key, part: Part, where: str) -> Setting:
        def named(kind: str, key: Key) -> Any:
            if key not in (table := getattr(self, kind)):
                raise ValueError(f"{where}: {key!r} is not one of the {kind}: {', '.join(map(str, table))}")
            return table[key]

        cropper = None if part.cropper == "none" else named("croppers", part.cropper)
        if (part.control or part.need_threshold is not None) and cropper is None:
            raise ValueError(f"{where} has a control or a threshold without a cropper; expected both")
        models = {"answerer": named("answerers", part.answerer), "cropper": cropper, "control": part.control}
        return Setting(benchmark=named("benchmarks", benchmark), **models, need_threshold=part.need_threshold)

    def _figure(self, entry: Figure, where: str) -> Item:
        margin = self.margin if entry.margin is None else entry.margin
        if (margin is None) == (entry.tolerance is None):
            raise ValueError(f"{where} has no margin, or a tolerance beside the margin; expected one of them")
        covered = self.benchmarks if entry.benchmark == MEAN else [entry.benchmark]
        columns = tuple((self._setting(benchmark, entry, where),) for benchmark in covered)
        on = columns[0][0].benchmark.name if len(columns) == 1 else MEAN
        refusals = ", refusals in percent" if entry.metric == "refusals" else ""
        within, reported = entry.tolerance if margin is None else margin, entry.reported
        return Item(
            kind="figure",
            title=f"{on}: {columns[0][0].models}{refusals}",
            columns=columns,
            reported=reported,
            least=reported - within,
            most=reported + within,
            nearest=reported,
            margin=within,
            metric=entry.metric,
            alone=margin is None,
            unknown=self.unknown_mean if entry.benchmark == MEAN else None,
        )

    def _claim(self, entry: Claim, where: str) -> Item:
        bars = {"least": entry.at_least, "most": entry.at_most}
        bars = {side: bar for side, bar in bars.items() if bar is not None}
        words = " and ".join(f"at {side} {bar:g}" for side, bar in bars.items()) or "above 0"
        parts, values = [part for part in (entry.score, entry.over, entry.of) if part], [*bars.values()]
        if entry.metric == "over_random" and len(parts) < 3:
            raise ValueError(f"{where} is of over_random; expected score, over and of")
        if (entry.of and not entry.over) or (not bars and len(parts) != 2 and entry.metric != "over_random"):
            raise ValueError(
                f"{where} lacks something to compare with; expected score, and over (with `of` a bar too) or a bar"
            )
        if values != sorted(values) or (not entry.over and any(not 0 <= bar <= 100 for bar in values)):
            raise ValueError(f"{where} has the bar {words}; no score can meet it")
        covered = entry.benchmarks or self.benchmarks
        return Item(
            kind="claim",
            title=entry.says,
            columns=tuple(tuple(self._setting(name, part, where) for part in parts) for name in covered),
            reported=words,
            nearest=values[0] if bars else None,
            metric=entry.metric,
            strict=not bars,
            widths=entry.widths,
            **(bars or {"least": 0.0}),
        )

    def known(self, benchmark: str) -> list[Setting]:
        """Return all settings that the file can name on a benchmark, without controls."""
        on = [self.benchmarks[benchmark]] if benchmark in self.benchmarks else []
        pairs = product(on, self.answerers.values(), [None, *self.croppers.values()])
        return [Setting(benchmark=b, answerer=answerer, cropper=cropper) for b, answerer, cropper in pairs]

    def bases(self, cropper: Cropper) -> list[Cropper]:
        """Return the croppers that a cropper's training starts from, the first one first."""
        base = self.croppers.get(cropper.base)
        return [*self.bases(base), base] if base else []
