"""The run of a generating script: its prediction files, the journals behind them, what is left to do, what failed."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cropvlm.errors import UserError, listed, shorten
from cropvlm.prompts import Prompt, PromptSource
from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from cropvlm.runs.journal import Journal
from cropvlm.runs.predictions import build_meta, is_record, read_meta, write_predictions
from cropvlm.runs.processes import exchange, gather, num_processes, rank, shard

logger = logging.getLogger(__name__)

Text = str | ValueError  # a text, or the reason for its absence
# Takes a prompt source, and the indices of its rows to leave out as `done`; yields (row index, a text per prompt or one
# error for all).
Generate = Callable[..., Iterable[tuple[int, list[Text] | ValueError]]]


class DuplicateOutput(UserError):
    """One command would write a file twice."""


@dataclass
class Output:
    """A prediction file to make.

    path: of the file; its meta file lies beside it, and until both are complete the journal.
    settings: what determines its records; a journal with other settings is rejected.
    source: the data set, as keyword arguments of `cropvlm.data.rows.load_rows`.
    models: what the meta file says of the models.
    count: takes records and seconds, returns the counts of the meta file.
    clean: turns a generated text into the answer that is written.
    left_out: question ids of the rows that the file leaves out.
    failures: the rows without a text, `question_id` and `reason`, once the file is written.
    """

    path: Path
    settings: dict[str, Any]
    source: dict[str, Any]
    models: dict[str, str | None]
    count: Callable[[list[dict], float], dict[str, Any]]
    clean: Callable[[str], str] = str
    left_out: Collection[str | int] = frozenset()
    journal: Journal = field(init=False)
    failures: list[dict] = field(init=False, default_factory=list)

    def __post_init__(self):
        target = f"{self.path}.rank{rank()}" if rank() else self.path  # every process has its own
        self.journal = Journal(target, self.settings | {"processes": num_processes()}, _is_kept_record)

    def keep(self, question_id: str | int, text: Text) -> None:
        """Add a row to the journal."""
        record = {"answer": "", "failed": str(text)} if isinstance(text, ValueError) else {"answer": text}
        logger.debug("%r: %r", question_id, record["answer"])
        self.journal.append([{"question_id": question_id} | record])

    def write(self, kept: list[dict], seconds: float) -> None:
        """Write the file and its meta file, and log the counts and the rows that failed, whichever run met them."""
        self.failures = [{"question_id": r["question_id"], "reason": r["failed"]} for r in kept if "failed" in r]
        records = [record | {"answer": self.clean(record["answer"])} for record in kept]
        counts = self.count(records, seconds)
        meta = build_meta(self.source, self.models, self.settings, counts, self.failures, self.left_out)
        write_predictions(self.path, records, meta)
        logger.info("%s: %s", self.path, counts)
        if self.failures:
            reasons = [f"question_id {shorten(repr(row['question_id']))}: {row['reason']}" for row in self.failures]
            shown = listed(reasons, length=400, separator="; ")
            logger.warning("%s: %d failed: %s", self.path, len(self.failures), shown)

    def is_written(self) -> bool:
        """Whether the file exists and was made with the same settings. Reads the failures from its meta file."""
        meta = {}
        with contextlib.suppress(UserError):
            meta = read_meta(self.path)
        self.failures = meta.get("failed") or []
        return self.path.is_file() and (meta.get("settings") or {}) | {"processes": 1} == self.journal.settings


@dataclass
class Job:
    """One data set and the prediction files to make from it; a row has a prompt for each of its files, in order."""

    question_ids: list[str | int]
    prompts: PromptSource
    outputs: list[Output]

    def outputs_of(self, question_id: str | int) -> list[Output]:
        """The files that have a row."""
        return [output for output in self.outputs if question_id not in output.left_out]


class Run:
    """The jobs of one command, shared by the processes of its launch.

        with Run(jobs, generate) as run:
            for job in run.unfinished():
                run.write(job, run.generate(job))
        return run.exit_code

    On entering, every process opens its journals. They are removed together when all files are complete; none is when
    the run ends before: a data set that is done need not be done again for the sake of the next one.

    generate: makes the texts; called only where some are missing, so a model can be loaded then.
    Raises `DuplicateOutput` where two outputs are one file, and `UserError` on entering, as `Journal` does.
    """

    def __init__(self, jobs: list[Job], generate: Generate):
        self.jobs, self.generate_texts = jobs, generate
        self.outputs = [output for job in jobs for output in job.outputs]
        for path, times in Counter(output.path for output in self.outputs).items():
            if times > 1:
                raise DuplicateOutput(f"{path} would be written {times} times")

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            for output in self.outputs:
                stack.enter_context(output.journal)
            self._journals = stack.pop_all()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._journals:
            if error is None:
                exchange([])  # until the first process has written the files
                for output in self.outputs:
                    output.journal.remove()

    @property
    def exit_code(self) -> int:
        """0, or 3 where rows failed; always 0 in all processes but the first."""
        return COMPLETE_WITH_FAILURES if any(output.failures for output in self.outputs) else 0

    def unfinished(self) -> list[Job]:
        """All jobs; none where an earlier run wrote all files and was killed while it removed its journals.

        These are removed in the order in which they were begun, so a journal without rows before one with rows is the
        trace. Several processes remove theirs at once and leave none: they do the rows whose journals are gone again.
        """
        begun = [bool(output.journal.rows) for output in self.outputs]
        removing = num_processes() == 1 and begun != sorted(begun, reverse=True)
        return [] if removing and all(output.is_written() for output in self.outputs) else self.jobs

    def generate(self, job: Job) -> Iterator[tuple[str | int, list[Text]]]:
        """Yield question_id and texts of each row that the job's journals lack, of this process's share."""
        ids = shard(job.question_ids)
        done = [
            i
            for i, question_id in enumerate(ids)
            if all(question_id in o.journal.rows for o in job.outputs_of(question_id))
        ]
        if len(done) == len(ids):
            return
        outcomes = self.generate_texts(_Share(job.prompts), done=done)
        for i, texts in tqdm(outcomes, total=len(ids), initial=len(done), unit="row", disable=rank() > 0):
            texts = [texts] * len(job.outputs_of(ids[i])) if isinstance(texts, ValueError) else texts
            for reason in dict.fromkeys(str(text) for text in texts if isinstance(text, ValueError)):
                logger.warning("question_id %s: %s", shorten(repr(ids[i])), shorten(reason, 400))
            yield ids[i], texts

    def write(self, job: Job, texts: Iterable[tuple[str | int, list[Text]]]) -> None:
        """Keep the texts as they come; then, in the first process, write the job's files."""
        start = time.monotonic()
        for question_id, of_outputs in texts:
            for output, text in zip(job.outputs_of(question_id), of_outputs, strict=True):
                output.keep(question_id, text)
        seconds = round(time.monotonic() - start, 1)
        for output in job.outputs:
            ids = [i for i in job.question_ids if i not in output.left_out]
            mine = [i for i in shard(job.question_ids) if i not in output.left_out]
            kept = gather([output.journal.rows[i] for i in mine], ids)
            if rank() == 0:
                output.write(kept, seconds)


class _Share:
    """This process's rows of a prompt source."""

    def __init__(self, prompts: PromptSource):
        self.prompts, self.rows = prompts, shard(list(range(len(prompts))))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        return self.prompts[self.rows[i]]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        return self.prompts.image_sizes(self.rows[i])


def _is_kept_record(row: dict) -> bool:
    return is_record(row) and isinstance(row.get("failed", ""), str)
