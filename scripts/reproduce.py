"""Run all stages behind a claims file, then the report: the paper's tables on one or several GPUs.

    python3 scripts/reproduce.py 0 --plan
    python3 scripts/reproduce.py 0 1 --only 'answers/smolvlm_1024/*'

Stages whose outputs are there are left out; a stopped one goes on from its journal or newest checkpoint. Independent
stages run side by side, one on each GPU. A stage that fails is named at the end, what needs it is left out, the others
go on. Models behind a server are left out without $OPENAI_API_KEY. Exit code 3: a stage failed, or a figure or claim is
not reproduced.
"""

import argparse
import shlex
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cropvlm.cli import COMPLETE_WITH_FAILURES, ArgumentParser, UserError, run  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("gpus", nargs="+", type=int, metavar="GPU", help="indices of the GPUs; without a GPU any number")
    add("--plan", action="store_true", help="print every command, what is done and the hours left; run nothing")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="only stages whose names fit, and what they need")
    add("--claims", type=Path, default=ROOT / "scripts/claims/paper.yaml", help="default: scripts/claims/paper.yaml")
    add("--predictions", type=Path, default=Path("predictions/paper"), help="folder of the prediction files")
    return parser.parse_args()


def print_plan(stages: dict, folder: Path) -> None:
    """Print a line for each stage and its command, then the hours that are left."""
    from reporting.plan import hours_left, measured_rates

    rates = measured_rates(folder)
    hours = {name: hours_left(stage, rates) for name, stage in stages.items()}
    for name, stage in stages.items():
        left = "hours unknown" if hours[name] is None else f"{hours[name]:.1f} h"
        print(f"{name}: {'done' if stage.done else left}\n    {shlex.join(stage.command)}")
    known = sum(value for value in hours.values() if value)
    unknown = sum(value is None for value in hours.values())
    done = sum(stage.done for stage in stages.values())
    more = f", and {unknown} stages whose hours are unknown" if unknown else ""
    print(f"{done} of {len(stages)} stages are done; {known:.1f} h left on one GPU{more}")


class Scheduler:
    """Runs stages on GPUs, one at a time on each; a stage begins when what it needs is done."""

    def __init__(self, stages: dict, gpus: list[int]):
        self.waiting = {name: stage for name, stage in stages.items() if not stage.done}
        self.known, self.finished = set(stages), {name for name in stages if name not in self.waiting}
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.gpus, self.changed = gpus, threading.Condition()

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(gpu,)) for gpu in self.gpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, gpu: int) -> None:
        while (stage := self._next()) is not None:
            print(f"== GPU {gpu}: {stage.name}: {shlex.join(stage.command)}", flush=True)
            code = subprocess.run([*stage.command, "--gpu", str(gpu)], stdin=subprocess.DEVNULL, check=False).returncode
            with self.changed:
                good = code in (0, COMPLETE_WITH_FAILURES) and stage.done
                self.finished.add(stage.name) if good else self.failed.append(stage.name)
                self.changed.notify_all()

    def _next(self):
        """Return a stage that can begin; wait for one; None where none is left."""
        with self.changed:
            while True:
                gone = {*self.failed, *self.left_out}
                lost = [name for name, stage in self.waiting.items() if gone & set(stage.needs)]
                for name in lost:
                    self.left_out.append(name)
                    del self.waiting[name]
                if not self.waiting:
                    return None
                for name, stage in self.waiting.items():
                    if not lost and all(need in self.finished or need not in self.known for need in stage.needs):
                        return self.waiting.pop(name)
                if not lost:
                    self.changed.wait()


def main() -> int:
    args = parse_args()
    from reporting.claims import read_claims
    from reporting.plan import chosen, has_key, stages

    claims = read_claims(args.claims)
    picked = chosen(stages(claims, args.predictions), args.only)
    if not picked:
        raise UserError(f"no stage fits --only {' '.join(args.only)}; --plan lists them")
    if without_key := [name for name, stage in picked.items() if stage.key and not stage.done and not has_key()]:
        print(f"left out without $OPENAI_API_KEY: {', '.join(without_key)}")
        picked = {name: stage for name, stage in picked.items() if name not in without_key}
    if args.plan:
        print_plan(picked, args.predictions)
        return 0
    scheduler = Scheduler(picked, args.gpus)
    scheduler.run()
    report = [sys.executable, str(ROOT / "scripts/report.py"), "--predictions", str(args.predictions)]
    code = subprocess.run([*report, "--claims", str(args.claims)], check=False).returncode
    for words, names in (("failed", scheduler.failed), ("left out after a failure", scheduler.left_out)):
        if names:
            print(f"{words}: {', '.join(names)}", file=sys.stderr)
    return COMPLETE_WITH_FAILURES if scheduler.failed else code


if __name__ == "__main__":
    run(main)
