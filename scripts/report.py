"""Compare prediction files with the paper's figures and claims: report.md, report.json and report.html.

    python3 scripts/report.py --predictions predictions
    python3 scripts/report.py --predictions_file A_answers.json --compare B_answers.json

Reads prediction and meta files, and the data sets that they name. The page is self-contained: reported and reproduced
values with verdicts, scores, costs, plots, and examples to look through; of two files, the comparison and examples
alone. Of several trainings (--seeds 3, or --names run=a,b,c) verdicts are on the mean, and intervals hold the noise of
questions and of training. Exit code 3: a figure or claim that was run is not reproduced.
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cropvlm.errors import UserError  # noqa: E402
from cropvlm.runs.cli import ArgumentParser, positive, run  # noqa: E402
from cropvlm.runs.files import lock  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--predictions", type=Path, metavar="FOLDER", help="all answer and box files below it (default: predictions)")
    add("--claims", type=Path, default=ROOT / "scripts/claims/paper.yaml", help="default: scripts/claims/paper.yaml")
    add("--names", nargs="+", default=[], metavar="NAME=VALUE,...", help="replace names of the claims file; of several "
        "trainings one value each")  # fmt: skip
    add("--seeds", type=positive, default=1, help="trainings of every cropper, as reproduce.py --seeds ran them")
    add("--predictions_file", type=Path, metavar="A", help="one answer file, to be compared with another")
    add("--compare", type=Path, metavar="B", help="the other one")
    add("--output", type=Path, metavar="FOLDER", help="where the report goes (default: beside the predictions)")
    add("--examples", type=positive, default=300, help="questions on the page, at most (default 300)")
    args = parser.parse_args()
    if (args.predictions_file is None) != (args.compare is None):
        raise UserError("--predictions_file and --compare go together: give both, or --predictions FOLDER")
    if args.predictions and args.predictions_file:
        raise UserError("--predictions FOLDER and --predictions_file with --compare exclude each other")
    if wrong := [name for name in args.names if "=" not in name]:
        raise UserError(f"--names {wrong[0]}: expected NAME=VALUE")
    return args


def main() -> int:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from reporting import report  # imports datasets and matplotlib: not for --help
    from reporting.claims_file import each_run

    if args.predictions_file:
        made = report.compare_files(args.predictions_file, args.compare)
        output = args.output or args.predictions_file.parent
    else:
        folder = args.predictions or Path("predictions")
        made = report.judge_folder(folder, each_run(args.claims, args.names, args.seeds))
        output = args.output or folder
    with lock(output / "_report_lock"):  # another report's files are not taken for those of a killed run
        report.write(made, output, args.examples)
    print(report.summary(made))
    print(f"report: {', '.join(str(output / name) for name in report.FILES)}")
    return made.exit_code


if __name__ == "__main__":
    run(main)
