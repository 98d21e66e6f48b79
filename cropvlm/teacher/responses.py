"""The teacher's responses to all rows: kept in a journal as they come, asked for by one process or several.

Under `accelerate launch` every process asks for its share and keeps its own journal; the first takes them over into
its own, at the end or, after an interruption, when the next run begins.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from cropvlm.cli import UserError, remedy
from cropvlm.generation import Outcomes, generate_rows
from cropvlm.modeling import ImageSizeError, device_and_dtype, load_model, load_processor
from cropvlm.prompts import teacher_messages
from cropvlm.runtime.journal import Journal
from cropvlm.runtime.processes import device_index, exchange, num_processes, rank, worker_count
from cropvlm.runtime.provenance import fingerprint
from cropvlm.runtime.server import MOST_REJECTED, answer_rows
from cropvlm.runtime.server_arguments import server_of
from cropvlm.teacher.asking import PixelBudget, TeacherPrompts, measure, outline, pixel_budget, resize_for_teacher

logger = logging.getLogger(__name__)


def teacher_settings(args: argparse.Namespace) -> dict:
    """What decides the response to an image and a question. With `--from_journal`: what decided those kept there."""
    if not args.from_journal:
        teacher = {"model_path": args.api_model or args.model_path, "server": bool(args.api_model)}
        if args.api_model:
            teacher |= {"image_format": args.image_format}
        else:
            with remedy("name one of them with --gpu"):
                dtype = str(device_and_dtype(device_index(args.gpu))[1])
            teacher |= {"model_files": fingerprint(args.model_path), "dtype": dtype}
        sizes = {key: getattr(args, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
        return teacher | sizes | {"prompt": teacher_messages("{question}")}
    path = Journal(args.output_path, {}).path
    try:
        with path.open() as file:
            return json.loads(file.readline())["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--from_journal: {path} is no journal ({error}); leave the flag out to make one") from error


def collect(args: argparse.Namespace, journal: Journal, rows: Dataset) -> list[dict]:
    """The record (see `teacher.outline`) of every row, in order. The first process calls it, the others `assist`.

    Only rows that the journal lacks, or holds for another image or question of that id, are asked for; without
    `--from_journal` those as well that a server rejected. A row whose image is found unreadable now is a row with an
    error, whatever the journal holds.
    Raises `UserError` with `--from_journal` if there are any to ask for.
    """
    _take_over(args, journal)
    known = exchange(list(journal.rows.values()))
    measured = exchange(measure(_share(rows)))
    missing = _missing(args, measured, known)
    if args.from_journal and missing:
        raise UserError(
            f"{journal.path} has no response to {len(missing)} of {len(rows)} rows, {missing[0]['question_id']!r} "
            "first; leave --from_journal out to ask the teacher"
        )
    logger.info("%d of %d responses are in %s", len(rows) - len(missing), len(rows), journal.path)
    if missing:
        _ask(args, journal, rows, measured, known)
        exchange([])  # waits until the others have let go of their journals
        _take_over(args, journal)
    records = journal.rows | {record["question_id"]: record for record in measured if "error" in record}
    return [records[question_id] for question_id in rows["question_id"]]


def assist(args: argparse.Namespace, rows: Dataset) -> None:
    """What every process but the first does: ask for its share, and leave its journal to the first."""
    known = exchange([])
    measured = exchange(measure(_share(rows)))
    if _missing(args, measured, known) and not args.from_journal:
        with Journal(f"{args.output_path}.rank{rank()}", teacher_settings(args)) as journal:
            _ask(args, journal, rows, measured, known)
        exchange([])


def _ask(args: argparse.Namespace, journal: Journal, rows: Dataset, measured: list[dict], known: list[dict]) -> None:
    """Bring this process's share of the missing responses into `journal`."""
    rows = _share(rows)
    by_id = {record["question_id"]: record for record in measured}
    measured = [by_id[question_id] for question_id in rows["question_id"]]
    missing = {record["question_id"] for record in _missing(args, measured, known)}
    if not missing:
        return
    rejected = {record["question_id"] for record in known if record.get("rejected")} & missing
    done = [i for i, record in enumerate(measured) if record["question_id"] not in missing]
    again = [i for i, record in enumerate(measured) if record["question_id"] in rejected]
    prompts = TeacherPrompts(rows, measured)
    outcomes, budget = _ask_server(args, prompts, done, again) if args.api_model else _ask_model(args, prompts, done)
    records = outline(outcomes, measured, budget)
    progress = {"total": len(rows), "initial": len(done), "unit": "row", "desc": "teacher", "smoothing": 0.05}
    for record in tqdm(records, **progress, disable=rank() > 0):
        journal.append([record])
        logger.debug("%s", record)


def _ask_model(args: argparse.Namespace, prompts: TeacherPrompts, done: list[int]) -> tuple[Outcomes, PixelBudget]:
    """What a model here says, in batches, and the pixel budget of its processor."""
    device, dtype = device_and_dtype(device_index(args.gpu))
    with remedy("correct --min_pixels and --max_pixels or leave them out", ImageSizeError):
        processor = load_processor(args.model_path, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    budget = pixel_budget(processor, args.model_path)
    model = load_model(args.model_path, device=device, dtype=dtype)
    workers = worker_count(args.num_workers, device.type)
    options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "num_workers": workers}
    return generate_rows(model, processor, prompts, done=done, **options), budget


def _ask_server(
    args: argparse.Namespace, prompts: TeacherPrompts, done: list[int], again: list[int]
) -> tuple[Outcomes, PixelBudget]:
    """What a server's Qwen2.5-VL says. It gets images at a size that it keeps, so that its boxes can be mapped back.

    again: rows that it rejected before. They come last and in small groups: more rejections in a row than a group has
    would be taken for a fault of the server.
    """
    own = PixelBudget()
    budget = PixelBudget(args.min_pixels or own.min_pixels, args.max_pixels or own.max_pixels).checked()
    resize = partial(resize_for_teacher, budget=budget)

    def ask(wanted: Iterable[int]) -> Outcomes:
        return answer_rows(server_of(args), prompts, resize, everything.difference(wanted))

    everything = set(range(len(prompts)))
    groups = [again[start : start + MOST_REJECTED] for start in range(0, len(again), MOST_REJECTED)]
    return chain.from_iterable(map(ask, [everything.difference(done, again), *groups])), budget


def _missing(args: argparse.Namespace, measured: list[dict], known: list[dict]) -> list[dict]:
    """The measured rows, with a readable image, to which no response is known.

    One to another image or question of that id does not count, nor, without `--from_journal`, a rejection.
    """

    def is_answered(record: dict) -> bool:
        return "teacher_response" in record or ("error" in record and (args.from_journal or not record.get("rejected")))

    keys = {record["question_id"]: record["key"] for record in known if is_answered(record)}
    return [record for record in measured if "error" not in record and keys.get(record["question_id"]) != record["key"]]


def _take_over(args: argparse.Namespace, journal: Journal) -> None:
    """Move what other processes have journaled into `journal`."""
    target = Path(args.output_path)
    for path in sorted(target.parent.glob(f"{target.name}.rank*.journal.jsonl")):
        with Journal(path.with_name(path.name.removesuffix(".journal.jsonl")), journal.settings) as other:
            journal.append(other.rows.values())
            other.remove()


def _share(rows: Dataset) -> Dataset:
    """This process's rows: every n-th, so that each process gets some of every source."""
    return rows.select(range(rank(), len(rows), num_processes())) if num_processes() > 1 else rows
