"""The table of benchmarks: where each is published, its columns, its question and its score. No torch in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LETTERS = ("A", "B", "C", "D")


ROW_NUMBER = "row number"


@dataclass(frozen=True)
class Benchmark:
    """Where a data set lies, how its columns map to the row schema, how it is asked and scored.

    columns: schema name -> published name, where they differ; ROW_NUMBER as question_id if none is published.
    data_files: split -> files in the repository, for splits that the data set's card does not list.
    options: columns of the options, appended to the question one per line.
    metric: vqa, anls or letter. instruction: what follows the question; None for the paper's brief answer.
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

    def sources(self, names: list[str]) -> dict[str, str]:
        """Schema column -> column to make it from, of those named `names`: the published one, else the schema's."""
        found = {}
        for column in ("question", "question_id", "answers"):
            published = self.columns.get(column, column)
            if published in names or column in names:
                found[column] = published if published in names else column
            elif published == ROW_NUMBER:
                found[column] = ROW_NUMBER
        return found


DOCVQA_COLUMNS = {"question_id": "questionId"}


HRBENCH = {
    "hub_id": "DreamMr/HR-Bench",
    "config": "hrbench_version_split",
    "metric": "letter",
    "columns": {"question_id": "index", "answers": "answer"},
    "options": LETTERS,
    "instruction": "Answer the option letter directly.",
}


# Hub ids move: this is the only place that knows them, and --dataset_path overrides them.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("textvqa", "lmms-lab/textvqa", "validation", "vqa"),
        Benchmark(
            "docvqa",
            "lmms-lab/DocVQA",
            "validation",
            "anls",
            config="DocVQA",
            columns=DOCVQA_COLUMNS,
            data_files={"train": "DocVQA/train-*.parquet"},
        ),
        Benchmark(
            "infovqa",
            "lmms-lab/DocVQA",
            "validation",
            "anls",
            config="InfographicVQA",
            columns=DOCVQA_COLUMNS,
            data_files={"train": "InfographicVQA/train-*.parquet"},
        ),
        Benchmark(
            "stvqa",
            "danjacobellis/stvqa_task1",
            "train",
            "anls",
            columns={"question_id": ROW_NUMBER, "answers": "answer"},
        ),
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


def benchmark_by_columns(names: list[str]) -> Benchmark:
    """The benchmark that published columns fit; textvqa, whose columns are the schema's own, where none does."""
    if not {"question", "question_id"} <= set(names):
        for name in ("hrbench4k", "vstar", "docvqa", "stvqa"):  # the choosiest first
            benchmark = BENCHMARKS[name]
            question = benchmark.columns.get("question", "question")
            if {question, *benchmark.columns.values(), *benchmark.options} <= {*names, ROW_NUMBER}:
                return benchmark
    return BENCHMARKS["textvqa"]
