"""The size at which each family sees an image."""

from types import SimpleNamespace

import pytest

from cropvlm.modeling import load_processor
from cropvlm.models.processors import seen_size


@pytest.mark.parametrize(
    ("family", "size", "seen"),
    [
        ("smolvlm", (640, 320), (64, 32)),  # a longer side of 64 px
        ("smolvlm", (10, 2000), (1, 64)),
        ("qwen", (1400, 700), (196, 84)),  # sides of multiples of 28, at most 140 x 140 px in all
    ],
)
def test_seen_size(request, family, size, seen):
    assert seen_size(load_processor(str(request.getfixturevalue(f"tiny_{family}"))), size) == seen


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"shortest_edge": 336}, (672, 336)),  # LLaVA-1.5 as published, before it cuts the middle out
        ({"height": 384, "width": 384}, (384, 384)),
        ({}, None),
    ],
)
def test_seen_size_of_other_families(settings, seen):
    processor = SimpleNamespace(image_processor=SimpleNamespace(size=settings))
    assert seen_size(processor, (1000, 500)) == seen
