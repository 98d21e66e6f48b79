"""Scores of whole prediction files: means over rows and cycles, standard errors, paired bootstrap. No torch in here.

HR-Bench asks each question in several cycles, its options in another order. Every cycle counts the same in the mean,
and the rows of one question are not independent: errors and intervals treat them as one.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cropvlm.data.rows import benchmark_for
from cropvlm.errors import UserError
from cropvlm.metrics import METRICS, chosen_option, option_letter
from cropvlm.prompts import clean_answer, without_reasoning
from cropvlm.runs.predictions import PredictionFile, check_same_data, join_on_question_id, rows_of

RESAMPLES = 10_000


def final_answer(text: str) -> str:
    """Return the answer to score: `text` unchanged or, if it holds reasoning, cleaned of it as at inference."""
    return text if without_reasoning(text) == text else clean_answer(text)


def cycle_weights(cycles: Sequence | None, n: int) -> np.ndarray:
    """Return weights (n,) that sum to 1: equal for all rows, or, with the cycle of each row, equal for all cycles."""
    if cycles is None:
        return np.full(n, 1 / n)
    _, cycle, size = np.unique([str(name) for name in cycles], return_inverse=True, return_counts=True)
    return 1 / (len(size) * size[cycle])


def question_keys(rows: Any) -> list[str]:
    """Return a key for each row that is equal where rows ask the same question in different cycles."""
    if "cycle_category" not in rows.column_names or "question" not in rows.column_names:
        return [str(i) for i in range(len(rows))]
    return ["\n".join(sorted(re.sub("(?m)^[A-E][.] ", "", text).split("\n"))) for text in rows["question"]]


def sum_by_question(values: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over each question's rows of the weighted values and of the weights."""
    _, group = np.unique(list(questions), return_inverse=True)
    return np.bincount(group, weights * values), np.bincount(group, weights)


def standard_error(values: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> float | None:
    """Return the standard error of the weighted mean, clustered by question; None for a single question.

    This is the cluster-robust (sandwich) error of a ratio of sums: the residual of a question is what its rows add to
    the sum beyond the mean. With one row each and equal weights it is the standard deviation over the square root of n.
    """
    sums, sizes = sum_by_question(values, weights, questions)  # (n,) and (n,), an entry per question
    n = len(sums)
    residuals = sums - sums.sum() / sizes.sum() * sizes  # (n,); they sum to 0
    # The meat is the sum of squared residuals, the bread 1 / sum of weights; n / (n - 1) for the mean that was fitted.
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / sizes.sum()) if n > 1 else None


