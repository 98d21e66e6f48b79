"""The teacher's responses to all rows: kept in a journal as they come, asked for by one process or several.

Under `accelerate launch` every process asks for its share and keeps its own journal; the first takes them over into
its own, at the end or, after an interruption, when the next run begins.
"""

import glob
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from cropvlm.errors import UserError
from cropvlm.generation import Outcomes, generate_rows
from cropvlm.modeling import device_and_dtype, load_model, load_processor
from cropvlm.models.qwen import PixelBudget, qwen_image
from cropvlm.prompts import teacher_messages
from cropvlm.runs.journal import Journal
from cropvlm.runs.processes import device_index, exchange, rank, shard, worker_count
from cropvlm.runs.provenance import model_checksum
from cropvlm.runs.server import MOST_REJECTED
from cropvlm.sets.asking import Teacher, TeacherPrompts, inspect_rows, is_response, pixel_budget, response_records

logger = logging.getLogger(__name__)

ASK = "leave --from_journal out to ask the teacher"


def teacher_settings(teacher: Teacher) -> dict:
    """Return the settings that determine a response; a journal begun with different ones is rejected."""
    settings = {"model_path": teacher.model_path, "server": teacher.server is not None}
    if teacher.server:
        settings |= {"image_format": teacher.server.image_format}
    else:
        dtype = str(device_and_dtype(device_index(teacher.gpu))[1])
        settings |= {"model_files": model_checksum(teacher.model_path), "dtype": dtype}
    if teacher.attn_implementation:
        settings["attn_implementation"] = teacher.attn_implementation
    sizes = {key: getattr(teacher, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
    return settings | sizes | {"prompt": teacher_messages("{question}")}


def settings_in_journal(target: str) -> dict:
    """Return the settings that the journal of `target` was begun with; `UserError` if a teacher began none."""
    path = Journal(target, {}).path
    try:
        with path.open() as file:
            settings = json.loads(file.readline())["settings"]
        if missing := {"model_path", "min_pixels", "max_pixels", "max_new_tokens", "prompt"} - settings.keys():
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a readable journal of a teacher ({error}); {ASK}") from error
    return settings


@dataclass(frozen=True)
class Asking:
    """The teacher's responses to `rows` for the data set `target`, from its journal or, where it lacks them, asked for.

    The first process calls `gather`, the others `contribute`. only_journal: no teacher is asked.
    """

    teacher: Teacher
    target: str
    rows: Dataset
    only_journal: bool = False

    def gather(self, journal: Journal) -> list[dict]:
        """Return the record (see `response_records`) of every row, in order.

        A row whose image is found unreadable now is a row with an error, whatever the journal holds.
        Raises `UserError` with `only_journal` if there are any to ask for.
        """
        self._take_over(journal)
        inspected, missing, rejected = self._survey(list(journal.rows.values()))
        if self.only_journal and missing:
            rows = f"{len(missing)} of {len(self.rows)} rows, {missing[0]!r} first"
            raise UserError(f"{journal.path} has no response to {rows}; {ASK}")
        logger.info("%d of %d responses are in %s", len(self.rows) - len(missing), len(self.rows), journal.path)
        if missing:
            self._ask_share(journal, inspected, missing, rejected)
            exchange([])  # waits until the others have let go of their journals
            self._take_over(journal)
        records = journal.rows | {record["question_id"]: record for record in inspected if "error" in record}
        return [records[question_id] for question_id in self.rows["question_id"]]

    def contribute(self) -> None:
        """Ask for this process's share of the rows, and leave its journal to the first process."""
        inspected, missing, rejected = self._survey([])
        if missing and not self.only_journal:
            with Journal(f"{self.target}.rank{rank()}", teacher_settings(self.teacher)) as journal:
                self._ask_share(journal, inspected, missing, rejected)
            exchange([])

    def _survey(self, journaled: list[dict]) -> tuple[list[dict], list, set]:
        """Return all rows as inspected, the ids of those to ask for, and which of these a server rejected before.

        Asked for are rows with a readable image to which no process has journaled a response. One to another image or
        question of that id does not count, nor, unless `only_journal`, a rejection.
        """
        known = exchange(journaled)
        rows = shard(self.rows.select_columns(["image", "question", "question_id"]))
        inspected = exchange(list(inspect_rows(tqdm(rows, unit="row", desc="image sizes", disable=rank() > 0))))

        def is_answered(record: dict) -> bool:
            given_up = "error" in record and (self.only_journal or not record.get("rejected"))
            return given_up or is_response(record)

        keys = {record["question_id"]: record.get("key") for record in known if is_answered(record)}
        wanted = [row for row in inspected if "error" not in row and keys.get(row["question_id"]) != row["key"]]
        missing = [row["question_id"] for row in wanted]
        return inspected, missing, {r["question_id"] for r in known if r.get("rejected")}.intersection(missing)

    def _ask_share(self, journal: Journal, inspected: list[dict], missing: list, rejected: set) -> None:
        """Bring this process's share of the missing responses into `journal`."""
        share, wanted = shard(inspected), set(missing)
        done = [i for i, row in enumerate(share) if row["question_id"] not in wanted]
        again = [i for i, row in enumerate(share) if row["question_id"] in rejected]
        if len(done) == len(share):
            return
        prompts = TeacherPrompts(shard(self.rows), share)
        if self.teacher.server:
            outcomes, budget = ask_server(self.teacher, prompts, done, again)
        else:
            outcomes, budget = ask_model(self.teacher, prompts, done)
        progress = {"total": len(share), "initial": len(done), "unit": "row", "desc": "teacher", "smoothing": 0.05}
        for record in tqdm(response_records(outcomes, share, budget), **progress, disable=rank() > 0):
            journal.append([record])
            logger.debug("%s", record)

    def _take_over(self, journal: Journal) -> None:
        """Move what other processes have journaled into `journal`."""
        target = Path(self.target)
        for path in sorted(target.parent.glob(f"{glob.escape(target.name)}.rank*.journal.jsonl")):
            with Journal(path.with_name(path.name.removesuffix(".journal.jsonl")), journal.settings) as other:
                journal.append(other.rows.values())
                other.remove()


def failed_rows(records: list[dict]) -> list[dict]:
    """Return `question_id` and `error` of the records without a response."""
    return [{"question_id": record["question_id"], "error": record["error"]} for record in records if "error" in record]


def ask_model(teacher: Teacher, prompts: TeacherPrompts, done: list[int]) -> tuple[Outcomes, PixelBudget]:
    """Return what a model here says, batch by batch, and the pixel budget of its processor. done: rows to leave out."""
    device, dtype = device_and_dtype(device_index(teacher.gpu))
    processor = load_processor(teacher.model_path, min_pixels=teacher.min_pixels, max_pixels=teacher.max_pixels)
    budget = pixel_budget(processor, teacher.model_path)
    model = load_model(teacher.model_path, device=device, dtype=dtype, attn_implementation=teacher.attn_implementation)
    workers = worker_count(teacher.num_workers, device.type)
    options = {"max_new_tokens": teacher.max_new_tokens, "batch_size": teacher.batch_size, "num_workers": workers}
    return generate_rows(model, processor, prompts, done=done, **options), budget


def ask_server(
    teacher: Teacher, prompts: TeacherPrompts, done: list[int], again: list[int]
) -> tuple[Outcomes, PixelBudget]:
    """Return what a server's Qwen2.5-VL says. It gets images at a size that it keeps, so that its boxes can be mapped.

    done: rows to leave out. again: rows that it rejected before. They come last and in small groups: more rejections
    in a row than a group has would be taken for a fault of the server.
    """
    budget = PixelBudget().within(teacher.min_pixels, teacher.max_pixels)

    def resize(image: Image.Image) -> Image.Image:
        return qwen_image(image, *budget)

    def ask(wanted: Iterable[int]) -> Outcomes:
        return teacher.server.answer_rows(prompts, resize, everything.difference(wanted))

    everything = set(range(len(prompts)))
    groups = [again[start : start + MOST_REJECTED] for start in range(0, len(again), MOST_REJECTED)]
    return chain.from_iterable(map(ask, [everything.difference(done, again), *groups])), budget
