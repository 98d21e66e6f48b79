"""A training mixture: several data sets in one schema, ids that stay unique, each source halved for SFT and GRPO."""

from collections.abc import Sequence
from itertools import combinations

from datasets import Dataset, List, Value, concatenate_datasets

from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError
from cropvlm.sets.sources import Source
from cropvlm.teacher import halves, share_of

SCHEMA = ("image", "question", "question_id", "answers", "source")
STRINGS = List(Value("string"))


def load_source(source: Source, split: str | None, max_samples: int | None) -> Dataset:
    """Return the rows of one source, at most `max_samples`, with its name in `source`; images still encoded.

    Nothing but the table is changed: encoded images are neither decoded nor copied.
    """
    rows = load_rows(source.path, split, max_samples, default_split="train", to_save=True)
    if source.limit is not None:
        number = source.limit if isinstance(source.limit, int) else share_of(source.limit, len(rows))
        if number == 0:
            raise UserError(f"{source.path} has {len(rows)} rows; a share of {source.limit} holds not even one")
        rows = rows.select(range(min(number, len(rows))))
    if "answers" not in rows.column_names:  # such rows can be boxed
        rows = rows.add_column("answers", [[]] * len(rows), feature=STRINGS)
    if "source" in rows.column_names:
        rows = rows.remove_columns("source")
    return rows.add_column("source", [source.name] * len(rows))


def load_sources(sources: Sequence[Source], split: str | None = None, max_samples: int | None = None) -> list[Dataset]:
    """Return the rows of every source; of several, only the schema's columns, with ids `name/id`.

    max_samples: the first so many rows of each. Raises `UserError` for two sources of one name, and as `load_rows`.
    """
    for one, other in combinations(sources, 2):
        if one.name == other.name:
            raise UserError(f"{one.path} and {other.path} are both called {one.name}; rename one, or name it once")
    loaded = [load_source(source, split, max_samples) for source in sources]
    return loaded if len(loaded) == 1 else [_in_schema(rows) for rows in loaded]


def _in_schema(rows: Dataset) -> Dataset:
    ids = [f"{source}/{i}" for source, i in zip(rows["source"], rows["question_id"], strict=True)]
    others = rows.select_columns([name for name in SCHEMA if name != "question_id"])
    rows = others.add_column("question_id", ids, feature=Value("string")).select_columns(list(SCHEMA))
    return rows.cast_column("answers", STRINGS)


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
