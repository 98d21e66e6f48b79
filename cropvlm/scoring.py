"""Means over the cycles of HR-Bench, standard errors by question, paired bootstrap. No torch in here."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000


def cycle_weights(cycles: Sequence | None, n: int) -> np.ndarray:
    """Weights (n,) that sum to 1: equal ones, or such that every cycle of HR-Bench counts the same."""
    if cycles is None:
        return np.full(n, 1 / n)
    _, cycle, size = np.unique([str(name) for name in cycles], return_inverse=True, return_counts=True)
    return 1 / (len(size) * size[cycle])


def questions_of(rows: Any) -> list[str]:
    """What question each row asks: the cycles of HR-Bench ask one with its options in another order."""
    if "cycle_category" not in rows.column_names or "question" not in rows.column_names:
        return [str(i) for i in range(len(rows))]
    return ["\n".join(sorted(re.sub("(?m)^[A-D][.] ", "", text).split("\n"))) for text in rows["question"]]


def by_question(values: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the rows of each question: of the weighted values, and of the weights."""
    _, group = np.unique(list(questions), return_inverse=True)
    return np.bincount(group, weights * values), np.bincount(group, weights)


def standard_error(values: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> float | None:
    """Of the weighted mean over independent questions (their rows are not); None for a single question.

    With a row per question and equal weights this is the deviation of the values over the root of their number.
    """
    sums, sizes = by_question(values, weights, questions)
    n = len(sums)
    residuals = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / sizes.sum()) if n > 1 else None


def by_group(scores: np.ndarray, weights: np.ndarray, groups: Sequence) -> dict[str, dict[str, float]]:
    """Score and number of questions per group, in the order of the groups' names."""
    groups = np.array([str(group) for group in groups])
    return {
        str(group): {
            "score": float(np.average(scores[groups == group], weights=weights[groups == group])),
            "questions": int((groups == group).sum()),
        }
        for group in sorted(set(groups))
    }


def compare(scores: np.ndarray, others: np.ndarray, weights: np.ndarray, questions: Sequence[str]) -> dict[str, Any]:
    """The paired difference scores - others with a 95% bootstrap interval (seeded), and how many rows moved.

    Questions are drawn, each with all its rows: those of HR-Bench's cycles rise and fall together.
    """
    differences = scores - others
    sums, sizes = by_question(differences, weights, questions)
    rng = np.random.default_rng(0)
    n = len(sums)
    means = []
    for _ in range(RESAMPLES):
        sample = rng.integers(n, size=n)
        means.append(sums[sample].sum() / sizes[sample].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "other_score": float(others @ weights),
        "difference": float(differences @ weights),
        "interval_95": [float(low), float(high)],
        "standard_error": standard_error(differences, weights, questions),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "equal": int((differences == 0).sum()),
    }
