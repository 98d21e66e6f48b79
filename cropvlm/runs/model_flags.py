"""The flags of a model on this machine or behind a server, and the server they name."""

import argparse
from urllib.parse import urlsplit

from cropvlm.errors import UserError
from cropvlm.runs.cli import batch_size, nonempty, positive, seconds, workers
from cropvlm.runs.secret import KEY
from cropvlm.runs.server import OPENAI, SAVE_OPTIONS, Server


def add_local_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model on this machine."""
    add = parser.add_argument
    add("--attn_implementation", type=nonempty, help="such as flash_attention_2; default: transformers' own choice")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=workers, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--gpu", type=int, default=0, help="index of the GPU; -1, or without a GPU, the CPU in fp32")


def add_api_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of scripts that can ask a server."""
    add = parser.add_argument
    add("--api_model", type=nonempty, help=f"a model of an OpenAI-compatible server; the key is read from ${KEY}")
    add("--api_base", type=base_url, help=f"address of the server, as http://localhost:8000/v1 (default {OPENAI})")
    add("--image_format", choices=SAVE_OPTIONS, default="png", help="of images sent to the server (default png)")
    add("--api_concurrency", type=positive, default=8, help="requests at a time (default 8)")
    add("--api_timeout", type=seconds, default=120.0, help="seconds to wait for a reply (default 120)")
    add("--api_key", type=no_key, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def base_url(text: str) -> str:
    """The type of `--api_base`. A password in it is refused unseen: the URL is written into logs and meta files."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in text
    except ValueError:  # such as a port that is not a number
        good = False
    if not good:  # not shown either: it may hold a password all the same
        raise argparse.ArgumentTypeError("expected a URL such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"a URL with a user, password, key or query; put the key into ${KEY} instead")
    return text


def no_key(text: str) -> str:
    """The type of `--api_key`, which is refused unseen: other users of a machine can read a command line."""
    raise argparse.ArgumentTypeError(f"put the key into the environment variable {KEY} instead")


def server_of(args: argparse.Namespace) -> Server | None:
    """The server that the flags name; None without `--api_model`. Raises `UserError` for flags that do not fit."""
    if args.api_model is None:
        if args.api_base is not None:
            raise UserError(f"--api_base {args.api_base}: name the model there with --api_model")
        return None
    return Server(
        base=args.api_base or OPENAI,
        model=args.api_model,
        max_new_tokens=args.max_new_tokens,
        image_format=args.image_format,
        concurrency=args.api_concurrency,
        timeout=args.api_timeout,
    )


def refuse_beside_server(args: argparse.Namespace, *flags: str) -> None:
    """Raise `UserError` where a server is asked and one of `flags`, or another of a local model, is given as well."""
    given = [f"--{flag}" for flag in (*flags, "attn_implementation") if getattr(args, flag) is not None]
    if server_of(args) and given:
        raise UserError(f"{', '.join(given)}: for a model on this machine; leave it out beside --api_model")
