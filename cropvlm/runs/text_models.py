"""The flags that `generate_bbox.py` and `generate_final_answers.py` share, and the data and models that they name."""

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cropvlm.data.catalog import BENCHMARKS
from cropvlm.data.rows import data_commit
from cropvlm.errors import UserError
from cropvlm.runs.cli import file_name, nonempty, positive
from cropvlm.runs.model_flags import add_local_flags, server_of
from cropvlm.runs.processes import device_index, worker_count
from cropvlm.runs.provenance import describe_model, hash_of, questions_hash, references_hash, row_hashes, seen_rows
from cropvlm.runs.run import Generate, Output
from cropvlm.runs.server import Server, fit_longest_edge

DEFAULT_DATASET = "lmms-lab/textvqa"
# Of SmolVLM unless told otherwise: the release's, of its cropper and of the images that its reward VLM sees.
LONGEST_EDGE = 512


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that both scripts share."""
    add = parser.add_argument
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
    add("--max_samples", type=positive, help="only the first so many rows")
    add_local_flags(parser)
    add("--verbose", action="store_true", help="log every text, and the cause of an error")


def data_sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The data sets that the flags name, each as keyword arguments of `cropvlm.data.rows.load_rows`."""
    common = {"split": args.split, "max_samples": args.max_samples}
    datasets = args.dataset or []
    if len(datasets) > 1 and (args.dataset_path or args.name):
        raise UserError("several --dataset go with neither --dataset_path nor --name; run them one by one")
    if args.dataset_path is None and datasets:
        return [{"dataset_path": name, "dataset": None} | common for name in datasets]
    path = DEFAULT_DATASET if args.dataset_path is None else args.dataset_path
    return [{"dataset_path": path, "dataset": datasets[0] if datasets else None} | common]


@dataclass
class TextModel:
    """The model that generates the texts of a run, on this machine or behind a server.

    settings: what determines its text for a prompt. names, known: what the meta file says of it.
    longest_edge: pixels of the longer side at which it sees images; None where another rule holds.
    seen_rows: on which it was trained, as `cropvlm.runs.provenance.row_hashes` names them.
    seen_size: maps (width, height) of an image to that at which it is seen; None where that is unknown.
    """

    settings: dict[str, Any]
    names: dict[str, Any]
    generate: Generate
    longest_edge: int | None
    seen_size: Callable[[tuple[int, int]], tuple[int, int] | None] = lambda size: None
    known: dict[str, Any] = field(default_factory=dict)
    seen_rows: set[str] = frozenset()

    def output(
        self,
        path: Path,
        source: dict[str, Any],
        rows: Any,
        keys: list[int],
        settings: dict[str, Any],
        count: Callable[[list[dict], float], dict[str, Any]],
        clean: Callable[[str], str] = str,
    ) -> Output:
        """The file with this model's texts about `rows`, loaded from `source`; `Output` says more.

        keys: of the rows, see `row_keys`. settings: beside those of the model and of the rows.
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
        known = self.known | {"data": data}
        if self.seen_rows and (seen := len(self.seen_rows & row_hashes(rows, keys))):
            known["cropper"] = known["cropper"] | {"seen_rows": seen}
        return Output(path, settings, source, self.names, count, clean, known)


def cropper(args: argparse.Namespace) -> TextModel:
    """The model that writes the boxes."""
    if server := server_of(args):
        return remote_model(server, "cropper", args.longest_edge)
    from cropvlm.modeling import load_model, load_processor
    from cropvlm.models.adapters import adapter_base

    device, dtype = device_of(args)
    path, base, attention = args.model_path, args.base_model_path, args.attn_implementation
    longest_edge = LONGEST_EDGE if args.longest_edge is None else args.longest_edge
    processor = load_processor(path, longest_edge)
    known = describe_model(path, base or adapter_base(path))
    settings = {"model_path": path, "base_model_path": base} | computing(known, dtype, attention)
    load = functools.partial(load_model, path, base, device, dtype, attn_implementation=attention)
    names = {"cropper": path, "cropper_base": base}
    generate, known = local_generator(args, load, processor), {"cropper": known}
    return TextModel(settings, names, generate, longest_edge, known=known, seen_rows=seen_rows(path))


def answerer(args: argparse.Namespace) -> TextModel:
    """The frozen VLM that answers."""
    if server := server_of(args):
        return remote_model(server, "answerer", args.longest_edge)
    from cropvlm.modeling import load_model
    from cropvlm.models.adapters import adapter_base
    from cropvlm.models.processors import image_fit_of, longest_edge_of, seen_size

    device, dtype = device_of(args)
    path, attention = args.vqa_model_path, args.attn_implementation
    processor = answerer_processor(path, args.longest_edge, args.min_pixels, args.max_pixels, args.image_fit)
    longest_edge = args.longest_edge or longest_edge_of(processor)
    known = describe_model(path, adapter_base(path))
    settings = {"vqa_model_path": path} | computing(known, dtype, attention)
    load = functools.partial(load_model, path, None, device, dtype, attn_implementation=attention)
    if fit := image_fit_of(processor):
        settings["image_fit"] = fit
    generate, seen = local_generator(args, load, processor), functools.partial(seen_size, processor)
    return TextModel(settings, {"answerer": path}, generate, longest_edge, seen, {"answerer": known})


def answerer_processor(path: str, longest_edge: int | None, *options: Any) -> Any:
    """The processor of an answerer. SmolVLM sees images at 512 px at most unless `longest_edge` says otherwise."""
    from cropvlm.modeling import load_processor
    from cropvlm.models.processors import longest_edge_of

    processor = load_processor(path, longest_edge, *options)
    own = longest_edge_of(processor)
    return load_processor(path, min(own, LONGEST_EDGE)) if longest_edge is None and own else processor


def computing(model: dict[str, Any], dtype: Any, attention: str | None) -> dict[str, Any]:
    """Settings that tell one model from another: what its files hold, and how it computes."""
    return {"model_files": model["checksum"], "dtype": str(dtype)} | (
        {"attn_implementation": attention} if attention else {}
    )


def device_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The device that this process uses, and the dtype of the model there."""
    from cropvlm.modeling import device_and_dtype

    return device_and_dtype(device_index(args.gpu))


def local_generator(args: argparse.Namespace, load: Callable[[], Any], processor: Any) -> Generate:
    """Generates with `processor` and the model that `load` returns; it is called once, for the first rows to do."""
    load = functools.cache(load)

    def generate(prompts, done):
        from cropvlm.generation import generate_rows

        model = load()
        processes = worker_count(args.num_workers, model.device.type)
        options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "num_workers": processes}
        if getattr(args, "need", False):  # of the cropper
            options["with_need"] = True
        return generate_rows(model, processor, prompts, done=done, **options)

    return generate


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
