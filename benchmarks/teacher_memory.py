"""The memory of create_dataset.py on as many rows as the paper's mixture has, with images of one megapixel.

    python3 benchmarks/teacher_memory.py --rows 62000

Writes a synthetic set and a tiny random teacher into a temporary folder, runs the script on them, and prints the
peak of its own memory (anonymous and shared pages of all its processes; pages of the memory-mapped files on disk are
the system's cache and can be dropped at any time) after a tenth of the rows and in all.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from memory import REPO, watch
from synthetic import jpeg

sys.path.insert(0, str(REPO))

from miniature.checkpoints import build_qwen, save  # noqa: E402

FEATURES = Features(
    {"image": Image(), "question": Value("string"), "question_id": Value("int64"), "answers": List(Value("string"))}
)


def make_rows(number: int):
    """Rows with 1000x1000 JPEGs, a hundred different ones in turn. They are smooth: small on disk, not in memory."""
    noise = np.random.default_rng(42)
    images = [{"bytes": jpeg(noise, (1000, 1000), (5, 5), quality=10), "path": None} for _ in range(100)]
    for i in range(number):
        yield {
            "image": images[i % len(images)],
            "question": f"What is sign {i}?",
            "question_id": i,
            "answers": ["sign"] * 10,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=62_000)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        save(folder / "teacher", *build_qwen())
        cache = str(folder / "cache")
        generator = Dataset.from_generator(make_rows, FEATURES, cache_dir=cache, gen_kwargs={"number": args.rows})
        generator.save_to_disk(str(folder / "source"))
        shutil.rmtree(cache)
        flags = {"--dataset_path": folder / "source", "--model_path": folder / "teacher"}
        flags |= {"--output_path": folder / "made", "--max_new_tokens": 1, "--num_workers": args.num_workers}
        watched = watch("create_dataset.py", flags, folder / "made.journal.jsonl", args.rows // 2)
        sizes = {
            part: sum(file.stat().st_size for file in folder.glob(f"{part}/*.arrow"))
            for part in ("source", "made_sft", "made_grpo")
        }
        made = sizes["made_sft"] + sizes["made_grpo"]
        print(f"{args.rows} rows of 1 megapixel, exit code {watched.exit_code}, {watched.seconds:.0f} s")
        print(f"peak of own memory: {max(watched.peaks) / 2**30:.2f} GiB, ", end="")
        print(f"{watched.peaks[0] / 2**30:.2f} GiB in the first tenth of the rows")
        print(f"saved: {made / 1e9:.3f} GB of {sizes['source'] / 1e9:.3f} GB, {made / sizes['source'] - 1:+.2%}")


if __name__ == "__main__":
    main()
