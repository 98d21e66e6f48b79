"""Scores of one prediction against its references, each between 0 and 1; scripts average them over questions."""

import re
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_DIGITS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
_ARTICLES = frozenset({"a", "an", "the"})

# What the EvalAI scorer restores: each word, written with one of its apostrophes missing. Words that are another word
# without it (she'd, we're, i'll) are not in its table, and its I'm, I've and I'd've never match lower-cased text.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the scorer's own slip, kept for equal scores


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return VQA accuracy as the paper scores it: the lower-cased prediction against the references as they stand.

    The mean over all sets that leave one reference out of min(1, matches / 3). Nothing else is normalised, so that a
    reference with a capital never matches.

    Raises ValueError without references.

    >>> vqa_accuracy("Stop", ["stop", "stop", "halt", "red", "sign", "sign", "red", "go", "go", "go"])
    0.6
    """
    _require_answers(answers)
    return _leave_one_out_accuracy(prediction.lower(), answers)


def official_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return VQA accuracy as the EvalAI server scores it: the same with prediction and references normalised.

    Raises ValueError without references.
    """
    _require_answers(answers)
    return _leave_one_out_accuracy(normalize_answer(prediction), [normalize_answer(answer) for answer in answers])


def _leave_one_out_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score a prediction by exact matches.

    With n >= 4 references this is the mean over the n sets of n - 1 of min(1, matches / 3). Fewer cannot hold three
    matches, so there all of a set (and at least one) are asked for: a prediction that every reference agrees with
    always scores 1.
    """
    n, matches = len(answers), sum(answer == prediction for answer in answers)
    if n == 1:
        return float(matches)
    needed = min(3, n - 1)
    # `matches` sets leave a matching reference out. Whole numbers up to the one division: 0.3, not 0.30000000000000004.
    return (matches * min(needed, matches - 1) + (n - matches) * min(needed, matches)) / (n * needed)


def _require_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"references are {answers!r}; expected a list of at least one string")


def normalize_answer(text: str) -> str:
    """Return `text` as the EvalAI answer normaliser leaves it (METHOD.md lists its steps).

    >>> normalize_answer("The two coca-colas, dont!")
    "2 coca colas don't"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    unpunctuated = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        unpunctuated = unpunctuated.replace(mark, "" if beside_space else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", unpunctuated).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Return the normalised Levenshtein similarity to the nearest reference, or 0 unless it is above `threshold`.

    Case and runs of white space do not count; the distance is divided by the longer length.

    Raises ValueError without references.

    >>> anls("bank.", ["the bank", "bank"])
    0.8
    """
    _require_answers(answers)
    predicted = " ".join(prediction.lower().split())
    best = max(_similarity(predicted, " ".join(answer.lower().split())) for answer in answers)
    return best if best > threshold else 0.0  # at the threshold 0: ANLS keeps a distance below it, not one at it


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1 - _levenshtein(a, b) / longer if longer else 1.0


def _levenshtein(a: str, b: str) -> int:
    previous = list(range(len(b) + 1))
    for i, character in enumerate(a, start=1):
        current = [i]
        for j, other in enumerate(b, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (character != other)))
        previous = current
    return previous[-1]


def most_common_answer(answers: Sequence[str]) -> str:
    """Return the most frequent reference, lower-cased and stripped; of several as frequent the first seen.

    Raises ValueError without references.
    """
    _require_answers(answers)
    return Counter(answer.lower().strip() for answer in answers).most_common(1)[0][0]
