"""Data sets: the table of benchmarks, one split in the one row schema, images of any kind."""

from cropvlm.data.rows import load_rows

__all__ = ["load_rows"]
