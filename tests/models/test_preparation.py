"""Rows that are prepared while the model works on others."""

import threading

import pytest

from cropvlm.errors import UserError
from cropvlm.models.preparation import one_ahead


def test_the_next_batch_is_prepared_while_this_one_is_generated():
    """The model's work on the first item can only end when the second one has been made; an error comes in its turn."""
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2
        raise UserError("no such row")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    assert second.wait(timeout=60)
    assert next(ahead) == 2
    with pytest.raises(UserError, match="no such row"):
        next(ahead)
