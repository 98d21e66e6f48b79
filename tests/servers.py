"""Servers in processes of their own, on loopback: gone at the end of the context."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A real OpenAI-compatible server, which loads the model that a request names.
TRANSFORMERS_SERVE = ["transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--device", "cpu"]


@contextlib.contextmanager
def serving(folder: Path, *command: object, ready: str, seconds: float = 500) -> Iterator[str]:
    """The URL of `python3 -m COMMAND --port PORT`, run in `folder`, once it answers at the path `ready`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / f"{port}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        call = [sys.executable, "-m", *map(str, command), "--port", str(port)]
        process = subprocess.Popen(call, cwd=folder, env=environment, stdout=output, stderr=output)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(OSError):
                opener.open(f"http://127.0.0.1:{port}/{ready}", timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
