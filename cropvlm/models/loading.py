"""Device and path of a model before it is loaded."""

import contextlib
import functools
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from cropvlm.errors import UserError, failure
from cropvlm.models.revisions import split_revision

# No loader runs code from a model's folder, or asks on stdin whether it may.
NO_CODE = {"trust_remote_code": False}


def device_and_dtype(gpu: int | None = 0) -> tuple[torch.device, torch.dtype]:
    """Return GPU number `gpu` with bfloat16, or the CPU with float32 on a machine without a GPU.

    None or a negative number selects the CPU. Raises `UserError` if there are GPUs, but not this one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None or gpu < 0 or count == 0:
        return torch.device("cpu"), torch.float32
    if gpu >= count:
        gpus = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
        raise UserError(f"GPU {gpu} does not exist: this machine has {gpus}; name one with --gpu")
    return torch.device("cuda", gpu), torch.bfloat16


@functools.cache
def check_model_path(path: str) -> None:
    """Check once that `path` exists, before a loader looks for a dozen files one by one.

    Raises `UserError` for a path that is neither a folder nor a Hub id, reachable or in the cache.
    """
    if Path(path).is_dir():
        return
    # `models/sft_512` could be a Hub id, but where there is a folder `models` the user means a folder.
    name, revision = split_revision(str(path))
    parent = Path(name).parent
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or (parent.name and parent.is_dir()):
        raise UserError(f"{path}: no such folder; name a Hub id or the folder of a model or adapter")
    with failure(f"{path}: neither a local folder nor available on the Hub"):
        files = ("config.json", "adapter_config.json")
        if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files):
            return
        with contextlib.suppress(RemoteEntryNotFoundError):  # the repository exists: an adapter has no config.json
            hf_hub_download(name, "config.json", revision=revision)
