"""Rows that are prepared while the model works on others."""

import threading

import pytest

from cropvlm.errors import UserError
from cropvlm.models.preparation import one_ahead


def test_the_next_batch_is_prepared_while_this_one_is_generated():
    """The model's work on the first item can only end when the second one has been made."""
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    seen = []
    for item in one_ahead(items()):
        assert second.wait(timeout=60)
        seen.append(item)
    assert seen == [1, 2]


def test_an_error_on_the_way_to_the_next_batch_is_raised():
    def items():
        yield 1
        raise UserError("no such row")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(UserError, match="no such row"):
        next(ahead)
