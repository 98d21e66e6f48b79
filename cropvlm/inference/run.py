"""What the generating scripts share: their flags, the journal of a run, and rows split over processes."""

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from cropvlm.generation import Outcomes, generate_rows
from cropvlm.inference.predictions import read_meta
from cropvlm.prompts import PromptSource
from cropvlm.runtime.journal import Journal
from cropvlm.runtime.processes import num_processes, rank, worker_count

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_journals(settings: dict[Path, dict[str, Any]]) -> Iterator[dict[Path, Journal]]:
    """This process's journals for all files of a command, by file; every process has its own.

    settings: by file, in the order in which they are written. The journals are removed together when all files stand,
    and none is when the run ends before: a data set that is done need not be done again for the sake of the next one.
    """
    suffix = f".rank{rank()}" if rank() else ""
    with contextlib.ExitStack() as stack:
        journals = {}
        for path, content in settings.items():
            journal = Journal(path.with_name(path.name + suffix), content | {"processes": num_processes()})
            journals[path] = stack.enter_context(journal)
        yield journals
        if num_processes() > 1:
            PartialState().wait_for_everyone()  # until the first one has written the files
        for journal in journals.values():
            journal.remove()


def only_journals_are_left(journals: dict[Path, Journal], ids: list[list]) -> bool:
    """Whether a run of this command wrote all its files, and was killed while it removed its journals.

    ids: every question_id of each file. The first journals are gone then and the others whole, which no earlier moment
    leaves: a file's rows begin when those before are done. Of one process only: several remove theirs at once.
    """
    begun = [bool(journal.rows) for journal in journals.values()]
    if num_processes() > 1 or not any(begun) or begun[0]:
        return False
    left = list(zip(journals.values(), ids, strict=True))[begun.index(True) :]
    return all(journal.rows.keys() >= set(of_file) for journal, of_file in left) and all(
        path.is_file() and read_meta(path).get("settings", {}) | {"processes": 1} == journal.settings
        for path, journal in journals.items()
    )


def generate_missing(
    args: argparse.Namespace, journals: list[Journal], ids: list, prompts: PromptSource, load: Callable
) -> None:
    """Generate what the journals do not hold yet. `load` returns model and processor; it is called if need be.

    ids: question_id by row index. Each row has one prompt per journal.
    """

    def generate(done: list[int]) -> Outcomes:
        model, processor = load()
        return generate_rows(
            model,
            processor,
            prompts,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            num_workers=worker_count(args.num_workers, model.device.type),
            done=done,
        )

    fill_missing(journals, ids, generate)


def fill_missing(journals: list[Journal], ids: list, generate: Callable[[list[int]], Outcomes]) -> None:
    """Fill the journals with what they lack. generate: takes the indices of rows that are done, yields the rest."""
    done = [i for i, question_id in enumerate(ids) if all(question_id in journal.rows for journal in journals)]
    if len(done) < len(ids):
        outcomes = generate(done)
        fill(journals, ids, tqdm(outcomes, total=len(ids), initial=len(done), unit="row", disable=rank() > 0))


def fill(journals: list[Journal], ids: list, outcomes: Outcomes) -> None:
    """Keep the texts of every row, the first in the first journal and so on, or why there are none."""
    for i, texts in outcomes:
        texts = [texts] * len(journals) if isinstance(texts, ValueError) else texts
        for error in dict.fromkeys(str(text) for text in texts if isinstance(text, ValueError)):
            logger.warning("question_id %r: %s", ids[i], error)
        for journal, text in zip(journals, texts, strict=True):
            failed = isinstance(text, ValueError)
            record = {"answer": "", "failed": str(text)} if failed else {"answer": text}
            logger.debug("%r: %r", ids[i], record["answer"])
            journal.append([{"question_id": ids[i]} | record])


def failures(records: list[dict]) -> list[dict]:
    """The rows of `records` that failed: `question_id` and `reason`."""
    return [{"question_id": r["question_id"], "reason": r["failed"]} for r in records if "failed" in r]


def name_failures(output: Path, failed: list[dict]) -> None:
    """Log the rows of a file that failed, whichever run or process met them."""
    if failed:
        listed = "; ".join(f"question_id {row['question_id']!r}: {row['reason']}" for row in failed)
        logger.warning("%s: %d failed: %s", output, len(failed), listed)


def failed_before(paths: Iterable[Path]) -> int:
    """How many rows of files that stand have failed, as their meta files say."""
    return sum(read_meta(path)["counts"]["failed"] for path in paths)
