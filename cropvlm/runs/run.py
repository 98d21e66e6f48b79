"""The run of a generating script: which rows are left to do, their records in a journal, the files made of them."""

import contextlib
import glob
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cropvlm.errors import UnreadableImage, UserError, listed, shorten
from cropvlm.prompts import Prompt, PromptSource
from cropvlm.runs.cli import COMPLETE_WITH_FAILURES
from cropvlm.runs.journal import Journal
from cropvlm.runs.predictions import build_meta, read_meta, write_predictions
from cropvlm.runs.processes import exchange, rank, shard
from cropvlm.runs.provenance import differences
from cropvlm.runs.server import MOST_REJECTED

logger = logging.getLogger(__name__)

Text = str | ValueError  # a text, or why it is missing
# Of (prompts, done=indices of rows to leave out): yields (row index, a text per prompt or one error for all).
Generate = Callable[..., Iterable[tuple[int, list[Text] | ValueError]]]
Count = Callable[[list[dict]], dict[str, Any]]  # of the records: counts for a meta file


@dataclass
class Output:
    """A prediction file to make; its meta file lies beside it and, while rows are missing or failed, the journal.

    settings: what determines its records; a journal with other settings is rejected.
    source: the data set, as keyword arguments of `load_rows`. models, known: entries of the meta file on models and
    inputs. clean: makes the answer of a text. left_out: question ids of the rows that the file leaves out. as_first: of
    those whose text is the first file's.
    rows: the records so far, by question_id. failures: `question_id` and `reason` of the rows without a text, and
    whether the files are there, both once the run has looked or written.
    """

    path: Path
    settings: dict[str, Any]
    source: dict[str, Any]
    models: dict[str, Any]
    count: Count
    clean: Callable[[str], str] = str
    known: dict[str, Any] = field(default_factory=dict)
    left_out: Collection[str | int] = frozenset()
    as_first: Collection[str | int] = frozenset()
    journal: Journal = field(init=False)
    rows: dict[str | int, dict] = field(init=False, default_factory=dict)
    failures: list[dict] = field(init=False, default_factory=list)
    written: bool = field(init=False, default=False)

    def __post_init__(self):
        target = f"{self.path}.rank{rank()}" if rank() else self.path  # every process has its own
        # Without the images: each row has the checksum of its own beside it.
        self.journal = Journal(target, {name: value for name, value in self.settings.items() if name != "images"})

    def is_done(self, question_id: str | int, key: int | None) -> bool:
        """Whether a row needs no text: it has one, or its image, the same as then, could not be read."""
        record = self.rows.get(question_id, {})
        known = "answer" in record and record.get("key") == key
        return known and ("failed" not in record or (key is not None and "unreadable" in record))

    def make_record(self, i: int, text: Text) -> dict:
        """The entries of row `i` in the journal, beside its question_id and key."""
        if isinstance(text, ValueError):
            unreadable = {"unreadable": True} if isinstance(text, UnreadableImage) else {}
            return {"answer": "", "failed": str(text), **unreadable}
        return {"answer": text} | ({"need": text.need} if hasattr(text, "need") else {})

    def take_over(self) -> None:
        """Move the rows that other processes have left into the journal of the first one."""
        for path in sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.rank*.journal.jsonl")):
            target = path.with_name(path.name.removesuffix(".journal.jsonl"))
            with Journal(target, self.journal.settings) as other:
                self.journal.append(other.rows.values())
                other.remove()

    def look(self) -> None:
        """Find out whether the file is there, made with the same settings, and which rows failed then."""
        meta = {}
        with contextlib.suppress(UserError):
            meta = read_meta(self.path)
        self.failures = meta.get("failed") or []
        self.written = self.path.is_file() and not differences(meta.get("settings") or {}, self.settings)

    def write(self, kept: list[dict]) -> None:
        """Write the file and its meta file, and log the counts and the rows that failed."""
        self.failures = [{"question_id": r["question_id"], "reason": r["failed"]} for r in kept if "failed" in r]
        records = [record | {"answer": self.clean(record["answer"])} for record in kept]
        seconds = round(sum(record.get("seconds", 0) for record in kept), 1)
        counts = {"rows": len(kept), "failed": len(self.failures), **self.count(records), "seconds": seconds}
        known = self.known | ({"left_out": list(self.left_out)} if self.left_out else {})
        meta = build_meta(self.source, self.models, self.settings, counts, self.failures, known)
        write_predictions(self.path, records, meta)
        self.written = True
        logger.info("%s: %s", self.path, counts)
        if records and not any(record["answer"] or "failed" in record for record in records):
            logger.warning("%s: every text is empty; --verbose shows what comes", self.path)
        if self.failures:
            reasons = [f"question_id {shorten(repr(row['question_id']))}: {row['reason']}" for row in self.failures]
            shown = listed(reasons, length=400, separator="; ")
            logger.warning("%s: %d failed: %s", self.path, len(self.failures), shown)


