"""The flags of create_dataset.py: sources as the user names them; a mistake is one line that names the flag."""

import sys
from argparse import ArgumentTypeError

import pytest

import create_dataset
from cropvlm.errors import UserError
from cropvlm.sets.flags import Source, parse_source


def parse(monkeypatch, *flags: str):
    monkeypatch.setattr(sys, "argv", ["create_dataset.py", *flags])
    return create_dataset.parse_args()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--growth", "1", "2"], "--growth: expected 5"),
        (["--min_pixels", "9000", "--max_pixels", "8000"], "--min_pixels 9000 is more than --max_pixels 8000"),
        (["--dataset_path", "textvqa=2.0"], "--dataset_path: 'textvqa=2.0'"),
        (["--output_path", ".."], "--output_path: '..'"),
        (["--api_base", "http://127.0.0.1:1/v1"], "name the model there with --api_model"),
        (["--api_model", "m", "--attn_implementation", "sdpa"], "leave it out beside --api_model"),
    ],
)
def test_a_mistake(monkeypatch, flags, message):
    with pytest.raises(UserError) as raised:
        parse(monkeypatch, *flags)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_defaults(monkeypatch):
    args = parse(monkeypatch, "--output_path", "here/made/")
    assert [source.path for source in args.dataset_path] == ["lmms-lab/textvqa"]
    assert tuple(args.growth) == (45, 10, 4, 2, 1)
    assert args.model_path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert args.output_path == "here/made"


def test_parse_source(tmp_path):
    folder = tmp_path / "run=3"
    folder.mkdir()
    expected = {
        "docvqa=10000": Source("docvqa", "docvqa", 10000),  # whole number: a cap
        "docvqa=0.5": Source("docvqa", "docvqa", 0.5),  # with a point: a share
        "lmms-lab/DocVQA:InfographicVQA=7": Source("lmms-lab/DocVQA:InfographicVQA", "infovqa", 7),
        "someone/set": Source("someone/set", "set", None),
        str(folder): Source(str(folder), "run=3", None),
    }
    assert {text: parse_source(text) for text in expected} == expected


@pytest.mark.parametrize("number", ["", "many", "0", "1.5", "nan", "9" * 5000], ids=lambda number: ascii(number)[:9])
def test_parse_source_refuses(number):
    with pytest.raises(ArgumentTypeError, match="expected a number of rows or a share") as raised:
        parse_source(f"docvqa={number}")
    assert len(str(raised.value)) < 250  # more digits than Python reads
    with pytest.raises(ArgumentTypeError, match="got an empty text"):
        parse_source("=5")
