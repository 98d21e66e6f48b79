"""Rows that training can use: with a box or references, and an image that can be read. The others are named."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from datasets import Dataset
from tqdm import tqdm

from cropvlm.data.images import open_image
from cropvlm.errors import UnreadableImage, UserError, listed
from cropvlm.runs.journal import Journal
from cropvlm.teacher import GrownBox

logger = logging.getLogger(__name__)


def with_boxes(rows: Dataset, records: Sequence[dict], boxes: Sequence[GrownBox | None]) -> Dataset:
    """Return the rows that have a box, with `bbox` (4 ints, percent) and `teacher_response` from box and record."""
    responses = [record.get("teacher_response") or "" for record in records]
    columns = {
        "bbox": [box and list(box.bbox_pct) for box in boxes],
        # Half a surrogate pair, which an older journal may hold, cannot be written as UTF-8.
        "teacher_response": [text.encode("utf-8", "replace").decode() for text in responses],
    }
    # Columns go in before rows go out: adding one to a selection of rows, datasets would first copy all the images.
    rows = rows.remove_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    kept = [i for i, box in enumerate(boxes) if box]
    return _leave_out_others(rows, kept, "unreadable images or failed rows, left out of the SFT part")


def with_references(rows: Dataset | None) -> Dataset | None:
    """Return the rows of the GRPO part, if there is one, that have references, which the reward needs.

    Raises `UserError` if none has.
    """
    if rows is None:
        return None
    kept = [i for i, answers in enumerate(rows["answers"]) if answers]
    if not kept:
        raise UserError(f"none of the {len(rows)} rows for GRPO has references; box them all with --sft_share 1.0")
    return _leave_out_others(rows, kept, "no references, left out of the GRPO part")


def with_readable_images(rows: Dataset, keys: list[int], journal: Journal) -> Dataset:
    """Return the rows of the GRPO part whose image can be decoded: training would stop at another, hours from now.

    The results are kept in the journal, beside the teacher's responses, so that no image is decoded at every run.
    keys: of `cropvlm.runs.provenance.row_keys`. Raises `UserError` if no image can be.
    """
    ids, images = list(rows["question_id"]), rows.select_columns(["image"])

    def is_known(i: int) -> bool:
        record = journal.rows.get(ids[i], {})  # `rejected`: by a server, as a row of the SFT part
        return record.get("key") == keys[i] and not record.get("rejected")

    def decode(i: int) -> dict:
        try:
            open_image(images[i]["image"])
        except UnreadableImage as error:
            return {"question_id": ids[i], "key": keys[i], "error": str(error)}
        return {"question_id": ids[i], "key": keys[i], "readable": True}

    unknown = [i for i in range(len(rows)) if not is_known(i)]
    with ThreadPoolExecutor(max_workers=4) as threads:  # few: a scan of 100 megapixels takes 300 MB
        for record in tqdm(threads.map(decode, unknown), total=len(unknown), unit="row", desc="GRPO images"):
            journal.append([record])
    kept = [k for k, i in enumerate(ids) if "error" not in journal.rows[i]]
    if not kept:
        raise UserError(f"none of the {len(rows)} images of the GRPO part can be read; check the data set")
    return _leave_out_others(rows, kept, "unreadable images, left out of the GRPO part")


def _leave_out_others(rows: Dataset, kept: list[int], reason: str) -> Dataset:
    """The rows `kept`; the others are counted by source and named in the log."""
    if len(kept) == len(rows):
        return rows
    left_out = rows.select_columns(["source", "question_id"]).select(sorted(set(range(len(rows))) - set(kept)))
    ids = listed([str(i) for i in left_out["question_id"]])
    logger.warning("%s: %s (%s)", reason, dict(Counter(left_out["source"])), ids)
    return rows.select(kept)
