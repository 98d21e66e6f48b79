"""Run all stages behind a claims file, then the report: the paper's tables on one or several GPUs.

    python3 scripts/reproduce.py 0 --plan
    python3 scripts/reproduce.py 0 1 --only 'answers/smolvlm_1024/*'

Finished stages are skipped; an interrupted one continues from its journal or newest checkpoint. Independent stages run
side by side, one on each GPU. Failed stages are listed at the end and those that depend on them are skipped; the others
continue. A signal ends all that run, as does the end of this script, however it comes; under nohup a hang-up does not.
Models behind a server are skipped without $OPENAI_API_KEY. Exit code 3: a stage failed or a queue's USR1 or USR2 ended
it, or a figure or claim is not reproduced.
"""

import argparse
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cropvlm.errors import UserError  # noqa: E402
from cropvlm.runs.cli import COMPLETE_WITH_FAILURES, ArgumentParser, positive, run  # noqa: E402
from reporting.scheduler import Scheduler  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("gpus", nargs="+", type=int, metavar="GPU", help="indices of the GPUs; without a GPU any number")
    add("--plan", action="store_true", help="print every command, what is done and the hours left; run nothing")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="only stages whose names fit, and what they need")
    add("--claims", type=Path, default=ROOT / "scripts/claims/paper.yaml", help="default: scripts/claims/paper.yaml")
    add("--seeds", type=positive, default=1, help="trainings of every cropper, with seeds from 42 on (default 1)")
    add("--predictions", type=Path, default=Path("predictions/paper"), help="folder of the prediction files")
    return parser.parse_args()


def duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(60 * hours)} min"


def print_plan(stages: dict, folder: Path) -> None:
    """Print each stage's name, hours left with the origin of the estimate, and command; then the sum."""
    from reporting.plan import hours, unfinished
    from reporting.rates import measured_rates

    measured, left = measured_rates(folder), unfinished(stages)
    estimates = {name: hours(stage, measured) for name, stage in left.items()}
    for name, stage in stages.items():
        state = "done"
        if name in left:
            known, source = estimates[name]
            state = "hours unknown" if known is None else f"{duration(known)} ({source})"
            state += f"; {stage.changed} has changed since it was done" if stage.changed else ""
            state += f"; {stage.rows * len(stage.outputs)} requests" if stage.key and stage.rows else ""
        print(f"{name}: {state}\n    {shlex.join(['python3', *stage.command])}")
    known = sum(hours for hours, _ in estimates.values() if hours)
    unknown = sum(hours is None for hours, _ in estimates.values())
    more = f", and {unknown} stages whose hours are unknown" if unknown else ""
    print(f"{len(stages) - len(left)} of {len(stages)} stages are done; {known:.1f} h left on one GPU{more}")


def main() -> int:
    args = parse_args()
    from reporting.claims_file import each_run
    from reporting.plan import chosen, stages

    runs = each_run(args.claims, seeds=args.seeds)
    picked = chosen(stages(runs, args.predictions), args.only)
    if not picked:
        raise UserError(f"no stage fits --only {' '.join(args.only)}; --plan lists them")
    no_key = not os.environ.get("OPENAI_API_KEY")
    if without_key := [name for name, stage in picked.items() if no_key and stage.key and not stage.done]:
        print(f"left out without $OPENAI_API_KEY: {', '.join(without_key)}")
        picked = {name: stage for name, stage in picked.items() if name not in without_key}
    if args.plan:
        print_plan(picked, args.predictions)
        return 0
    scheduler = Scheduler(picked, args.gpus)
    if code := scheduler.run():
        names = ", ".join(scheduler.interrupted) or "nothing"
        print(f"interrupted while running {names}; run the same command again to continue", file=sys.stderr)
        return code
    report = [sys.executable, str(ROOT / "scripts/report.py"), "--predictions", str(args.predictions)]
    try:
        code = subprocess.call([*report, "--claims", str(args.claims), "--seeds", str(args.seeds)])
    except OSError as error:
        print(f"the report cannot start: {error.strerror}", file=sys.stderr)
        code = COMPLETE_WITH_FAILURES
    for words, names in (("failed", scheduler.failed), ("left out after a failure", scheduler.left_out)):
        if names:
            print(f"{words}: {', '.join(names)}", file=sys.stderr)
    return COMPLETE_WITH_FAILURES if scheduler.failed else code


if __name__ == "__main__":
    run(main)
