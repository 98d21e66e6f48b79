"""Behind modeling, encoding and generation: loading, adapters, processors, batches, other families, tiles on a GPU."""