@dataclass
class Job:
    """One data set and the prediction files to make from it.

    prompts: for each row one per file that has it and does not take its text from the first, in the files' order.
    keys: of `row_keys`; a row whose key has changed since a journal was begun is done again.
    """

    question_ids: list[str | int]
    prompts: PromptSource
    outputs: list[Output]
    keys: list[int] | None = None

    def __post_init__(self):
        keys = [None] * len(self.question_ids) if self.keys is None else self.keys
        self.key_of = dict(zip(self.question_ids, keys, strict=True))

    def outputs_of(self, question_id: str | int) -> list[Output]:
        """The files that have a row."""
        return [output for output in self.outputs if question_id not in output.left_out]

    def by_prompt(self, question_id: str | int) -> list[list[Output]]:
        """The files that have a row, those together that share a prompt, in the order of the prompts."""
        outputs = self.outputs_of(question_id)
        groups = [[output] for output in outputs if question_id not in output.as_first]
        groups[0] += [output for output in outputs if question_id in output.as_first]
        return groups

    def is_done(self, question_id: str | int) -> bool:
        """Whether no text is missing for a row."""
        return all(output.is_done(question_id, self.key_of[question_id]) for output in self.outputs_of(question_id))

    def failed_before(self, question_id: str | int) -> bool:
        """Whether an earlier run got no text for a row."""
        records = (output.rows.get(question_id, {}) for output in self.outputs_of(question_id))
        return any("failed" in record or "error" in record for record in records)

    @property
    def is_finished(self) -> bool:
        """Whether all files are there, and none of their rows is asked again; without failures no journal is needed."""
        failed = {row["question_id"] for output in self.outputs for row in output.failures}
        return all(output.written for output in self.outputs) and all(map(self.is_done, failed & self.key_of.keys()))


