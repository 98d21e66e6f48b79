"""The flags that name a model, here or behind a server, and the data sets; what they name, ready to generate texts."""

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cropvlm.data.catalog import BENCHMARKS
from cropvlm.data.rows import data_commit
from cropvlm.errors import UserError
from cropvlm.runs.cli import KEY, batch_size, file_name, nonempty, positive, seconds, workers
from cropvlm.runs.processes import device_index, worker_count
from cropvlm.runs.provenance import describe_model, hash_of, questions_hash, references_hash
from cropvlm.runs.run import Count, Generate, Output
from cropvlm.runs.server import OPENAI, SAVE_OPTIONS, Server, fit_longest_edge

DEFAULT_DATASET = "lmms-lab/textvqa"
# SmolVLM's default: the release's, for its cropper and for the images that its reward VLM sees.
LONGEST_EDGE = 512


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `generate_bbox.py` and `generate_final_answers.py` share."""
    add = parser.add_argument
    add_api_flags(parser)
    add("--dataset_path", type=nonempty, help=f"benchmark, Hub id (id:config) or local folder ({DEFAULT_DATASET})")
    add(
        "--dataset",
        nargs="+",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"benchmarks ({' '.join(BENCHMARKS)}); beside --dataset_path: whose columns it has",
    )
    add("--split", type=nonempty, help="default: the benchmark's own, or the only one")
    add("--name", type=file_name, help="{name} of the files; default: the data set's")
    add("--max_samples", type=positive, help="number of rows, from the first one")
    add_local_flags(parser)
    add("--verbose", action="store_true", help="log every text, and the cause of an error")


def add_local_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model on this machine."""
    add = parser.add_argument
    add("--attn_implementation", type=nonempty, help="such as flash_attention_2; default: transformers' own choice")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=workers, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--gpu", type=int, default=0, help="index of the GPU; -1, or without a GPU, the CPU in fp32")


def add_api_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model behind a server."""
    add = parser.add_argument
    add("--api_model", type=nonempty, help=f"a model of an OpenAI-compatible server; the key is read from ${KEY}")
    add("--api_base", type=base_url, help=f"address of the server, as http://localhost:8000/v1 (default {OPENAI})")
    add("--image_format", choices=SAVE_OPTIONS, default="png", help="of images sent to the server (default png)")
    add("--api_concurrency", type=positive, default=8, help="requests at a time (default 8)")
    add("--api_timeout", type=seconds, default=120.0, help="seconds to wait for a reply (default 120)")
    add("--api_key", type=no_key, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def base_url(text: str) -> str:
    """The type of `--api_base`. A URL with a password is refused unseen: it would be written into logs and files."""
    with contextlib.suppress(ValueError):  # such as a port that is not a number
        parts = urlsplit(text)
        bare = "@" not in parts.netloc and not parts.query and not parts.fragment and " " not in text
        if bare and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text
    expected = "expected a URL such as http://localhost:8000/v1 without a user, password or query"
    raise argparse.ArgumentTypeError(f"{expected}; put a key into ${KEY} instead")


def no_key(text: str) -> str:
    """The type of `--api_key`, which is refused unseen: other users of a machine can read a command line."""
    raise argparse.ArgumentTypeError(f"put the key into the environment variable {KEY} instead")


def check_model_flags(args: argparse.Namespace, *local: str) -> None:
    """Raise `UserError` for flags that do not fit each other. local: flags of a model on this machine alone."""
    given = [f"--{flag}" for flag in (*local, "attn_implementation") if getattr(args, flag) is not None]
    if server_of(args) and given:
        raise UserError(f"{', '.join(given)}: for a model on this machine; leave it out beside --api_model")
    least, most = getattr(args, "min_pixels", None), getattr(args, "max_pixels", None)
    if least and most and least > most:
        raise UserError(f"--min_pixels {least} is more than --max_pixels {most}; lower it")


def server_of(args: argparse.Namespace) -> Server | None:
    """The server that the flags name; None without `--api_model`."""
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


def data_sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The data sets that the flags name, each as keyword arguments of `cropvlm.data.rows.load_rows`."""
    names, path = args.dataset or [], args.dataset_path
    if len(names) > 1 and (path or args.name):
        raise UserError("several --dataset go with neither --dataset_path nor --name; run them one by one")
    if names and path is None:
        named = [{"dataset_path": name, "dataset": None} for name in names]
    else:
        named = [{"dataset_path": path or DEFAULT_DATASET, "dataset": names[0] if names else None}]
    return [source | {"split": args.split, "max_samples": args.max_samples} for source in named]


