"""Infrastructure of a long run: files, journal, processes, provenance, models behind a server."""
