"""Cost of each part of a model during generation, in seconds or floating-point operations."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

ENCODING, READING, WRITING = "encoding images", "reading prompts", "writing tokens"


class Phases:
    """Within `with`, reads `meter` before and after every part of an Idefics3 model and adds up the differences.

    meter: seconds so far (see `clock`), or operations so far (`FlopCounterMode.get_total_flops`).
    spent: by part: the vision encoder and its connector; the language model over whole prompts; and over single tokens.
    """

    def __init__(self, model: Any, meter: Callable[[], float]):
        self.meter = meter
        self.spent: Counter[str] = Counter()
        self._parts = {
            model.model.vision_model: lambda _: ENCODING,
            model.model.connector: lambda _: ENCODING,
            model.model.text_model: lambda output: READING if output.last_hidden_state.shape[1] > 1 else WRITING,
            model.lm_head: lambda _: WRITING,
        }

    def __enter__(self) -> "Phases":
        started = []
        self._hooks = []
        for module, part in self._parts.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_: started.append(self.meter())))
            self._hooks.append(
                module.register_forward_hook(
                    lambda _, __, output, part=part: self.spent.update({part(output): self.meter() - started.pop()})
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def clock(device: torch.device) -> float:
    """Seconds so far, after waiting for the device to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
