"""Rows of the training mixture: several data sets in one schema, each halved, and those that training can use."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

from datasets import Dataset, List, Value, concatenate_datasets
from tqdm import tqdm

from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UnreadableImage, UserError, listed
from cropvlm.runs.journal import Journal
from cropvlm.sets.flags import Source
from cropvlm.teacher import GrownBox, halves, share_of

logger = logging.getLogger(__name__)

SCHEMA = ("image", "question", "question_id", "answers", "source")
STRINGS = List(Value("string"))


def load_sources(sources: Sequence[Source], split: str | None = None, max_samples: int | None = None) -> list[Dataset]:
    """Return the rows of every source; of several, only the schema's columns, with ids `name/id`.

    max_samples: number of rows of each, from the first one. Raises `UserError` for two sources of one name, and as
    `load_rows`.
    """
    for one, other in combinations(sources, 2):
        if one.name == other.name:
            raise UserError(f"{one.path} and {other.path} are both called {one.name}; rename one, or name it once")
    loaded = [_load_source(source, split, max_samples) for source in sources]
    return loaded if len(loaded) == 1 else [_in_schema(rows) for rows in loaded]


def _load_source(source: Source, split: str | None, max_samples: int | None) -> Dataset:
    """The rows of one source with its name in `source`; encoded images are neither decoded nor copied."""
    rows = load_rows(source.path, split, max_samples, default_split="train", to_save=True)
    if source.limit is not None:
        number = source.limit if isinstance(source.limit, int) else share_of(source.limit, len(rows))
        if number == 0:
            raise UserError(f"{source.path} has {len(rows)} rows; a share of {source.limit} holds not even one")
        rows = rows.select(range(min(number, len(rows))))
    if "answers" not in rows.column_names:  # such rows can be boxed
        rows = rows.add_column("answers", [[]] * len(rows), feature=STRINGS)
    return with_columns(rows, {"source": [source.name] * len(rows)})


def _in_schema(rows: Dataset) -> Dataset:
    ids = [f"{source}/{i}" for source, i in zip(rows["source"], rows["question_id"], strict=True)]
    return with_columns(rows, {"question_id": ids}).select_columns(list(SCHEMA)).cast_column("answers", STRINGS)


def with_columns(rows: Dataset, columns: dict[str, list]) -> Dataset:
    """Return the rows with these columns, in place of those of the same names."""
    rows = rows.remove_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def halve(sources: list[Dataset], sft_share: float = 0.5) -> tuple[Dataset, Dataset | None]:
    """Return SFT and GRPO part by `cropvlm.teacher.halves` (None for an empty one); both hold every source.

    Raises `UserError` if a source has no row for SFT.
    """
    counts = halves([len(rows) for rows in sources], sft_share)
    for rows, count in zip(sources, counts, strict=True):
        if count == 0:
            name = rows[0]["source"]
            raise UserError(f"{name} has {len(rows)} rows; a share of {sft_share} for SFT holds not even one")
    first = [rows.select(range(count)) for rows, count in zip(sources, counts, strict=True)]
    rest = [rows.select(range(n, len(rows))) for rows, n in zip(sources, counts, strict=True) if n < len(rows)]
    return concatenate_datasets(first), concatenate_datasets(rest) if rest else None


def with_boxes(rows: Dataset, records: Sequence[dict], boxes: Sequence[GrownBox | None]) -> Dataset:
    """Return the rows that have a box, with `bbox` (4 ints, percent) and `teacher_response` from box and record."""
    responses = [record.get("teacher_response") or "" for record in records]
    columns = {
        "bbox": [box and list(box.bbox_pct) for box in boxes],
        # Half a surrogate pair, which an older journal may hold, cannot be written as UTF-8.
        "teacher_response": [text.encode("utf-8", "replace").decode() for text in responses],
    }
    # Columns go in before rows go out: adding one to a selection of rows, datasets would first copy all the images.
    kept = [i for i, box in enumerate(boxes) if box]
    return _select(with_columns(rows, columns), kept, "unreadable images or failed rows, left out of the SFT part")


def with_references(rows: Dataset) -> Dataset:
    """Return the rows of the GRPO part that have references, which the reward needs. `UserError` if none has."""
    kept = [i for i, answers in enumerate(rows["answers"]) if answers]
    if not kept:
        raise UserError(f"none of the {len(rows)} rows for GRPO has references; box them all with --sft_share 1.0")
    return _select(rows, kept, "no references, left out of the GRPO part")


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
    return _select(rows, kept, "unreadable images, left out of the GRPO part")


def _select(rows: Dataset, kept: list[int], reason: str) -> Dataset:
    """The rows `kept`; the others are counted by source and named in the log."""
    if len(kept) == len(rows):
        return rows
    left_out = rows.select_columns(["source", "question_id"]).select(sorted(set(range(len(rows))) - set(kept)))
    ids = listed([str(i) for i in left_out["question_id"]])
    logger.warning("%s: %s (%s)", reason, dict(Counter(left_out["source"])), ids)
    return rows.select(kept)
