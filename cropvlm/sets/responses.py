"""The teacher's responses as a run keeps them: in a journal that stays, with the size at which each image was seen."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from cropvlm.data.images import image_size
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.models.qwen import qwen_size
from cropvlm.runs.journal import Journal
from cropvlm.runs.run import Job, Output, Run, Text
from cropvlm.sets.asking import Asked, Teacher, TeacherPrompts


@dataclass
class Responses(Output):
    """The responses to `data`, for the sets at `path`.

    A record has `size` and `seen_size` (width and height of the image as it is and as the teacher saw it) and
    `teacher_response`, or `error`; with `rejected` too where the image is readable, so that another run may get a
    response: a server refused the request, or the row was too large for memory. only_journal: nothing is asked again.
    """

    data: Dataset = None
    asked: Asked = None
    only_journal: bool = False

    def is_done(self, question_id: str | int, key: int | None) -> bool:
        record = self.rows.get(question_id, {})
        given_up = "error" in record and (self.only_journal or not record.get("rejected"))
        return record.get("key") == key and (given_up or "teacher_response" in record)

    def make_record(self, i: int, text: Text) -> dict:
        if isinstance(text, ValueError):
            rejected = {} if isinstance(text, UnreadableImage) else {"rejected": True}
            return {"seconds": None, "error": str(text)} | rejected
        size = image_size(self.data[i]["image"])
        seen_size = list(qwen_size(size, *self.asked.budget))
        return {"seconds": None, "size": list(size), "seen_size": seen_size, "teacher_response": text}


def response_run(teacher: Teacher, target: str, rows: Dataset, keys: list[int], only_journal: bool) -> Run:
    """The run that asks a teacher about `rows`, or with `only_journal` takes the responses from the journal alone.

    keys: of `cropvlm.runs.provenance.row_keys`. The journal also holds which images of the GRPO part can be read.
    """
    asked = Asked(teacher)
    settings = settings_in_journal(target) if only_journal else asked.settings()
    output = Responses(Path(target), settings, {}, {}, None, data=rows, asked=asked, only_journal=only_journal)

    def generate(prompts: TeacherPrompts, done: Collection[int]) -> Iterator[tuple[int, UnreadableImage]]:
        missing = 0
        for i in sorted(set(range(len(prompts))).difference(done)):
            try:
                prompts[i]
                missing += 1
            except UnreadableImage as error:
                yield i, error
        if missing:
            seen = f"{output.journal.path} has no response to {missing} of {len(rows)} rows"
            raise UserError(f"{seen}; leave --from_journal out to ask the teacher")

    job = Job(list(rows["question_id"]), TeacherPrompts(rows), [output], keys)
    return Run([job], generate if only_journal else asked.generate)


def settings_in_journal(target: str) -> dict[str, Any]:
    """The settings that the journal of `target` was begun with. Raises `UserError` if a teacher began none."""
    path = Journal(target, {}).path
    try:
        with path.open() as file:
            settings = json.loads(file.readline())["settings"]
        if missing := {"model_path", "min_pixels", "max_pixels", "max_new_tokens", "prompt"} - settings.keys():
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        seen = f"{path} is not a readable journal of a teacher ({error})"
        raise UserError(f"{seen}; leave --from_journal out to ask the teacher") from error
    return settings


def failed_rows(records: list[dict]) -> list[dict]:
    """Return `question_id` and `error` of the records without a response."""
    return [{"question_id": record["question_id"], "error": record["error"]} for record in records if "error" in record]
