"""What the generating scripts share: their flags, the journal of a run, and rows split over processes."""

import argparse
import contextlib
import datetime
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from cropvlm.cli import UserError
from cropvlm.generation import PromptSource, generate_rows
from cropvlm.predictions import Journal, read_meta

logger = logging.getLogger(__name__)

# What from_pretrained reads of a folder.
MODEL_FILES = ("*.safetensors", "*.bin", "*.index.json", "*config.json", "*.model", "*.jinja", "chat_template.json")
MODEL_FILES += ("tokenizer*", "*tokens*.json", "vocab.*", "merges.txt")
DEFAULT_DATASET = "lmms-lab/textvqa"

# (row index, one text per prompt or why there is none; or why there are none for the row), as they come
Outcomes = Iterable[tuple[int, list[str | ValueError] | ValueError]]


def batch_size(text: str) -> int | str:
    """The type of `--batch_size`: a positive number or `auto`."""
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor auto")


def positive(text: str) -> int:
    """The type of flags that count something."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")


def whole_number(text: str) -> int:
    """The type of flags that may be 0."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or more")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `generate_bbox.py` and `generate_final_answers.py` share."""
    add = parser.add_argument
    add("--dataset_path", help=f"benchmark name, hub id (id:config), or local folder (default {DEFAULT_DATASET})")
    add("--dataset", nargs="+", help="one or more benchmarks; beside --dataset_path: whose columns that one has")
    add("--split", help="default: the benchmark's own, or the only one")
    add("--name", help="{name} of the files; default: the data set's")
    add("--max_samples", type=positive, help="only the first so many rows")
    add("--batch_size", type=batch_size, default="auto", help="rows, or auto: halves on running out of GPU memory")
    add("--num_workers", type=whole_number, help="processes that preprocess images (default: 0; on a GPU the cores)")
    add("--gpu", type=int, default=0, help="index of the GPU; -1, or without a GPU, the CPU in fp32")
    add("--verbose", action="store_true", help="log every text")


def start_logging(args: argparse.Namespace) -> None:
    """Log to stderr, the resolved settings first."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("cropvlm").setLevel(logging.DEBUG if args.verbose else logging.INFO)
    for name in ("httpx", "httpx2"):  # a line per request
        logging.getLogger(name).setLevel(logging.WARNING)
    logger.info("%s", " ".join(f"{key}={value}" for key, value in vars(args).items()))


def rank() -> int:
    """The number of this process under `accelerate launch`, else 0."""
    return int(os.environ.get("RANK", 0))


def num_processes() -> int:
    """How many processes `accelerate launch` has started, else 1."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device_index(gpu: int) -> int:
    """The GPU of this process: `--gpu`, or its own one under `accelerate launch` unless that asks for the CPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if num_processes() > 1 and gpu >= 0 else gpu


def worker_count(num_workers: int | None, device_type: str) -> int:
    """Resolve `--num_workers`: on a CPU the model needs the cores itself."""
    if num_workers is not None:
        return num_workers
    if device_type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores - 1))


def data_sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The data sets that the flags name, each as keyword arguments of `cropvlm.data.load_rows`."""
    common = {"split": args.split, "max_samples": args.max_samples}
    datasets = args.dataset or []
    if len(datasets) > 1 and (args.dataset_path or args.name):
        raise UserError("several --dataset go with neither --dataset_path nor --name; run them one by one")
    if args.dataset_path or not datasets:  # --dataset_path, perhaps with the columns of a --dataset
        path = args.dataset_path or DEFAULT_DATASET
        return [{"dataset_path": path, "dataset": datasets[0] if datasets else None} | common]
    return [{"dataset_path": name, "dataset": None} | common for name in datasets]


def refuse_doubles(outputs: Iterable[Path]) -> None:
    """Raise `UserError` where one file would be written twice by one command."""
    for output, times in Counter(outputs).items():
        if times > 1:
            raise UserError(f"{output} would be written {times} times; run them one by one with --name")


@contextlib.contextmanager
def open_journals(settings: dict[Path, dict[str, Any]]) -> Iterator[dict[Path, Journal]]:
    """This process's journals for all files of a command, by file; every process has its own.

    settings: by file, in the order in which they are written. The journals are removed together when all files stand,
    and none is when the run ends before: a data set that is done need not be done again for the sake of the next one.
    """
    suffix = f".rank{rank()}" if rank() else ""
    with contextlib.ExitStack() as stack:
        journals = {}
        for path, content in settings.items():
            journal = Journal(path.with_name(path.name + suffix), content | {"processes": num_processes()})
            journals[path] = stack.enter_context(journal)
        yield journals
        if num_processes() > 1:
            PartialState().wait_for_everyone()  # until the first one has written the files
        for journal in journals.values():
            journal.remove()


def only_journals_are_left(journals: dict[Path, Journal], ids: list[list]) -> bool:
    """Whether a run of this command wrote all its files, and was killed while it removed its journals.

    ids: every question_id of each file. The first journals are gone then and the others whole, which no earlier moment
    leaves: a file's rows begin when those before are done. Of one process only: several remove theirs at once.
    """
    begun = [bool(journal.rows) for journal in journals.values()]
    if num_processes() > 1 or not any(begun) or begun[0]:
        return False
    left = list(zip(journals.values(), ids, strict=True))[begun.index(True) :]
    return all(journal.rows.keys() >= set(of_file) for journal, of_file in left) and all(
        path.is_file() and read_meta(path).get("settings", {}) | {"processes": 1} == journal.settings
        for path, journal in journals.items()
    )


def shard(rows: Any) -> Any:
    """This process's share of `rows`, a Dataset or a list (or None): a run of neighbours."""
    if rows is None or num_processes() == 1:
        return rows
    start, stop = (len(rows) * r // num_processes() for r in (rank(), rank() + 1))
    return rows[start:stop] if isinstance(rows, list) else rows.select(range(start, stop))


def fingerprint(path: str | None) -> str | None:
    """What tells whether the model in a local folder has changed under its name; None for a hub id.

    Only files of a model, its tokenizer and processor count: a run may write its own files beside them.
    """
    if path is None or not Path(path).is_dir():
        return None
    files = sorted({file for pattern in MODEL_FILES for file in Path(path).glob(pattern) if file.is_file()})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def questions_key(rows: Any) -> str:
    """What tells whether a data set has other rows than before under its name: a hash of its ids and questions."""
    columns = [list(rows["question_id"]), list(rows["question"])]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:16]


