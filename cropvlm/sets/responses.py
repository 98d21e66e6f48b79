"""The teacher's responses as a run keeps them: in a journal that stays, with the size at which each image was seen."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from cropvlm.data.images import image_size
from cropvlm.errors import UnreadableImage, UserError, failure
from cropvlm.runs.journal import Journal
from cropvlm.runs.run import Job, Output, Run, Text
from cropvlm.runs.text_models import TextModel
from cropvlm.sets.asking import TeacherPrompts

ASK = "leave --from_journal out to ask the teacher"


@dataclass
class Responses(Output):
    """The responses to `data`, for the sets at `path`.

    A record has `size` and `seen_size` (width and height of the image as it is and as the teacher saw it) and
    `teacher_response`, or `error`; with `rejected` too where the image is readable, so that another run may get a
    response: a server refused the request, or the row was too large for memory. seen_size: of an image of a size; None
    where nothing is asked again.
    """

    data: Dataset = None
    seen_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None

    def is_done(self, question_id: str | int, key: int | None) -> bool:
        record = self.rows.get(question_id, {})
        given_up = "error" in record and (self.seen_size is None or not record.get("rejected"))
        return record.get("key") == key and (given_up or "teacher_response" in record)

    def make_record(self, i: int, text: Text) -> dict:
        if isinstance(text, ValueError):
            rejected = {} if isinstance(text, UnreadableImage) else {"rejected": True}
            return {"seconds": None, "error": str(text)} | rejected
        size = image_size(self.data[i]["image"])
        return {"seconds": None, "size": list(size), "seen_size": list(self.seen_size(size)), "teacher_response": text}


def response_run(teacher: TextModel | None, target: str, rows: Dataset, keys: list[int]) -> Run:
    """The run that asks a teacher about `rows`, or, where there is none, takes the responses from the journal alone.

    keys: of `cropvlm.runs.provenance.row_keys`. The journal also holds which images of the GRPO part can be read.
    """
    settings = teacher.settings if teacher else settings_in_journal(target)
    output = Responses(Path(target), settings, {}, {}, None, data=rows, seen_size=teacher and teacher.seen_size)
    job = Job(list(rows["question_id"]), TeacherPrompts(rows), [output], keys)
    return Run([job], teacher.generate if teacher else _only_unreadable_images)


def _only_unreadable_images(prompts: TeacherPrompts, done: Collection[int]) -> Iterator[tuple[int, UnreadableImage]]:
    """Yield the rows whose image cannot be read; `UserError` where others have no response either."""
    missing = 0
    for i in sorted(set(range(len(prompts))).difference(done)):
        try:
            prompts[i]
            missing += 1
        except UnreadableImage as error:
            yield i, error
    if missing:
        raise UserError(f"the journal has no response to {missing} of {len(prompts)} rows; {ASK}")


def settings_in_journal(target: str) -> dict[str, Any]:
    """The settings that the journal of `target` was begun with. Raises `UserError` if a teacher began none."""
    path = Journal(target, {}).path
    with failure(f"{path} is not a readable journal of a teacher; {ASK}"), path.open() as file:
        settings = json.loads(file.readline())["settings"]
        if missing := {"model_path", "min_pixels", "max_pixels", "max_new_tokens", "prompt"} - settings.keys():
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
        return settings