class Run:
    """The jobs of one command, shared by the processes of its launch: `Run(jobs, generate).finish()` does them all.

    The same command again does what is missing: rows that failed, whose journal stays for that, and the rest of an
    interrupted run. Every process keeps its share of the rows in a journal of its own, which the first one takes over
    when a job is done, or when the next run begins.

    generate: makes the texts; called only where some are missing, so a model can be loaded then.
    Raises `UserError` where two outputs are one file, and on entering, as `Journal` does.
    """

    def __init__(self, jobs: list[Job], generate: Generate):
        self.jobs, self.generate = jobs, generate
        self.outputs = [output for job in jobs for output in job.outputs]
        for path, times in Counter(output.path for output in self.outputs).items():
            if times > 1:
                raise UserError(f"{path} would be written {times} times; run them one by one with --name")

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            for output in self.outputs:
                if rank() > 0:
                    exchange([])  # until the first process has taken over what an earlier run has left
                stack.enter_context(output.journal)
                if rank() == 0:
                    output.take_over()
                    exchange([])
                output.rows = {row["question_id"]: row for row in exchange(list(output.journal.rows.values()))}
                output.look()
            self._journals = stack.pop_all()
        exchange([])  # until all have looked at the files
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._journals:
            for job in self.jobs:
                if error is None and all(output.written and not output.failures for output in job.outputs):
                    for output in job.outputs:
                        output.journal.remove()

    def finish(self) -> int:
        """Do what is left of all jobs. Returns the exit code: 3 in the first process where rows failed, else 0."""
        with self:
            for job in self.jobs:
                if job.is_finished:
                    if rank() == 0:
                        logger.info("%s: done before", ", ".join(str(output.path) for output in job.outputs))
                    continue
                for output, records in zip(job.outputs, self.collect(job), strict=True):
                    if rank() == 0:
                        output.write(records)
        return COMPLETE_WITH_FAILURES if rank() == 0 and any(output.failures for output in self.outputs) else 0

    def collect(self, job: Job) -> list[list[dict]]:
        """Journal the missing texts of a job as they come; return the records of all rows, in order, by output."""
        last = time.monotonic()  # a record's `seconds` are those since the one before: they add up over interruptions
        for i, of_outputs in self._texts(job):
            question_id, now = job.question_ids[i], time.monotonic()
            known = {"question_id": question_id, "key": job.key_of[question_id], "seconds": round(now - last, 4)}
            last = now
            for outputs, text in zip(job.by_prompt(question_id), of_outputs, strict=True):
                for output in outputs:
                    made = known | output.make_record(i, text)
                    record = {name: value for name, value in made.items() if value is not None}
                    logger.debug("%s", record)
                    output.journal.append([record])
                    output.rows[question_id] = record
        return [self._records(output, job.question_ids) for output in job.outputs]

    def _texts(self, job: Job) -> Iterator[tuple[int, list[Text]]]:
        """Yield index and texts of each row of this process's share that is left to do.

        Rows that failed before come last and in small groups: if more of them failed in a row than a group has, the
        server would be blamed for it.
        """
        share = shard(list(range(len(job.question_ids))))
        ids = [job.question_ids[i] for i in share]
        left = [k for k, question_id in enumerate(ids) if not job.is_done(question_id)]
        again = [k for k in left if job.failed_before(ids[k])]
        groups = [set(left).difference(again)]
        groups += [set(again[k : k + MOST_REJECTED]) for k in range(0, len(again), MOST_REJECTED)]
        if not left:
            return
        if (kept := sum(map(job.is_done, job.question_ids))) and rank() == 0:
            logger.info("%d of %d rows were done before", kept, len(job.question_ids))
        prompts = _Share(job.prompts, share)
        left_out = (sorted(set(range(len(ids))) - group) for group in groups if group)
        outcomes = chain.from_iterable(self.generate(prompts, done=others) for others in left_out)
        for k, texts in tqdm(outcomes, total=len(ids), initial=len(ids) - len(left), unit="row", disable=rank() > 0):
            texts = [texts] * len(job.by_prompt(ids[k])) if isinstance(texts, ValueError) else texts
            for reason in dict.fromkeys(str(text) for text in texts if isinstance(text, ValueError)):
                logger.warning("question_id %s: %s", shorten(repr(ids[k])), shorten(reason, 400))
            yield share[k], texts

    def _records(self, output: Output, question_ids: list[str | int]) -> list[dict]:
        """The records of all processes in order, which the first one has in its journal when this returns."""
        mine = [output.rows[i] for i in shard(question_ids) if i not in output.left_out]
        records = {record["question_id"]: record for record in exchange(mine)}
        if rank() == 0:
            output.journal.append(r for i, r in records.items() if output.journal.rows.get(i) != r)
        exchange([])
        if rank() > 0:
            output.journal.remove()  # the first process has it all
        return [records[i] for i in question_ids if i not in output.left_out]


class _Share:
    """This process's rows of a prompt source."""

    def __init__(self, prompts: PromptSource, rows: list[int]):
        self.prompts, self.rows = prompts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Prompt]:
        return self.prompts[self.rows[i]]

    def image_sizes(self, i: int) -> list[tuple[int, int]]:
        return self.prompts.image_sizes(self.rows[i])