def bootstrap_means(values: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> np.ndarray:
    """Return the weighted means (RESAMPLES,) of seeded bootstrap samples of whole questions."""
    sums, sizes = sum_by_question(values, weights, questions)
    rng = np.random.default_rng(0)
    samples = (rng.integers(len(sums), size=len(sums)) for _ in range(RESAMPLES))
    return np.array([sums[sample].sum() / sizes[sample].sum() for sample in samples])


def interval_95(means: np.ndarray) -> tuple[float, float]:
    """Return the 2.5% and the 97.5% percentile of bootstrap means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def score_file(file: PredictionFile, rows: Any, metric: str | None = None, same_rows: bool = True) -> "ScoredRows":
    """Return the scores of an answer file over the rows of its data set; `UserError` if it answers others.

    metric: default: the data set's own. same_rows: whether the questions must be those in the meta file.
    """
    if same_rows:
        check_same_data(file, rows)
    rows = rows_of(file.meta, rows)  # a control may leave some out
    answers = join_on_question_id(file.records, rows, str(file.path))
    source = [file.meta.get(key) for key in ("dataset_path", "dataset", "split")]
    metric = metric or benchmark_for(source[0] or "textvqa", *source[1:]).metric
    return ScoredRows(rows, answers, metric)


def score_groups(scores: np.ndarray, weights: np.ndarray, groups: Sequence) -> dict[str, dict[str, float]]:
    """Return weighted mean and number of questions of each group, sorted by its name."""
    names = np.array([str(group) for group in groups])
    members = {str(name): names == name for name in sorted(set(names))}
    return {
        name: {"score": float(np.average(scores[rows], weights=weights[rows])), "questions": int(rows.sum())}
        for name, rows in members.items()
    }


def compare(scores: np.ndarray, others: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> dict[str, Any]:
    """Return the paired difference scores - others, its 95% bootstrap interval and error, and how many rows moved."""
    differences = scores - others
    return {
        "other_score": float(others @ weights),
        "difference": float(differences @ weights),
        "interval_95": list(interval_95(bootstrap_means(differences, weights, questions))),
        "standard_error": standard_error(differences, weights, questions),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "equal": int((differences == 0).sum()),
    }


class ScoredRows:
    """The scores of one prediction file, over the n rows that have references; `UserError` if none has.

    rows: a `Dataset` in the row schema; `category` and `cycle_category` count for option letters. answers: one per row.

    Attributes: the `indices` of the scored rows, their `scores` (0 to 100) and `weights` in the mean, and `questions`,
    a key for each that is equal for the cycles of one question.
    """

    def __init__(self, rows: Any, answers: Sequence[str], metric: str):
        references, ids = list(rows["answers"]), list(rows["question_id"])
        self.metric = metric
        self.indices = [i for i, known in enumerate(references) if known]
        self.without_references = [ids[i] for i, known in enumerate(references) if not known]
        if not self.indices:
            raise UserError(f"none of the {len(ids)} rows has references, such as {ids[0]!r}; expected some")
        self.answers = [final_answer(answers[i]) for i in self.indices]
        self.references = [references[i] for i in self.indices]
        asked = rows["question"] if "question" in rows.column_names else [""] * len(ids)
        self.asked = [asked[i] for i in self.indices]
        self.scores = self.score_as(metric)
        self.ids = [ids[i] for i in self.indices]
        keys = question_keys(rows)
        self.questions = [keys[i] for i in self.indices]
        self.with_options = metric in ("letter", "option")
        names = ("category", "cycle_category") if self.with_options else ()
        names = [name for name in names if name in rows.column_names]
        self.groups = {name: [rows[name][i] for i in self.indices] for name in names}
        self.weights = cycle_weights(self.groups.get("cycle_category"), len(self.scores))

    def score_as(self, metric: str) -> np.ndarray:
        """Return the scores, 0 to 100, by any metric, (n,)."""
        columns = [self.answers, self.references, *([self.asked] if metric == "option" else [])]
        return np.array([100 * score for score in map(METRICS[metric], *columns)])

    @property
    def refusals(self) -> np.ndarray:
        """100 for an answer that is empty or, among options, chooses none; else 0, (n,)."""
        return np.array([100.0 * (not a or (self.with_options and option_letter(a) is None)) for a in self.answers])

    @property
    def mean(self) -> float:
        """The score of the file, 0 to 100."""
        return float(self.scores @ self.weights)

    def summary(self) -> dict[str, Any]:
        """Return score, standard error and counts, and for option letters the scores of categories and cycles."""
        summary = {
            "score": self.mean,
            "standard_error": standard_error(self.scores, self.weights, self.questions),
            "questions": len(self.scores),
            "without_references": self.without_references,
            "empty_answers": sum(not answer for answer in self.answers),
        }
        if self.with_options:
            by_text = self.metric == "option"
            chosen = map(chosen_option, self.answers, self.asked) if by_text else map(option_letter, self.answers)
            summary["no_letter"] = sum(letter is None for letter in chosen)
            other = "letter" if by_text else "option"
            summary[f"{other}_score"] = float(self.score_as(other) @ self.weights)
        return summary | {f"by_{name}": score_groups(self.scores, self.weights, g) for name, g in self.groups.items()}

    def compare(self, other: "ScoredRows") -> dict[str, Any]:
        """Return the paired comparison with another file's scores of the same rows, `UserError` for others."""
        if self.ids != other.ids:
            raise UserError(f"the files answer {len(self.ids)} and {len(other.ids)} questions, which are not the same")
        return compare(self.scores, other.scores, self.weights, self.questions)
