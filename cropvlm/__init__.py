"""CropVLM: learn where to zoom, then let any frozen vision-language model answer (arXiv 2511.19820)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`cropvlm.Cropper`, imported when it is asked for: it needs torch, and most modules do not."""
    if name == "Cropper":
        from cropvlm.cropper import Cropper

        return Cropper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
