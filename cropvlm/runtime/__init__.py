"""How a long run is carried: files, journal, processes, provenance, models behind a server."""
