"""The memory of create_dataset.py on as many rows as the paper's mixture has, with images of one megapixel.

    python3 benchmarks/teacher_memory.py --rows 62000
    python3 benchmarks/teacher_memory.py --rows 62000 --real_budget --num_workers 8

Writes a synthetic set and a tiny random teacher into a temporary folder, runs the script on them, and prints the
peak of its own memory (anonymous and shared pages of all its processes; pages of the memory-mapped files on disk are
the system's cache and can be dropped at any time) after a tenth of the rows and in all.

The tiny teacher sees at most 140x140 pixels, 32 rows at a time. With --real_budget images go through the same image
processor at Qwen2.5-VL's own budget, 5,184 patches each, in bfloat16 and batches of 64, as on a GPU. The teacher then
has next to no layers; what it computes is counted, though on a GPU it would not be in this memory.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from memory import REPO, watch
from synthetic import jpeg

sys.path.insert(0, str(REPO))

import create_dataset  # noqa: E402
from cropvlm.models.qwen import PixelBudget
from cropvlm.runs.cli import run  # noqa: E402
from cropvlm.sets import responses
from miniature.tiny_models import build_qwen, save  # noqa: E402

AS_ON_A_GPU = "--as_on_a_gpu"  # first argument of the process that is watched with --real_budget

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


def build_teacher(real_budget: bool):
    """The tiny teacher, or one that sees what Qwen2.5-VL sees and has hardly a layer to compute."""
    model, processor = build_qwen()
    if real_budget:
        own = PixelBudget()
        processor.image_processor.size = {"shortest_edge": own.min_pixels, "longest_edge": own.max_pixels}
        config = model.config
        config.vision_config.depth = config.text_config.num_hidden_layers = 1
        config.vision_config.fullatt_block_indexes = []  # the one layer looks at windows
        config.text_config.layer_types = config.text_config.layer_types[:1]
        generation_config, model = model.generation_config, type(model)(config)
        model.generation_config = generation_config
    return model, processor


def create_as_on_a_gpu() -> int:
    """create_dataset.py in bfloat16, which it takes on a GPU only."""
    responses.device_and_dtype = lambda gpu: (torch.device("cpu"), torch.bfloat16)
    return create_dataset.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=62_000)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--real_budget", action="store_true", help="images as large as Qwen2.5-VL sees them")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        save(folder / "teacher", *build_teacher(args.real_budget))
        cache = str(folder / "cache")
        source = Dataset.from_generator(make_rows, FEATURES, cache_dir=cache, gen_kwargs={"number": args.rows})
        source.save_to_disk(str(folder / "source"))
        shutil.rmtree(cache)
        flags = {"--dataset_path": folder / "source", "--model_path": folder / "teacher"}
        flags |= {"--output_path": folder / "made", "--max_new_tokens": 1, "--num_workers": args.num_workers}
        script = "create_dataset.py"
        if args.real_budget:
            script, flags = "benchmarks/teacher_memory.py", {AS_ON_A_GPU: "--batch_size=64"} | flags
        watched = watch(script, flags, folder / "made.journal.jsonl", args.rows)
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
    if sys.argv[1:2] == [AS_ON_A_GPU]:
        del sys.argv[1]
        run(create_as_on_a_gpu)
    main()
