"""The speed of train_sft.py: images prepared in the training process against workers, at SmolVLM's sizes.

    python3 benchmarks/sft_speed.py --longest_edge 2048 --steps 20          (on a GPU)
    python3 benchmarks/sft_speed.py --geometry miniature --steps 4

Random weights, the release's 16 rows a step, JPEGs of about 1024x768 from encoded bytes to the optimiser's step. The
first step is not counted.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, Image
from generation_speed import build
from synthetic import photos
from timing import clock, machine
from transformers import PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cropvlm.runs.cli import batch_size, positive
from cropvlm.runs.processes import worker_count
from cropvlm.trainers.settings import PolicyArguments
from miniature.tiny_models import build_smolvlm, save
from train_sft import SFTArguments, make_trainer

ROWS_A_STEP = 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Stopwatch(TrainerCallback):
    """Seconds from the end of the first step to that of the last."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 1:
            self.start = clock(DEVICE)
        self.seconds = clock(DEVICE) - self.start


def write_rows(folder: Path, number: int) -> None:
    """A saved data set with boxes."""
    rows = [
        {"image": {"bytes": photo, "path": None}, "question": "What is written on the red sign?", "answers": ["stop"]}
        | {"question_id": i, "bbox": [i % 40, 10, 60 + i % 40, 70]}
        for i, photo in enumerate(photos(number))
    ]
    Dataset.from_list(rows).cast_column("image", Image()).save_to_disk(str(folder))


def rows_per_second(folder: Path, workers: int, micro_rows: int | str, longest_edge: int, steps: int) -> float:
    """Train for a number of steps after a first one that is not timed."""
    args = SFTArguments(
        output_dir=str(folder / "output"),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_steps=steps + 1,
        per_device_train_batch_size=ROWS_A_STEP,
        micro_batch_size=micro_rows,
        dataloader_num_workers=workers,
    )
    policy = PolicyArguments(
        base_model=str(folder / "model"), dataset_path=str(folder / "rows"), longest_edge=longest_edge
    )
    trainer = make_trainer(args, policy)
    stopwatch = Stopwatch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopwatch)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return ROWS_A_STEP * steps / stopwatch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("miniature", "real"), default="real")
    parser.add_argument("--longest_edge", type=positive, default=512)
    parser.add_argument("--steps", type=positive, default=8, help="that are timed")
    parser.add_argument("--micro_rows", type=batch_size, default="auto", help="at once, of the 16 of a step")
    args = parser.parse_args()
    workers = worker_count(None, "cuda")  # as on a GPU
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = args.geometry == "real"
        made = build(args.longest_edge, torch.device("cpu"), torch.float32) if real else build_smolvlm()
        save(folder / "model", *made)
        write_rows(folder / "rows", ROWS_A_STEP * (args.steps + 1))
        options = (args.micro_rows, args.longest_edge, args.steps)
        print(f"{machine()}, {args.geometry}, {args.longest_edge} px, {args.micro_rows} of {ROWS_A_STEP} rows at once")
        beside = rows_per_second(folder, workers, *options)
        print(f"prepared by {workers} workers:        {beside:.3g} rows/s", flush=True)
        alone = rows_per_second(folder, 0, *options)
        print(f"prepared in the training process: {alone:.3g} rows/s")
    print(f"{beside / alone:.2f} times as fast")


if __name__ == "__main__":
    main()