@dataclass
class TextModel:
    """The model that generates the texts of a run, on this machine or behind a server.

    settings: what determines its text for a prompt. names, known: entries of the meta file. longest_edge: pixels of the
    longer side at which it sees images, if it is a rule of that kind. seen_size: maps (width, height) of an image to
    that at which it is seen; None if unknown.
    """

    settings: dict[str, Any]
    names: dict[str, Any]
    generate: Generate
    longest_edge: int | None = None
    seen_size: Callable[[tuple[int, int]], tuple[int, int] | None] = lambda size: None
    known: dict[str, Any] = field(default_factory=dict)

    def output(
        self, path: Path, source: dict, rows: Any, keys: list[int], settings: dict, count: Count, clean: Callable = str
    ) -> Output:
        """The file with this model's texts about `rows`; see `Output`.

        source: of the rows. keys: of `row_keys`. settings: beside those of the model and the rows.
        """
        data = {"rows": len(rows), "references": references_hash(rows), "commit": data_commit(source["dataset_path"])}
        identity = {
            "dataset_path": source["dataset_path"],
            "questions": questions_hash(rows),
            "images": hash_of(json.dumps(keys)),
            "dataset": source["dataset"],
            "split": source["split"],
        }
        settings = self.settings | identity | settings
        return Output(path, settings, source, self.names, count, clean, self.known | {"data": data})


def cropper(args: argparse.Namespace) -> TextModel:
    """The model that writes the boxes."""
    if server := server_of(args):
        return remote_model(server, "cropper", args.longest_edge)
    from cropvlm.modeling import load_processor

    path, base, longest_edge = args.model_path, args.base_model_path, args.longest_edge or LONGEST_EDGE
    model = local_model(args, "cropper", path, load_processor(path, longest_edge), base)
    model.settings |= {"model_path": path, "base_model_path": base}
    model.names["cropper_base"], model.longest_edge = base, longest_edge
    return model


def answerer(args: argparse.Namespace) -> TextModel:
    """The frozen VLM that answers."""
    if server := server_of(args):
        return remote_model(server, "answerer", args.longest_edge)
    from cropvlm.models.processors import image_fit_of, longest_edge_of, seen_size

    path = args.vqa_model_path
    processor = answerer_processor(path, args.longest_edge, args.min_pixels, args.max_pixels, args.image_fit)
    model = local_model(args, "answerer", path, processor)
    fit = image_fit_of(processor)
    model.settings |= {"vqa_model_path": path} | ({"image_fit": fit} if fit else {})
    model.longest_edge = args.longest_edge or longest_edge_of(processor)
    model.seen_size = functools.partial(seen_size, processor)
    return model


def answerer_processor(path: str, longest_edge: int | None, *options: Any) -> Any:
    """The processor of an answerer. SmolVLM sees images at 512 px at most unless `longest_edge` says otherwise."""
    from cropvlm.modeling import load_processor
    from cropvlm.models.processors import longest_edge_of

    processor = load_processor(path, longest_edge, *options)
    own = longest_edge_of(processor)
    return load_processor(path, min(own, LONGEST_EDGE)) if longest_edge is None and own else processor


def device_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The device that this process uses, and the dtype of the model there."""
    from cropvlm.modeling import device_and_dtype

    return device_and_dtype(device_index(args.gpu))


def local_model(args: argparse.Namespace, role: str, path: str, processor: Any, base: str | None = None) -> TextModel:
    """A model on this machine, loaded once, for the first rows to do. role: what the meta file calls it."""
    from cropvlm.models.adapters import adapter_base

    device, dtype = device_of(args)
    attention = {"attn_implementation": args.attn_implementation}

    @functools.cache
    def load() -> Any:
        from cropvlm.modeling import load_model

        return load_model(path, base_model_path=base, device=device, dtype=dtype, **attention)

    def generate(prompts, done):
        from cropvlm.generation import generate_rows

        model = load()
        processes = worker_count(args.num_workers, model.device.type)
        options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "num_workers": processes}
        return generate_rows(model, processor, prompts, done=done, with_need=getattr(args, "need", False), **options)

    known = describe_model(path, base or adapter_base(path))
    # What its files hold, and how it computes, tell one model from another.
    settings = {"model_files": known["checksum"], "dtype": str(dtype)} | (attention if args.attn_implementation else {})
    return TextModel(settings, {role: path}, generate, known={role: known})


def remote_model(server: Server, role: str, longest_edge: int | None) -> TextModel:
    """A model behind a server, which gets images at `longest_edge`. role: what the meta file calls it."""
    # Not the address: it may change during a run.
    settings = {"api_model": server.model, "image_format": server.image_format}
    names = {role: server.model, "server": server.base, "replied": server.replied}
    resize = functools.partial(fit_longest_edge, longest_edge=longest_edge)
    model = TextModel(settings, names, lambda prompts, done: server.answer_rows(prompts, resize, done), longest_edge)
    if longest_edge is not None:
        model.seen_size = lambda size: tuple(max(1, round(side * longest_edge / max(size))) for side in size)
    return model
