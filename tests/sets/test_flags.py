"""The flags of create_dataset.py: mistakes are one line that names the flag, before anything is loaded."""

import sys

import pytest

import create_dataset
from cropvlm.errors import UserError


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
