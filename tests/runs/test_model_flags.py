"""The flags of scripts that can ask a server."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_server import KEY

from cropvlm.errors import UserError
from cropvlm.runs.cli import ArgumentParser
from cropvlm.runs.model_flags import add_api_flags, base_url, server_of
from cropvlm.runs.server import OPENAI, Server


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
        (["--api_base", "", "--api_model", "m"], "--api_base: expected a URL such as"),
        (["--api_model", ""], "--api_model: expected a value, got an empty text"),
        (["--api_model", "m", "--image_format", "gif"], "--image_format: invalid choice: 'gif'"),
        (["--api_model", "m", "--api_concurrency", "0"], "--api_concurrency: '0': expected a positive integer"),
        (["--api_timeout", "nan"], "--api_timeout: 'nan': expected a number of seconds"),
        (["--api_key", KEY], "--api_key: put the key into the environment variable OPENAI_API_KEY instead"),
    ],
)
def test_a_mistake_is_a_user_error(flags, message):
    with pytest.raises(UserError) as raised:
        parse(*flags)
    assert message in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [f"https://user:{KEY}@host/v1", f"https://host/v1?key={KEY}", f"user:{KEY}@host/v1", "http://localhost:abc/v1"],
    ids=ascii,
)
def test_a_base_url_with_a_password_is_refused_unseen(url):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        base_url(url)
    assert KEY not in str(raised.value)


def test_flags_are_parsed_without_slow_imports():
    code = "import sys, cropvlm.runs.model_flags; print(sys.modules.keys() & {'openai', 'torch', 'httpx2'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
