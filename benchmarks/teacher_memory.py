"""The memory of create_dataset.py on as many rows as the paper's mixture has, with images of one megapixel.

    python3 benchmarks/teacher_memory.py --rows 62000

Writes a synthetic set and a tiny random teacher into a temporary folder, runs the script on them, and prints the
peak of its own memory (anonymous and shared pages of all its processes; pages of the memory-mapped files on disk are
the system's cache and can be dropped at any time) after a tenth of the rows and in all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from miniature.checkpoints import build_qwen, save  # noqa: E402

FEATURES = Features(
    {"image": Image(), "question": Value("string"), "question_id": Value("int64"), "answers": List(Value("string"))}
)


def make_rows(number: int):
    """Rows with 1000x1000 JPEGs, a hundred different ones in turn. They are smooth: small on disk, not in memory."""
    noise = np.random.default_rng(42)
    images = []
    for _ in range(100):
        blots = PILImage.fromarray(noise.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        file = BytesIO()
        blots.resize((1000, 1000), PILImage.Resampling.BICUBIC).save(file, "JPEG", quality=10)
        images.append({"bytes": file.getvalue(), "path": None})
    for i in range(number):
        yield {
            "image": images[i % len(images)],
            "question": f"What is sign {i}?",
            "question_id": i,
            "answers": ["sign"] * 10,
        }


def own_memory(pid: int) -> int:
    """Bytes of anonymous and shared memory of a process and its descendants."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if int(fields["Pid"]) == pid:
            total += sum(int(fields.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))
        elif int(fields["PPid"]) == pid:
            total += own_memory(int(fields["Pid"]))
    return total


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
        argv = [sys.executable, str(REPO / "create_dataset.py"), *[str(x) for pair in flags.items() for x in pair]]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        start, peak, early, journal = time.monotonic(), 0, 0, folder / "made.journal.jsonl"
        early_bytes = 150 * args.rows // 20  # the journal's size after about a tenth of the SFT part
        while process.poll() is None:
            peak = max(peak, own_memory(process.pid))
            if not early and journal.exists() and journal.stat().st_size > early_bytes:
                early = peak
            time.sleep(1)
        sizes = {
            part: sum(file.stat().st_size for file in folder.glob(f"{part}/*.arrow"))
            for part in ("source", "made_sft", "made_grpo")
        }
        made = sizes["made_sft"] + sizes["made_grpo"]
        print(f"{args.rows} rows of 1 megapixel, exit code {process.returncode}, {time.monotonic() - start:.0f} s")
        print(f"peak of own memory: {peak / 2**30:.2f} GiB, {early / 2**30:.2f} GiB after a tenth of the rows")
        print(f"saved: {made / 1e9:.3f} GB of {sizes['source'] / 1e9:.3f} GB, {made / sizes['source'] - 1:+.2%}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
