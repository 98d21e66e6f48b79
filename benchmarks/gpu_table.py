"""Run the speed benchmarks one after the other and print their figures as one Markdown table.

    bash benchmarks/gpu.sh
    python3 benchmarks/gpu_table.py --only boxes --tiny          (on a CPU: do the lines run?)

Each line is a benchmark of its own, run as a process with a time limit: one that fails leaves its reason in the table.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NUMBER = r"([0-9.e+-]+)"
IN_BATCHES = (rf"in batches: +{NUMBER} rows/s", rf"one row at a time: {NUMBER} rows/s")
STEP = (rf"^ours +{NUMBER} s a step", rf"^trl +{NUMBER} s a step")


@dataclass
class Line:
    """A line of the table. ours, other: patterns of the figures in what the benchmark prints."""

    work: str
    command: str
    ours: str
    other: str
    than: str
    unit: str = "rows/s"
    limit: int = 180  # seconds


LINES = [
    Line("boxes 512 px", "generation_speed.py --scripts boxes --rows 2048", *IN_BATCHES, "one at a time"),
    Line(
        "boxes 2048 px",
        "generation_speed.py --scripts boxes --rows 512 --longest_edge 2048",
        *IN_BATCHES,
        "one at a time",
    ),
    Line("both answers 512 px", "generation_speed.py --scripts answers --rows 1024", *IN_BATCHES, "one at a time"),
    Line(
        "both answers 2048 px",
        "generation_speed.py --scripts answers --rows 256 --longest_edge 2048",
        *IN_BATCHES,
        "one at a time",
    ),
    Line(
        "GRPO step 512 px, 16 prompts",
        "grpo_step.py --geometry real --micro_prompts 16 --steps 3 --ways ours trl",
        *STEP,
        "unmodified TRL",
        "s",
    ),
    Line(
        "GRPO step 2048 px, 16 prompts",
        "grpo_step.py --geometry real --longest_edge 2048 --micro_prompts 4 --ways ours trl",
        *STEP,
        "unmodified TRL",
        "s",
    ),
    Line(
        "SFT 512 px",
        "sft_speed.py",
        rf"by \d+ workers: +{NUMBER} rows/s",
        rf"training process: {NUMBER} rows/s",
        "without workers",
    ),
    Line(
        "SFT 2048 px",
        "sft_speed.py --longest_edge 2048 --micro_rows 4",
        rf"by \d+ workers: +{NUMBER} rows/s",
        rf"training process: {NUMBER} rows/s",
        "without workers",
    ),
    Line("teacher 7B", "teacher_speed.py --geometry 7b --rows 256 --single_rows 8", *IN_BATCHES, "one at a time"),
]
# Flags that make a line short enough to try on a CPU.
TINY = {
    "generation_speed.py": "--rows 2 --single_rows 1 --box_tokens 2 --answer_tokens 2 --longest_edge 512",
    "grpo_step.py": "--geometry miniature --prompts 1 --micro_prompts 1 --steps 1 --new_tokens 4 --longest_edge 512",
    "sft_speed.py": "--geometry miniature --steps 1 --longest_edge 64 --micro_rows 16",
    "teacher_speed.py": "--geometry tiny --rows 2 --single_rows 1 --new_tokens 2",
}


def run(line: Line, tiny: bool) -> str:
    """A row of the table: work, our figure, the other way's, the ratio; or the reason for its failure."""
    script, *flags = line.command.split()
    flags += TINY[script].split() if tiny else []  # the last of two equal flags counts
    try:
        done = subprocess.run(
            [sys.executable, str(FOLDER / script), *flags],
            capture_output=True,
            text=True,
            timeout=line.limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"| {line.work} | not done in {line.limit} s | | |"
    found = [re.search(pattern, done.stdout, re.MULTILINE) for pattern in (line.ours, line.other)]
    if done.returncode or not all(found):
        reason = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        return f"| {line.work} | failed: {reason[:100].replace('|', '/')} | | |"
    ours, other = (float(match[1]) for match in found)
    ratio = other / ours if line.unit == "s" else ours / other
    return f"| {line.work} | {ours:g} {line.unit} | {other:g} {line.unit}, {line.than} | {ratio:.2f} |"


def machine() -> str:
    """The GPU and torch's version."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see whether the lines run")
    args = parser.parse_args()
    print(f"{machine()}\n\n| work | ours | other way | ratio |\n|---|---|---|---|", flush=True)
    for line in LINES:
        if args.only in line.work:
            print(run(line, args.tiny), flush=True)


if __name__ == "__main__":
    main()
