"""The flags of scripts that can ask a server, and the server that they name."""

import argparse
from urllib.parse import urlsplit

from cropvlm.cli import UserError, positive
from cropvlm.runtime.server import KEY, OPENAI, SAVE_OPTIONS, Server


def add_api_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that can ask a server."""
    add = parser.add_argument
    add("--api_model", help=f"not a local model but this one of an OpenAI-compatible server; the key in ${KEY}")
    add("--api_base", type=base_url, help=f"where the server is, as http://localhost:8000/v1 (default {OPENAI})")
    add("--image_format", choices=SAVE_OPTIONS, default="png", help="of pictures sent to the server (default png)")
    add("--api_concurrency", type=positive, default=8, help="requests at a time (default 8)")
    add("--api_timeout", type=float, default=120.0, help="seconds to wait for a reply (default 120)")


def base_url(text: str) -> str:
    """The type of `--api_base`. A password in it is refused unseen: the URL is written into logs and meta files."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 (raises where it is no number)
        (parts.hostname or "").encode("idna")
        good = parts.scheme in ("http", "https") and parts.hostname and text.isprintable() and " " not in text
    except ValueError:
        good = False
    if not good:  # not shown either: it may hold a password all the same
        raise argparse.ArgumentTypeError("this is no URL such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"a URL with a user, password or query; put the key into ${KEY} instead")
    return text


def server_of(args: argparse.Namespace) -> Server | None:
    """The server that the flags name; None without `--api_model`. Raises `UserError` for flags that do not fit."""
    if args.api_model is None:
        if args.api_base:
            raise UserError(f"--api_base {args.api_base}: name the model there with --api_model")
        return None
    if not 0 < args.api_timeout < float("inf"):
        raise UserError(f"--api_timeout {args.api_timeout}: expected a number of seconds above 0, such as 120")
    return Server(
        base=args.api_base or OPENAI,
        model=args.api_model,
        max_new_tokens=args.max_new_tokens,
        image_format=args.image_format,
        concurrency=args.api_concurrency,
        timeout=args.api_timeout,
    )
