"""Scores, from 0 to 1, of one prediction against its references; ValueError without any. No torch in here."""

import re
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from cropvlm.prompts import without_reasoning

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})

# The EvalAI scorer restores each of these words where one of its apostrophes is missing. Contractions that become
# another word without it (she'd, we're, i'll) are not in its table; its I'm, I've and I'd've never match lower case.
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
    """Return VQA accuracy as the release scores it: the lower-cased prediction against the unchanged references.

    That is the mean of min(1, matches / 3) over the sets that leave one reference out. Nothing else is normalised, so a
    reference with a capital letter never matches.

    >>> vqa_accuracy("Stop", ["stop", "stop", "halt", "red", "sign", "sign", "red", "go", "go", "go"])
    0.6
    """
    _require_answers(answers)
    return _leave_one_out_accuracy(prediction.lower(), answers)


def official_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return VQA accuracy as the EvalAI server scores it: the same with prediction and references normalised."""
    _require_answers(answers)
    return _leave_one_out_accuracy(normalize_answer(prediction), [normalize_answer(answer) for answer in answers])


def _leave_one_out_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the mean of min(1, matches / 3) over the n sets of n - 1 references.

    With fewer than 4 references a set cannot hold three matches, so all of it (at least one) must match: a prediction
    that equals every reference always scores 1.
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
    """Return `text` as the EvalAI answer normaliser leaves it.

    In order: lower case; no commas and question marks; possessives split off; each punctuation mark deleted everywhere
    if the text has it beside a space, else made a space; dots only before digits; number words to digits; no articles;
    contractions with their apostrophes.

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
    """Return the Levenshtein similarity to the nearest reference, or 0 unless it is above `threshold`.

    The similarity is 1 - distance / longer length, ignoring case and runs of white space.

    >>> anls("bank.", ["the bank", "bank"])
    0.8
    """
    _require_answers(answers)
    predicted, *references = (" ".join(text.lower().split()) for text in (prediction, *answers))
    best = max(Levenshtein.normalized_similarity(predicted, reference) for reference in references)
    return best if best > threshold else 0.0  # at the threshold 0: ANLS keeps a distance below it, not one at it


_ARTICLE = r"a[^\S\n]+(?!(?:or|and|is|because)\b)[\w\"“'‘]"  # an a before a word or a quote
# Alone: not in "Blue", "C'est", "D-day", "C++", "e.g.", "i.e."
_LETTER = rf"(?<![\w-])(?<!\w['’])(?<!\bi\.)(?!e\.g\b)(?!{_ARTICLE})([A-E])(?!['’]?\w|-\w|\+)"
_FINAL = r"(?![)\]'’\"”]*\s*(?:/|or\b|and\b))"  # not one of two: "A or B"
_OPENING = re.compile(rf"(?im)\A\W*{_LETTER}{_FINAL}(?:[.):\]]|\s*$)")
_LISTED = re.compile(rf"(?im){_LETTER}(?:[.):\]]+\s*[\w(\[]|[)\]]*\s*$)")
_ANNOUNCED = re.compile(rf"(?i)\b(?:answer|option|choice)(?:\s+is\b|\s*:)\W*(?:option\W+|choice\W+)?{_LETTER}{_FINAL}")
_ALONE = re.compile(rf"(?i){_LETTER}")
_DENIAL = re.compile(r"(?i)\b(?:not|never|neither|nor|cannot|except|wrong|incorrect|false)\b|n['’]t\b")
_OPTION = re.compile(r"(?m)^\s*\(?([A-E])[.):]\s*(.+?)\s*$")  # a line of a question: "A. red", "(A) red"


def option_letter(text: str) -> str | None:
    """Return the option A..E that `text` chooses, in upper case, or None if it chooses none or several.

    Only letters that stand alone count: "Blue" is not B, "cannot tell" is not C, "a bus" is not A. Reasoning that ends
    with `</think>` and Markdown are dropped; then the first rule that finds a single letter decides:

    1. the answer opens with it, before a mark or the end of the line, and lists no other: "B", "(b) blue", "B. A bus."
    2. it is announced: "the answer is (b)", "Answer: option B"
    3. it is the only one, and nothing is denied: "I would say B", "b blue"

    >>> option_letter("B. Option A shows a bus.")
    'B'
    """
    text = re.sub(r"[*_`]", "", without_reasoning(text))
    opening = _OPENING.match(text)
    if opening and len(_distinct(_LISTED, text) | {opening[1].upper()}) == 1:
        return opening[1].upper()
    found = _distinct(_ANNOUNCED, text)
    if not found and not _DENIAL.search(text):
        found = _distinct(_ALONE, text)
    return found.pop() if len(found) == 1 else None


def _distinct(pattern: re.Pattern, text: str) -> set[str]:
    return {letter.upper() for letter in pattern.findall(text)}


def letter_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the option letter that `prediction` chooses is the reference (or one of them), else 0."""
    _require_answers(answers)
    return float(option_letter(prediction) in {answer.strip().upper() for answer in answers})


def option_accuracy(prediction: str, answers: Sequence[str], question: str) -> float:
    """Return 1 if the option that `prediction` chooses, by its letter or by its text, is the reference, else 0.

    >>> option_accuracy("Blue.", ["B"], "Which color?\\nA. red\\nB. blue")
    1.0
    """
    return letter_accuracy(chosen_option(prediction, question) or "", answers)


def chosen_option(text: str, question: str) -> str | None:
    """Return the letter that `text` chooses, else that of the one option of `question` whose text it is, else None."""
    found = option_letter(text)
    if found is None:
        same = [letter for letter, option in _OPTION.findall(question) if _plain(option) == _plain(text)]
        found = same[0] if len(same) == 1 else None
    return found


def _plain(text: str) -> str:
    return " ".join(without_reasoning(text).lower().split()).rstrip(".")


def most_common_answer(answers: Sequence[str]) -> str:
    """Return the most frequent reference, lower-cased and stripped; ties go to the first seen."""
    _require_answers(answers)
    return Counter(answer.lower().strip() for answer in answers).most_common(1)[0][0]


METRICS = {
    "vqa": vqa_accuracy,
    "vqa_official": official_vqa_accuracy,
    "anls": anls,
    "letter": letter_accuracy,
    "option": option_accuracy,  # takes the question as well
}
METRIC_NAMES = {
    "vqa": "VQA accuracy",
    "vqa_official": "official VQA accuracy",
    "anls": "ANLS",
    "letter": "letter accuracy",
    "option": "option accuracy",
}
