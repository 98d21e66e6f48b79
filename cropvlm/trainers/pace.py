"""Rows and tokens a second of a training run, and the share of its time in which it waits for images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """A stopwatch that runs in a trainer's steps: not while it is measured on held-out rows or saved."""

    def __init__(self):
        self.seconds = self.waited = 0.0
        self.rows = 0.0
        self.tokens: int | None = None  # counted when the figures were last taken
        self._since: float | None = None

    def run(self, tokens: int) -> None:
        """Start the stopwatch unless it runs. tokens: of all steps so far."""
        self.tokens = tokens if self.tokens is None else self.tokens
        self._since = time.perf_counter() if self._since is None else self._since

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for images."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def figures(self, tokens: int) -> dict[str, float]:
        """Return what is logged, since the last call. tokens: of all steps so far."""
        seconds = self.seconds or 1.0
        figures = {
            "rows_per_second": self.rows / seconds,
            "tokens_per_second": (tokens - (self.tokens or 0)) / seconds,
            "waited_for_images": self.waited / seconds,
        }
        self.seconds = self.waited = self.rows = 0.0
        self.tokens = tokens
        return figures
