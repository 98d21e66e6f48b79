"""Rows that are prepared while the model works on others."""

import threading
import time

import pytest
from pictures import Pairs, noise

from cropvlm.errors import UserError
from cropvlm.generation import generate_rows
from cropvlm.modeling import load_model, load_processor
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


def test_a_worker_prepares_the_next_rows_while_the_model_sleeps(tiny_smolvlm, tmp_path, monkeypatch):
    """The model returns only when the next row has been opened, which its own process cannot do meanwhile."""

    class Rows(Pairs):
        def __getitem__(self, i):
            (tmp_path / str(i)).touch()
            return super().__getitem__(i)

    model, processor = load_model(str(tiny_smolvlm), device="cpu"), load_processor(str(tiny_smolvlm))
    asked = []

    def sleep(input_ids, **options):
        asked.append(len(asked))
        end = time.monotonic() + 60
        while asked[-1] < 2 and not (tmp_path / str(asked[-1] + 1)).exists():
            assert time.monotonic() < end, "nothing was prepared meanwhile"
            time.sleep(0.01)
        return input_ids

    monkeypatch.setattr(model, "generate", sleep)
    rows = Rows([(noise(64, 48, seed=i), noise(9, 9)) for i in range(3)])
    outcomes = dict(generate_rows(model, processor, rows, max_new_tokens=1, batch_size=1, num_workers=1))
    assert outcomes == {i: ["", ""] for i in range(3)}
