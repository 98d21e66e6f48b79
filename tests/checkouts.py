"""The bash scripts in a folder of their own, with a stub for python3 that notes what it is asked."""

import shutil
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Stands in for python3: notes its arguments, makes the output that the stage would make, ends as it is told.
STUB = """#!/usr/bin/env bash
echo "$*" >> calls.txt
value() { sed -n "s/.* --$1 \\([^ ]*\\).*/\\1/p" <<< "$arguments"; }
touching() { mkdir -p "$(dirname "$1")"; touch "$1"; }
arguments=$*
output_path=$(value output_path) output_dir=$(value output_dir) output=$(value output)
case $1 in
    create_dataset.py) mkdir -p "${output_path}_sft" "${output_path}_grpo"; touching "$output_path.journal.jsonl" ;;
    train_*.py) [ -z "$output_dir" ] || touching "$output_dir/adapter_model.safetensors"
        [ -z "$output_dir" ] || touch "$output_dir/run.json" ;;
    generate_bbox.py) touching "$output"; echo '"need_of_90_pct": -0.5,' > "${output%.json}.meta.json" ;;
    generate_final_answers.py) touching "${output_path:=predictions}/textvqa_base_answers.json"
        touch "$output_path/textvqa_cropvlm_answers.json" ;;
    -m) [ -z "$output" ] || touching "$output"; [ -z "$output_path" ] || mkdir -p "$output_path" ;;
esac
[ "$1" != "${FAILING-}" ] || exit "$CODE"
[ -z "${SLOW-}" ] || { echo $$ >> pids.txt; exec sleep 60; }
"""


def make_checkout(folder: Path) -> Path:
    """Copy the scripts into a folder without an environment, with the stub for python3."""
    shutil.copytree(SCRIPTS, folder / "scripts")
    (folder / "scripts" / "setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\nPATH="$PWD/bin:$PATH"\n')
    (folder / "bin").mkdir()
    for name in ("python3", "python"):
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    (folder / "predictions").mkdir()
    return folder


def call(
    checkout: Path, script: str, *args: str, **environment: str
) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """Run a script; also return the python calls that it has made, each split into words."""
    (checkout / "calls.txt").write_text("")
    command = ["bash", checkout / "scripts" / script, *args]
    result = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True)
    return result, [line.split() for line in (checkout / "calls.txt").read_text().splitlines()]
