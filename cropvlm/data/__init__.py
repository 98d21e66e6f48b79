"""Data sets: the table of benchmarks, one split in the one row schema, images of any kind."""
