"""The content of a claims file: what was reported, for which benchmark, answerer and cropper. See `scripts/claims/`.

name: of an entry of a table, its key.
"""

import json
from dataclasses import field, replace
from itertools import chain, product
from typing import Annotated, Any, Literal

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
Metric = Literal["score", "refusals", "crops", "over_random"]
Widths = tuple[Points, Points] | None


@checked
class Benchmark:
    """A data set as the figures use it. split, rows: those of a comparable file; None where they do not matter.

    path: of the data set, where its key is not the name of a benchmark. metric: that it is scored by.
    """

    split: str | None = None
    metric: str | None = None
    rows: Count | None = None
    path: str | None = None
    name: str = ""


@checked
class Data:
    """A training set: its sources, and what the folders of its two parts begin with.

    rows: of each part; grpo_rows: of the second one, where it has more. flags: more flags of step 1.
    """

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    output: str
    rows: Count | None = None
    grpo_rows: Count | None = None
    flags: str = ""
    name: str = ""

    @property
    def names(self) -> list[str]:
        return [dataset_name(source) for source in self.sources]


@checked
class Answerer:
    """A frozen VLM and the size (px) at which it sees images. api: it is behind a server. flags: more flags of step 5.

    assumed: what the paper does not say of it.
    """

    title: str
    model: str
    longest_edge: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    max_new_tokens: Count | None = None
    dtype: str | None = None
    image_fit: Literal["pad", "crop"] = "pad"
    api: bool = False
    flags: str = ""
    assumed: str = ""
    name: str = ""


@checked
class Cropper:
    """A source of boxes. What its run records of it has to agree; without a record, the model that a meta file names.

    longest_edge: px. trained_on: a training set of the file. training: the trainer's flags; None where nothing trains
    it. base: the cropper that GRPO starts from. crop_cost: of its GRPO. need: its boxes record the need of each. hours:
    that its training took, as reported. teacher: more flags of step 1, which gives the test rows boxes in place of a
    cropper; BENCHMARK in `model` is the benchmark's name.
    """

    title: str
    stage: Key
    model: str
    reward: str | None = None
    longest_edge: Count | None = None
    trained_on: Key | None = None
    training: str | None = None
    base: Key | None = None
    crop_cost: Points | None = None
    need: bool = False
    seed: int | None = None
    hours: Points | None = None
    teacher: str | None = None
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
    def models(self) -> str:
        cropper = self.cropper.title if self.cropper else "no crop"
        decided = "" if self.need_threshold is None else f", crops where the need is at least {self.need_threshold:g}"
        return f"{self.answerer.title}, {cropper}{decided}" + (f", control {self.control}" if self.control else "")

    @property
    def title(self) -> str:
        return f"{self.benchmark.name}: {self.models}"


@checked
class Item:
    """A figure or a claim: a value, and the bars that it is held against.

    columns: for each benchmark the settings of the score, and of `over` and `of` where there are any. The value is the
    score, or its difference from `over`, or that difference in percent of the one between `of` and `over`.
    bars: what the value must be at least (1) and at most (-1). strict: a bar itself is not enough.
    reported: the figure, or the bar in words. nearest: what our difference is from. margin: of a figure.
    alone: the score is judged, and not its interval. widths: of the rows that it is about, see `Claim`.
    unknown: why it can never be judged.
    """

    kind: Literal["figure", "claim"]
    title: str
    columns: tuple[tuple[Setting, ...], ...]
    bars: tuple[tuple[int, float], ...]
    reported: float | str
    nearest: float | None = None
    margin: float | None = None
    metric: Metric = "score"
    strict: bool = False
    alone: bool = False
    widths: Widths = None
    unknown: str | None = None


@checked
class Part:
    """Answerer and cropper as the file names them."""

    answerer: Key
    cropper: Key
    control: str | None = None
    need_threshold: Bar | None = None


@checked
class Shown(Part):
    """A part on one benchmark."""

    benchmark: Key


