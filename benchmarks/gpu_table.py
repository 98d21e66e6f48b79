"""Run the speed benchmarks one after the other and print their figures as one Markdown table.

    bash benchmarks/gpu.sh
    python3 benchmarks/gpu_table.py --only boxes --tiny          (on a CPU: do the lines run?)

Each line is a benchmark of its own, run as a process with a time limit: one that fails leaves its reason in the table,
beside what it had measured before.
"""

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from timing import machine

FOLDER = Path(__file__).resolve().parent
NUMBER = r"([0-9.e+-]+)"
IN_BATCHES = (rf"in batches: +{NUMBER} rows/s", rf"one row at a time: {NUMBER} rows/s")
STEP = (rf"^ours +{NUMBER} s a step", rf"^trl +{NUMBER} s a step")
BY_WORKERS = (rf"by \d+ workers: +{NUMBER} rows/s", rf"training process: {NUMBER} rows/s")


@dataclass
class Line:
    """A line of the table. ours, other: patterns of the figures in what the benchmark prints; limit: seconds."""

    work: str
    command: str
    ours: str
    other: str
    than: str
    unit: str
    limit: int


def generation(work: str, flags: str, limit: int) -> Line:
    return Line(work, f"generation_speed.py {flags}", *IN_BATCHES, "one at a time", "rows/s", limit)


def grpo(work: str, flags: str, limit: int) -> Line:
    command = f"grpo_step.py --geometry real {flags}"
    return Line(work, command, *STEP, "unmodified TRL", "s", limit)


def sft(work: str, flags: str, limit: int) -> Line:
    return Line(work, f"sft_speed.py {flags}", *BY_WORKERS, "without workers", "rows/s", limit)


# All limits together: less than 20 minutes. On an H200 each line has about half as long again as it takes.
LINES = [
    generation("boxes 512 px", "--scripts boxes --rows 1024", 120),
    generation("boxes 2048 px", "--scripts boxes --rows 512 --longest_edge 2048", 110),
    generation("both answers 512 px", "--scripts answers --rows 1024", 110),
    generation("both answers 2048 px", "--scripts answers --rows 256 --longest_edge 2048", 110),
    grpo("GRPO step 512 px, 16 prompts", "--steps 2", 160),
    grpo("GRPO step 2048 px, 16 prompts", "--longest_edge 2048", 160),
    sft("SFT 512 px", "", 100),
    sft("SFT 2048 px", "--longest_edge 2048", 120),
    Line(
        "teacher 7B",
        "teacher_speed.py --geometry 7b --rows 128 --single_rows 8",
        *IN_BATCHES,
        "one at a time",
        "rows/s",
        110,
    ),
]
# Flags and seconds that make a line short enough to try on two cores: tiny models, next to no rows.
TINY = {
    "generation_speed.py": ("--geometry miniature --rows 4 --single_rows 2 --box_tokens 2 --answer_tokens 2", 30),
    "grpo_step.py": (
        "--geometry miniature --prompts 1 --steps 1 --new_tokens 4 --longest_edge 512",
        70,
    ),
    "sft_speed.py": ("--geometry miniature --steps 1 --longest_edge 64 --micro_rows 16", 55),
    "teacher_speed.py": ("--geometry tiny --rows 2 --single_rows 1 --new_tokens 2", 45),
}


def run(line: Line, tiny: bool) -> str:
    """A row of the table: the work, our figure, the other way's, the ratio; or why a figure is missing."""
    script, *flags = line.command.split()
    limit, environment = line.limit, dict(os.environ)
    if tiny:
        environment["OMP_NUM_THREADS"] = "1"  # threads that wait for each other make a busy machine busier
        more, limit = TINY[script]
        flags += more.split()  # the last of two equal flags counts
    command = [sys.executable, str(FOLDER / script), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=limit)
            reason = "nothing printed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, which hold the pipes open
            output, _ = process.communicate()
            errors, reason = "", f"not done in {limit} s"
    reason = (errors.strip().splitlines() or [reason])[-1][:100].replace("|", "/")
    found = [re.search(pattern, output, re.MULTILINE) for pattern in (line.ours, line.other)]
    ours, other = (float(match[1]) if match else None for match in found)
    first = reason if ours is None else f"{ours:g} {line.unit}"
    second = reason if other is None else f"{other:g} {line.unit}, {line.than}"
    ratio = ""
    if ours and other:
        ratio = f"{other / ours if line.unit == 's' else ours / other:.2f}"
    return f"| {line.work} | {first} | {second} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="lines whose names contain one of these")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see whether the lines run")
    args = parser.parse_args()
    note = "Tiny models, next to no rows: whether the lines run, nothing else.\n\n" if args.tiny else ""
    print(f"### {machine()}, {datetime.date.today()}\n\n{note}| work | ours | other way | ratio |\n|---|---|---|---|")
    for line in LINES:
        if any(part in line.work for part in args.only):
            print(run(line, args.tiny), flush=True)


if __name__ == "__main__":
    main()
