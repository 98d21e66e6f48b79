"""Step 6: score a prediction file with VQA accuracy, ANLS or option letters, as its data set asks.

    python3 vqa_accuracy.py --predictions_file predictions/textvqa_cropvlm_answers.json

Details come first; the last line is the score alone, 0 to 100. Data set, split and number of rows are those of the
file's meta file unless flags name others. Predictions are joined to the rows on `question_id`; missing, duplicate or
unknown ids are an error. Of a model that writes its reasoning first, what follows `</think>` is scored.

As in the release, VQA accuracy compares the lower-cased prediction with the unchanged references; `--metric
vqa_official` normalises both. HR-Bench's score is the mean over its cycles. Where questions have options the letter
counts; with `--metric option` also an answer that is the text of one option, as lmms-eval and VLMEvalKit count it.
"""

import argparse
from pathlib import Path
from typing import Any

from cropvlm.data.catalog import BENCHMARKS
from cropvlm.data.rows import benchmark_for, load_rows
from cropvlm.errors import UserError, listed
from cropvlm.metrics import METRIC_NAMES
from cropvlm.runs.cli import ArgumentParser, nonempty, positive, run
from cropvlm.runs.files import check_writable, write_json
from cropvlm.runs.predictions import meta_path, read_file


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--predictions_file", type=nonempty, required=True, help="answers of generate_final_answers.py")
    add("--dataset_path", type=nonempty, help="Hub id or folder (default: the meta file's, else lmms-lab/textvqa)")
    add("--dataset", choices=BENCHMARKS, help="benchmark whose columns the data set has (default: the meta file's)")
    add("--split", type=nonempty, help="split (default: the meta file's, else the benchmark's)")
    add("--max_samples", type=positive, help="number of rows, from the first one (default: the meta file's, else all)")
    add("--metric", choices=METRIC_NAMES, help="default: the data set's own")
    add("--compare", type=nonempty, metavar="OTHER", help="another prediction file for the same rows")
    add("--output", type=nonempty, metavar="FILE", help="write score and details to this JSON file")
    args = parser.parse_args()
    inputs = [path for path in (args.predictions_file, args.compare) if path]
    if args.output and any(Path(args.output).resolve() in map(Path.resolve, (Path(p), meta_path(p))) for p in inputs):
        raise UserError(f"--output {args.output} would overwrite what is scored; name another file")
    return args


def load_references(args: argparse.Namespace, meta: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the rows that predictions with this meta answer, and their data set, split, number of rows and metric."""
    flags = {key: getattr(args, key) for key in ("dataset_path", "dataset", "split", "max_samples")}
    if args.dataset and not args.dataset_path:
        flags["dataset_path"] = args.dataset
    source = {key: meta.get(key) if value is None else value for key, value in flags.items()}
    source["dataset_path"] = source["dataset_path"] or "lmms-lab/textvqa"
    rows = load_rows(**source, need=("question_id", "answers"))
    own = benchmark_for(source["dataset_path"], source["dataset"], source["split"])
    return rows, {**source, "metric": args.metric or own.metric}


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is printed and written."""
    from cropvlm.runs.scoring import score_file

    files = [read_file(path, "answerer") for path in (args.predictions_file, args.compare) if path]
    rows, source = load_references(args, files[0].meta)
    same_rows = not (args.dataset or args.dataset_path or args.split)  # flags that name other rows are meant so
    scored, *others = (score_file(file, rows, source["metric"], same_rows) for file in files)
    result = {"predictions_file": args.predictions_file, **source, **scored.summary()}
    for other in others:
        result["compare"] = {"predictions_file": args.compare, **scored.compare(other)}
    return result


def details(result: dict[str, Any]) -> list[str]:
    """Return the lines above the score."""
    part = ", ".join(f"{key} {result[key]}" for key in ("split", "max_samples") if result[key] is not None)
    lines = [f"{result['predictions_file']} on {result['dataset_path']}" + (f" ({part})" if part else "")]
    error = "" if result["standard_error"] is None else f" (standard error {result['standard_error']:.2f})"
    metric = METRIC_NAMES[result["metric"]]
    lines.append(f"{metric}: {result['score']:.2f}{error} over {result['questions']} questions")
    if skipped := result["without_references"]:
        named = listed([repr(i) for i in skipped], limit=5)
        lines.append(f"rows without references, not scored: {len(skipped)} ({named})")
    lines.append(f"empty answers: {result['empty_answers']}")
    if "no_letter" in result:
        lines.append(f"answers without an option letter: {result['no_letter']}")
        other = "letter" if "letter_score" in result else "option"
        lines.append(f"{METRIC_NAMES[other]}: {result[f'{other}_score']:.2f}")
    for name in ("category", "cycle_category"):
        for group, value in result.get(f"by_{name}", {}).items():
            lines.append(f"{name.replace('_', ' ')} {group}: {value['score']:.2f} ({value['questions']} questions)")
    if other := result.get("compare"):
        low, high = other["interval_95"]
        lines.append(
            f"against {other['predictions_file']} ({other['other_score']:.2f}): {other['difference']:+.2f}, "
            f"95% interval [{low:+.2f}, {high:+.2f}]; "
            f"{other['better']} better, {other['worse']} worse, {other['equal']} equal"
        )
    return lines


def main() -> None:
    args = parse_args()
    if args.output:
        check_writable(args.output)
    result = evaluate(args)
    if args.output:
        write_json(args.output, result)
    print("\n".join(details(result)))
    print(f"{result['score']:.4f}")


if __name__ == "__main__":
    run(main)
