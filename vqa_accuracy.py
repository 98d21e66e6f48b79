"""Score a prediction file: VQA accuracy, ANLS or option letters, as the data set asks.

    python3 vqa_accuracy.py --predictions_file predictions/textvqa_cropvlm_answers.json

Details come first; the last line is the score alone, 0 to 100. Predictions are joined to the data set on `question_id`;
a file with missing, doubled or strange ids is refused. Data set, split and number of rows are those of the file's meta
file unless given. As in the paper, VQA accuracy compares the lower-cased prediction with the references as they stand;
`--metric vqa_official` normalises both. HR-Bench is the mean over its cycles; errors and intervals take the rows of one
question, which all cycles ask, together.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm.benchmarks import BENCHMARKS
from cropvlm.cli import ArgumentParser, UserError, run
from cropvlm.data import load_rows, metric_for
from cropvlm.inference.predictions import join_on_question_id, meta_path, read_meta, read_predictions
from cropvlm.letters import letter_accuracy, option_letter
from cropvlm.metrics import anls, official_vqa_accuracy, vqa_accuracy
from cropvlm.runtime.files import check_writable, write_json
from cropvlm.scoring import by_group, compare, cycle_weights, questions_of, standard_error

METRICS = {"vqa": vqa_accuracy, "vqa_official": official_vqa_accuracy, "anls": anls, "letter": letter_accuracy}
NAMES = {"vqa": "VQA accuracy", "vqa_official": "official VQA accuracy", "anls": "ANLS", "letter": "letter accuracy"}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions_file", required=True, help="answers, as generate_final_answers.py writes them")
    parser.add_argument(
        "--dataset_path", help="hub id or folder (default: the meta file's; without one lmms-lab/textvqa)"
    )
    parser.add_argument(
        "--dataset", choices=BENCHMARKS, help="benchmark that the data set is (default: the meta file's)"
    )
    parser.add_argument("--split", help="split (default: the meta file's, else the benchmark's)")
    parser.add_argument("--max_samples", type=int, help="first so many rows (default: the meta file's, else all)")
    parser.add_argument("--metric", choices=METRICS, help="default: the data set's own")
    parser.add_argument("--compare", metavar="OTHER", help="another prediction file for the same rows")
    parser.add_argument("--output", metavar="FILE", help="write score and details there as JSON")
    args = parser.parse_args()
    inputs = [path for path in (args.predictions_file, args.compare) if path]
    if args.output and any(Path(args.output).resolve() in map(Path.resolve, (Path(p), meta_path(p))) for p in inputs):
        raise UserError(f"--output {args.output} would overwrite what is scored; name another file")
    return args


def load_references(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The rows to score, and what they are: data set, split, number of rows, metric."""
    meta = read_meta(args.predictions_file)
    asked = {key: getattr(args, key) for key in ("dataset_path", "dataset", "split", "max_samples")}
    if args.dataset and not args.dataset_path:
        asked["dataset_path"] = args.dataset
    source = {key: meta.get(key) if value is None else value for key, value in asked.items()}
    source["dataset_path"] = source["dataset_path"] or "lmms-lab/textvqa"
    rows = load_rows(**source, need=("question_id", "answers"))
    own_metric = metric_for(source["dataset_path"], source["dataset"], source["split"])
    return rows, {**source, "metric": args.metric or own_metric}


def score_rows(metric: str, predictions: Iterable[str], references: Iterable[list[str]]) -> np.ndarray:
    """The score of every row, 0 to 100."""
    score = METRICS[metric]
    return np.array([100 * score(p, r) for p, r in zip(predictions, references, strict=True)])


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    names = [args.predictions_file] + ([args.compare] if args.compare else [])
    files = [read_predictions(name) for name in names]
    rows, source = load_references(args)
    answers = [join_on_question_id(records, rows, name) for records, name in zip(files, names, strict=True)]
    all_references = list(rows["answers"])
    scored = [i for i, references in enumerate(all_references) if references]
    if not scored:
        first = rows["question_id"][0]
        raise UserError(
            f"no row of {source['dataset_path']} has references, {first!r} for one; choose a split that has"
        )
    references = [all_references[i] for i in scored]
    predictions = [[column[i] for i in scored] for column in answers]
    columns = {
        name: np.array(rows[name])[scored].tolist()
        for name in ("category", "cycle_category")
        if name in rows.column_names and source["metric"] == "letter"
    }
    scores = score_rows(source["metric"], predictions[0], references)
    weights = cycle_weights(columns.get("cycle_category"), len(scores))
    all_questions = questions_of(rows)
    questions = [all_questions[i] for i in scored]
    ids = list(rows["question_id"])
    result = {
        "predictions_file": args.predictions_file,
        **source,
        "score": float(scores @ weights),
        "standard_error": standard_error(scores, weights, questions),
        "questions": len(scored),
        "without_references": [ids[i] for i, references in enumerate(all_references) if not references],
        "empty_answers": sum(not answer for answer in predictions[0]),
    }
    if source["metric"] == "letter":
        result["no_letter"] = sum(option_letter(answer) is None for answer in predictions[0])
    for name, groups in columns.items():
        result[f"by_{name}"] = by_group(scores, weights, groups)
    if args.compare:
        others = score_rows(source["metric"], predictions[1], references)
        result["compare"] = {"predictions_file": args.compare, **compare(scores, others, weights, questions)}
    return result


def details(result: dict[str, Any]) -> list[str]:
    """The lines above the score."""
    part = ", ".join(f"{key} {result[key]}" for key in ("split", "max_samples") if result[key] is not None)
    lines = [f"{result['predictions_file']} on {result['dataset_path']}" + (f" ({part})" if part else "")]
    error = "" if result["standard_error"] is None else f" (standard error {result['standard_error']:.2f})"
    lines.append(f"{NAMES[result['metric']]}: {result['score']:.2f}{error} over {result['questions']} questions")
    if skipped := result["without_references"]:
        named = ", ".join(map(repr, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        lines.append(f"not scored, for want of references: {len(skipped)} rows ({named})")
    lines.append(f"empty answers: {result['empty_answers']}")
    if "no_letter" in result:
        lines.append(f"answers that name no option: {result['no_letter']}")
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
