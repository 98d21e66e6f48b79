"""The key is in no text that is shown, however a server spells it."""

import base64
import json
import time
import urllib.parse

import pytest

from cropvlm.runs.secret import redact

KEY = "sk-Proj_x9&Y/z+0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "copy",
    {
        "as it is": KEY,
        "upper case": KEY.upper(),
        "lower case": KEY.lower(),
        "in a URL": urllib.parse.quote(KEY, safe=""),
        "in a URL in a URL": urllib.parse.quote(urllib.parse.quote(KEY, safe=""), safe=""),
        "all of it for a URL": "".join(f"%{ord(c):02X}" for c in KEY),
        "in JSON": json.dumps(KEY)[1:-1].replace("/", r"\/").replace("&", r"\u0026"),
        "all of it for JSON": "".join(rf"\u{ord(c):04x}" for c in KEY),
        "in JSON in JSON": "".join(rf"\\u{ord(c):04X}" for c in KEY)[1:],
        "for Python": "".join(rf"\x{ord(c):02x}" for c in KEY),
        "in HTML": "".join(f"&#{ord(c)};" for c in KEY),
        "in HTML in hexadecimal": "".join(f"&#x{ord(c):X};" for c in KEY),
        "in hexadecimal": KEY.encode().hex(),
        "over two lines": f"{KEY[:9]}\n  {KEY[9:]}",
        "over two lines in JSON": rf"{KEY[:9]}\n{KEY[9:]}",
        "letter by letter": " ".join(KEY),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_copy_of_the_key_is_replaced(copy):
    assert redact(f"the key {copy[1]}, and more") == "the key ***, and more"


@pytest.mark.parametrize("before", ["", ":", "me:", "Bearer ", "user:"])
@pytest.mark.parametrize("alphabet", ["standard", "of URLs"])
def test_the_key_in_base64_is_replaced(before, alphabet):
    encoded = in_base64(f"{before}{KEY}")
    if alphabet == "of URLs":
        encoded = encoded.replace("+", "-").replace("/", "_")
    for text in (encoded, f"{encoded[:11]}\n{encoded[11:]}"):
        left = redact(f"Basic {text}").removeprefix("Basic ")
        assert left.count("***") == 1
        # What is left beside stands for the text before the key, and for at most a character of it on either side.
        assert len(left) - 3 <= len(in_base64(before)) + 4


def test_every_copy_is_replaced():
    assert redact(f"{KEY} {KEY}{KEY}") == "*** ******"


@pytest.mark.parametrize("text", ["", "Coke", "sk-Proj", KEY[:-1], in_base64(KEY[:-4]), "\ud83d"])
def test_other_texts_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize("placeholder", ["", "x", "EMPTY", "none", "1234", "token"])
def test_a_placeholder_is_not_replaced(monkeypatch, placeholder):
    monkeypatch.setenv("OPENAI_API_KEY", placeholder)
    assert redact("Empty, none, token 1234 x") == "Empty, none, token 1234 x"


@pytest.mark.parametrize("text", ["s\\", "\\", KEY[:-1] + "\\ ", "73", "%25", " "], ids=ascii)
def test_a_hostile_text_takes_no_longer_than_its_length(text):
    start = time.monotonic()
    redact(text * (2**20 // len(text)))
    assert time.monotonic() - start < 10
