"""Sources as the user names them."""

from argparse import ArgumentTypeError

import pytest

from cropvlm.sets.flags import Source, parse_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docvqa=10000", Source("docvqa", "docvqa", 10000)),  # whole number: a cap
        ("docvqa=0.5", Source("docvqa", "docvqa", 0.5)),  # with a point: a share
        ("lmms-lab/DocVQA:InfographicVQA=7", Source("lmms-lab/DocVQA:InfographicVQA", "infovqa", 7)),
        ("someone/set", Source("someone/set", "set", None)),
    ],
)
def test_parse_source(text, expected):
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "number",
    ["", "many", "0", "1.5", "nan", "9" * 5000],  # more digits than Python reads
    ids=lambda number: ascii(number)[:9],
)
def test_parse_source_refuses(number):
    with pytest.raises(ArgumentTypeError, match="expected a number of rows or a share") as raised:
        parse_source(f"docvqa={number}")
    assert len(str(raised.value)) < 250


def test_a_folder_whose_name_has_an_equals_sign(tmp_path):
    folder = tmp_path / "run=3"
    folder.mkdir()
    assert parse_source(str(folder)) == Source(str(folder), "run=3", None)


@pytest.mark.parametrize("text", ["", "=5"])
def test_a_source_without_a_name(text):
    with pytest.raises(ArgumentTypeError, match="got an empty text"):
        parse_source(text)
