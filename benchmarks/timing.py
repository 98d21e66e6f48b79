"""The benchmarks' clock, and the machine's name above their figures."""

import time

import torch


def clock(device: torch.device) -> float:
    """Seconds so far, after waiting for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> str:
    """The GPU, or the number of threads on a CPU, and torch's version."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