def generate_missing(
    args: argparse.Namespace, journals: list[Journal], ids: list, prompts: PromptSource, load: Callable
) -> None:
    """Generate what the journals do not hold yet. `load` returns model and processor; it is called if need be.

    ids: question_id by row index. Each row has one prompt per journal.
    """

    def generate(done: list[int]) -> Outcomes:
        model, processor = load()
        return generate_rows(
            model,
            processor,
            prompts,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            num_workers=worker_count(args.num_workers, model.device.type),
            done=done,
        )

    fill_missing(journals, ids, generate)


def fill_missing(journals: list[Journal], ids: list, generate: Callable[[list[int]], Outcomes]) -> None:
    """Fill the journals with what they lack. generate: takes the indices of rows that are done, yields the rest."""
    done = [i for i, question_id in enumerate(ids) if all(question_id in journal.rows for journal in journals)]
    if len(done) < len(ids):
        outcomes = generate(done)
        fill(journals, ids, tqdm(outcomes, total=len(ids), initial=len(done), unit="row", disable=rank() > 0))


def fill(journals: list[Journal], ids: list, outcomes: Outcomes) -> None:
    """Keep the texts of every row, the first in the first journal and so on, or why there are none."""
    for i, texts in outcomes:
        texts = [texts] * len(journals) if isinstance(texts, ValueError) else texts
        for error in dict.fromkeys(str(text) for text in texts if isinstance(text, ValueError)):
            logger.warning("question_id %r: %s", ids[i], error)
        for journal, text in zip(journals, texts, strict=True):
            failed = isinstance(text, ValueError)
            record = {"answer": "", "failed": str(text)} if failed else {"answer": text}
            logger.debug("%r: %r", ids[i], record["answer"])
            journal.append([{"question_id": ids[i]} | record])


def exchange(items: list) -> list:
    """The items of all processes, on each of them; waits for the slowest."""
    if num_processes() == 1:
        return items
    # gloo on whatever device the models run: only a few megabytes of text pass, and the wait may be long.
    PartialState(cpu=True, timeout=datetime.timedelta(days=7))
    return gather_object(items)


def gather(records: list[dict], ids: list) -> list[dict]:
    """The records of all processes in the order of `ids`."""
    by_id = {record["question_id"]: record for record in exchange(records)}
    return [by_id[i] for i in ids]


def failures(records: list[dict]) -> list[dict]:
    """The rows of `records` that failed: `question_id` and `reason`."""
    return [{"question_id": r["question_id"], "reason": r["failed"]} for r in records if "failed" in r]


def name_failures(output: Path, failed: list[dict]) -> None:
    """Log the rows of a file that failed, whichever run or process met them."""
    if failed:
        listed = "; ".join(f"question_id {row['question_id']!r}: {row['reason']}" for row in failed)
        logger.warning("%s: %d failed: %s", output, len(failed), listed)


def failed_before(paths: Iterable[Path]) -> int:
    """How many rows of files that stand have failed, as their meta files say."""
    return sum(read_meta(path)["counts"]["failed"] for path in paths)
