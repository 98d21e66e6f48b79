"""Data sets in the one row schema, from a folder or the Hugging Face Hub.

Every row has `image`, `question` (str), `question_id` (str or int, unique), `answers` (list of non-empty str, empty
without references) and the other columns of its source (`bbox` in the SFT part). Images stay encoded:
`{"bytes": ..., "path": ...}`, which `cropvlm.data.images.open_image` opens. `datasets`, which is slow to import, is
only imported to load a data set.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cropvlm.data.catalog import Benchmark, find_benchmark, locate
from cropvlm.errors import UserError, one_line

if TYPE_CHECKING:
    import datasets

NEEDED = ("image", "question", "question_id")


def load_rows(
    dataset_path: str | Path,
    split: str | None = None,
    max_samples: int | None = None,
    *,
    dataset: str | None = None,
    default_split: str | None = None,
    need: tuple[str, ...] = NEEDED,
    to_save: bool = False,
) -> "datasets.Dataset":
    """Rows of a data set in the one row schema: a memory-mapped `Dataset`, images still encoded.

    Args:
        dataset_path: name in `BENCHMARKS`, Hub id, `id:config`, any of these with `@revision`; folder written by
            `save_to_disk` (with or without splits), or with tables, such as a copy of a Hub repository.
        split: None takes `default_split` if the data set has it, else the benchmark's own, else the only one.
        max_samples: number of rows, from the first one; None takes all.
        dataset: name in `BENCHMARKS` whose mapping is used; by default, a known Hub id or the columns decide.
        need: columns of the schema that the caller uses; without `image` that column stays as published.
        to_save: whether `save_to_disk` must be able to embed the images; one outside of the data set is an error.

    Raises `UserError` for a missing folder, data set, split or column, invalid values, no rows, or no readable image.
    """
    from cropvlm.data import repositories, schema

    raw, benchmark, repository = repositories.load_published(dataset_path, split, dataset, default_split)
    try:
        rows = schema.map_columns(raw, benchmark, str(dataset_path), need)
        if max_samples is not None:
            rows = rows.select(range(min(max_samples, len(rows))))
        return schema.encode_images(rows, repository, to_save) if "image" in need else rows
    except UnicodeDecodeError as error:  # tables are not checked when they are opened
        raise UserError(f"{dataset_path}: text that is not UTF-8 ({one_line(error)}); expected UTF-8") from error


def benchmark_for(
    dataset_path: str | Path, dataset: str | None = None, split: str | None = None, default_split: str | None = None
) -> Benchmark:
    """Entry of `BENCHMARKS` for a data set; for a folder or an unknown Hub id, its columns decide."""
    from cropvlm.data import repositories

    known = find_benchmark(dataset_path, dataset)
    return known or repositories.load_published(dataset_path, split, dataset, default_split)[1]


def data_commit(dataset_path: str | Path) -> str | None:
    """Commit of a data set on the Hub, as loaded by this process; None for a folder."""
    from cropvlm.data import repositories

    source, _, revision = locate(dataset_path)
    return None if Path(source).is_dir() else repositories.open_repository(source, revision).commit
