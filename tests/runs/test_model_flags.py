"""The flags that the generating scripts share: a server, and the data sets."""

import argparse
from types import SimpleNamespace

import pytest
from fake_server import KEY

from cropvlm.errors import UserError
from cropvlm.runs.cli import ArgumentParser
from cropvlm.runs.server import OPENAI, Server
from cropvlm.runs.text_models import add_api_flags, base_url, data_sources, server_of


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def parse(*flags: str) -> Server | None:
    parser = ArgumentParser("A script.")
    add_api_flags(parser)
    return server_of(SimpleNamespace(**vars(parser.parse_args(flags)), max_new_tokens=7))


def test_the_server_that_the_flags_name():
    assert parse() is None
    assert vars(parse("--api_model", "m")) == vars(Server(OPENAI, "m", 7, "png", 8, 120.0))
    flags = ["--api_base", "http://a/v1", "--image_format", "jpeg", "--api_concurrency", "2", "--api_timeout", "0.5"]
    assert vars(parse("--api_model", "m", *flags)) == vars(Server("http://a/v1", "m", 7, "jpeg", 2, 0.5))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--api_base", "http://a/v1"], "--api_base http://a/v1: name the model there with --api_model"),
        (["--api_model", "m", "--image_format", "gif"], "--image_format: invalid choice: 'gif'"),
        (["--api_key", KEY], "--api_key: put the key into the environment variable OPENAI_API_KEY instead"),
    ],
)
def test_a_mistake_is_a_user_error(flags, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(*flags)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("address", [f"user:{KEY}@host/v1", f"host/v1?key={KEY}", "localhost:abc/v1"])
def test_a_base_url_with_a_password_is_refused_unseen(address):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        base_url(f"http://{address}")
    assert KEY not in str(raised.value)


def sources(**flags):
    defaults = {"dataset": None, "dataset_path": None, "split": None, "max_samples": None, "name": None}
    return data_sources(argparse.Namespace(**defaults | flags))


def test_data_sources():
    common = {"split": None, "max_samples": None}
    assert sources() == [{"dataset_path": "lmms-lab/textvqa", "dataset": None} | common]
    assert sources(dataset=["docvqa", "vstar"]) == [
        {"dataset_path": "docvqa", "dataset": None} | common,
        {"dataset_path": "vstar", "dataset": None} | common,
    ]
    assert sources(dataset=["docvqa"], dataset_path="copy") == [{"dataset_path": "copy", "dataset": "docvqa"} | common]
    with pytest.raises(UserError, match="run them one by one"):
        sources(dataset=["docvqa", "vstar"], name="both")
