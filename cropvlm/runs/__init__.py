"""Infrastructure for long runs: files, journal, processes, provenance, predictions, servers, flags."""
