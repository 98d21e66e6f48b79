"""Steps 4 and 5: boxes and answers."""
