"""The table of benchmarks: where each is published, its columns, its question and its score."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cropvlm.errors import UserError, one_line

LETTERS = ("A", "B", "C", "D", "E")  # of options; MME-RealWorld has five


@dataclass(frozen=True)
class Benchmark:
    """Source of a data set, the mapping of its columns to the row schema, and how it is asked and scored.

    metric: vqa, anls or letter. columns: schema name -> published name, where they differ. data_files: split -> files,
    for splits that the card does not list. options: columns of the options, appended to the question one per line.
    instruction: follows the question; None for the brief answer.
    """

    name: str
    hub_id: str
    split: str
    metric: str
    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    data_files: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    instruction: str | None = None

    def source_columns(self, names: Collection[str]) -> dict[str, str]:
        """Schema column -> its source among `names`: the published column, else the schema's own."""
        own = ("question", "question_id", "answers")
        found = {column: column for column in own if column in names}
        return found | {column: name for column, name in self.columns.items() if name in names}


DOCVQA = {"hub_id": "lmms-lab/DocVQA", "split": "validation", "metric": "anls"}
DOCVQA["columns"] = {"question_id": "questionId"}

HRBENCH = {
    "hub_id": "DreamMr/HR-Bench",
    "config": "hrbench_version_split",
    "metric": "letter",
    "columns": {"question_id": "index", "answers": "answer"},
    "options": LETTERS[:4],
    "instruction": "Answer the option letter directly.",
}

MIRRORS = {"lmms-lab": "lmms-lab-encoder"}  # owners whose data sets were also published under another name

# Hub ids move: this is the only place that knows them, and every script takes another id or a folder instead.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("textvqa", "lmms-lab/textvqa", "validation", "vqa"),
        Benchmark("docvqa", config="DocVQA", data_files={"train": "DocVQA/train-*.parquet"}, **DOCVQA),
        Benchmark("infovqa", config="InfographicVQA", data_files={"train": "InfographicVQA/train-*.parquet"}, **DOCVQA),
        Benchmark("stvqa", "danjacobellis/stvqa_task1", "train", "anls", columns={"answers": "answer"}),
        Benchmark(
            "vstar",
            "craigwu/vstar_bench",
            "test",
            "letter",
            columns={"question": "text", "answers": "label"},
            # The folders' own JSON files always put the right option first.
            data_files={"test": "test_questions.jsonl"},
            instruction="Answer with the option's letter from the given choices directly.",
        ),
        Benchmark("hrbench4k", split="hrbench_4k", **HRBENCH),
        Benchmark("hrbench8k", split="hrbench_8k", **HRBENCH),
    )
}


class Location(NamedTuple):
    """Folder or Hub id of a data set, its configuration, and the revision (commit, branch or tag) on the Hub."""

    source: str
    config: str | None = None
    revision: str | None = None


def locate(dataset_path: str | Path) -> Location:
    """Location of a folder, a Hub id, `id:config` or a name in `BENCHMARKS`; all but a folder may have `@revision`.

    >>> locate("docvqa@v1.0")
    Location(source='lmms-lab/DocVQA', config='DocVQA', revision='v1.0')
    """
    path = str(dataset_path)
    if not path.strip():
        raise UserError("the data set has an empty name; expected a benchmark, a folder or a Hub id")
    try:
        if path not in BENCHMARKS and Path(path).exists():
            return Location(path)
    except OSError as error:  # a name that is too long
        raise UserError(one_line(error)) from error
    name, _, revision = path.partition("@")
    if name in BENCHMARKS:
        return Location(BENCHMARKS[name].hub_id, BENCHMARKS[name].config, revision or None)
    source, _, config = name.partition(":")
    return Location(source, config or None, revision or None)


def find_benchmark(dataset_path: str | Path, dataset: str | None = None) -> Benchmark | None:
    """Benchmark named by `dataset`, by the path or by its Hub id under any owner (Hub ids move); else None.

    Raises `UserError` for an unknown `dataset`.
    """
    if dataset and dataset not in BENCHMARKS:
        raise UserError(f"unknown benchmark {dataset!r}; expected one of {', '.join(BENCHMARKS)}")
    source, config, _ = locate(dataset_path)
    if named := BENCHMARKS.get(dataset or str(dataset_path).partition("@")[0]):
        return named
    if Path(source).is_dir():
        return None
    wanted = (source.rpartition("/")[2].lower(), config)
    return next((b for b in BENCHMARKS.values() if (b.hub_id.rpartition("/")[2].lower(), b.config) == wanted), None)


def benchmark_by_columns(names: Collection[str]) -> Benchmark:
    """Benchmark with these published columns; textvqa, whose columns are the schema's own, if no other fits."""
    if not {"question", "question_id"} <= set(names):
        for name in ("hrbench4k", "vstar", "docvqa", "stvqa"):  # those with the most columns of their own first
            benchmark = BENCHMARKS[name]
            own = {"question": "question"} | benchmark.columns
            if {*own.values(), *benchmark.options} <= set(names):
                return benchmark
    return BENCHMARKS["textvqa"]


def dataset_name(dataset_path: str | Path, dataset: str | None = None) -> str:
    """Name of a data set in file names: the benchmark's, else the folder's or the last part of the Hub id."""
    source, config, _ = locate(dataset_path)
    if benchmark := find_benchmark(dataset_path, dataset):
        return benchmark.name
    name = Path(source).resolve().name if Path(source).is_dir() else source.rsplit("/", 1)[-1]
    return f"{name}_{config}" if config else name