@checked
class Figure(Shown):
    """A reported score (or share of refusals), 0 to 100.

    margin: how far (points) another result may lie from it to be called the same: all of the 95% interval has to lie
    within. tolerance: the same for the score alone, which says nothing about other questions.
    """

    reported: Annotated[Points, Field(le=100)]
    margin: Points | None = None
    tolerance: Points | None = None
    metric: Metric = "score"


@checked
class Claim:
    """A sentence and the comparison that it stands for, on `benchmarks` (None: all).

    The 95% interval of its value must lie at or above `at_least`, at or below `at_most`; without a bar, above 0.

    metric: of `crops` it is the percent of the rows that get one; of `over_random` what `score` has over as many crops
    at random, where no row (`over`) and every row (`of`) gets one. widths: only rows whose `true_bbox` has a width
    within these two, in percent.
    """

    says: str
    score: Part
    over: Part | None = None
    of: Part | None = None
    benchmarks: Annotated[tuple[Key, ...], Field(min_length=1)] | None = None
    at_least: Bar | None = None
    at_most: Bar | None = None
    metric: Metric = "score"
    widths: Widths = None


@dataclass(config={"extra": "forbid", "strict": True})
class Claims:
    """A claims file. `resolve` replaces its names by what they name.

    margin: of its figures, and reason: why that much. also: settings to run beside those of figures and claims.
    command: what produces all settings; None where each has commands of its own.
    """

    title: str
    source: str = ""
    margin: Points | None = None
    reason: str = ""
    command: str | None = None
    unknown_mean: str | None = None
    benchmarks: dict[Key, Benchmark] = field(default_factory=dict)
    answerers: dict[Key, Answerer] = field(default_factory=dict)
    croppers: dict[Key, Cropper] = field(default_factory=dict)
    data: dict[Key, Data] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()
    also: tuple[Part, ...] = ()
    examples: Shown | None = None
    items: list[Item] = field(init=False, default_factory=list)  # figures, then claims
    settings: list[Setting] = field(init=False, default_factory=list)  # that are to be run, each once, in this order
    shown: Setting | None = field(init=False, default=None)  # of the examples

    def resolve(self, seed: int | None = None) -> "Claims":
        """Return it with its items and settings. seed: of every training, instead of that of its configuration.

        Raises `ValueError` for a name that is not in the file, or a comparison that cannot be judged.
        """
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
        self.settings = list(dict.fromkeys([*chain.from_iterable(chain.from_iterable(by_part)), *also]))
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
        return Setting(
            benchmark=named("benchmarks", benchmark),
            answerer=named("answerers", part.answerer),
            cropper=cropper,
            control=part.control,
            need_threshold=part.need_threshold,
        )

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
            bars=((1, reported - within), (-1, reported + within)),
            reported=reported,
            nearest=reported,
            margin=within,
            metric=entry.metric,
            alone=margin is None,
            unknown=self.unknown_mean if entry.benchmark == MEAN else None,
        )

    def _claim(self, entry: Claim, where: str) -> Item:
        bars = tuple((sign, bar) for sign, bar in ((1, entry.at_least), (-1, entry.at_most)) if bar is not None)
        words = " and ".join(f"at {'least' if sign > 0 else 'most'} {bar:g}" for sign, bar in bars) or "above 0"
        at_random = entry.metric == "over_random"
        if at_random and not (entry.over and entry.of):
            raise ValueError(f"{where} is of over_random; expected score, over and of")
        if (entry.of and not entry.over) or (not bars and (not entry.over or entry.of) and not at_random):
            raise ValueError(f"{where} is no comparison; expected score, and over (with `of` a bar too) or a bar")
        values = [bar for _, bar in bars]
        if values != sorted(values) or (not entry.over and any(not 0 <= bar <= 100 for bar in values)):
            raise ValueError(f"{where} has the bar {words}; no score can meet it")
        parts = [part for part in (entry.score, entry.over, entry.of) if part]
        covered = entry.benchmarks or self.benchmarks
        return Item(
            kind="claim",
            title=entry.says,
            columns=tuple(tuple(self._setting(name, part, where) for part in parts) for name in covered),
            bars=bars or ((1, 0.0),),
            reported=words,
            nearest=values[0] if bars else None,
            metric=entry.metric,
            strict=not bars,
            widths=entry.widths,
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
