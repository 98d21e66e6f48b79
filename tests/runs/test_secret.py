"""The key is in no text that is shown."""

import pytest

from cropvlm.runs.cli import redact

KEY = "sk-Proj_x9&Y/z+0123456789"


def test_every_copy_of_the_key_is_replaced(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert redact(f"the key {KEY} {KEY}{KEY}") == "the key *** ******"
    for text in ("", "Coke", "sk-Proj", KEY[:-1]):
        assert redact(text) == text


@pytest.mark.parametrize("placeholder", ["", "EMPTY", "1234"])
def test_a_placeholder_is_not_replaced(monkeypatch, placeholder):
    monkeypatch.setenv("OPENAI_API_KEY", placeholder)
    assert redact("EMPTY, none, token 1234 x") == "EMPTY, none, token 1234 x"
