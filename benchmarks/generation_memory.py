"""The memory of generate_bbox.py and generate_final_answers.py on 50,000 rows: flat, or growing with the rows?

    python3 benchmarks/generation_memory.py --rows 50000

Writes a set of small images, all different, and a tiny random SmolVLM into a temporary folder, runs both scripts on
them, the second with valid boxes for both modes, and prints the peak of each one's own memory in every tenth of the
rows. What is written for a row, some hundred bytes, is kept until the end: 50,000 rows are some 20 MB.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value, disable_progress_bars
from memory import REPO, Watched, watch
from synthetic import jpeg

sys.path.insert(0, str(REPO))

from cropvlm.boxes import format_bbox  # noqa: E402
from cropvlm.runs.cli import batch_size, positive
from cropvlm.runs.files import write_json
from miniature.tiny_models import TILE, build_smolvlm, save  # noqa: E402

FEATURES = Features(
    {"image": Image(), "question": Value("string"), "question_id": Value("int64"), "answers": List(Value("string"))}
)


def make_rows(number: int) -> Iterator[dict]:
    """Rows with 96x72 JPEGs, no two alike."""
    noise = np.random.default_rng(42)
    for i in range(number):
        image = {"bytes": jpeg(noise, (96, 72), (3, 4), quality=80), "path": None}
        yield {"image": image, "question": f"What is sign {i}?", "question_id": i, "answers": ["sign"] * 10}


def write_source(folder: Path, rows: int) -> None:
    cache = str(folder / "cache")
    made = Dataset.from_generator(make_rows, FEATURES, cache_dir=cache, gen_kwargs={"number": rows})
    made.save_to_disk(str(folder / "source"))
    shutil.rmtree(cache)


def replace_boxes(path: Path) -> None:
    """A valid box in every record: random weights write none, and then there would be no crops."""
    records = json.loads(path.read_text())
    box = format_bbox((10, 20, 60, 80))
    write_json(path, [record | {"answer": box} for record in records])


def report(script: str, watched: Watched, rows: int) -> None:
    mebibytes = [round(peak / 2**20) for peak in watched.peaks]
    print(f"{script}: {rows} rows, exit code {watched.exit_code}, {watched.seconds:.0f} s")
    print(f"    peak of own memory in each tenth of the rows, MiB: {' '.join(map(str, mebibytes))}")
    print(f"    last tenth against the second: {mebibytes[9] - mebibytes[1]:+d} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=positive, default=50_000)
    parser.add_argument("--new_tokens", type=positive, default=1)
    parser.add_argument("--batch_size", type=batch_size, default="auto")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    args = parser.parse_args()
    disable_progress_bars()
    options = {"--max_new_tokens": args.new_tokens, "--batch_size": args.batch_size, "--num_workers": args.num_workers}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model = save(folder / "model", *build_smolvlm())
        write_source(folder, args.rows)

        boxes = folder / "rows_bbox.json"
        flags = {"--model_path": model, "--dataset_path": folder / "source", "--longest_edge": TILE, "--output": boxes}
        journal = folder / "rows_bbox.json.journal.jsonl"
        report("generate_bbox.py", watch("generate_bbox.py", flags | options, journal, args.rows), args.rows)

        replace_boxes(boxes)
        flags = {"--bbox": boxes, "--vqa_model_path": model, "--output_path": folder}
        journal = folder / "rows_cropvlm_answers.json.journal.jsonl"
        watched = watch("generate_final_answers.py", flags | options, journal, args.rows)
        report("generate_final_answers.py", watched, args.rows)


if __name__ == "__main__":
    main()
