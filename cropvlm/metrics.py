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

# How an answer names an option. Letters are matched in either case unless said otherwise.
_LETTER = r"(?<![\w'’])(?<!\w-)([A-D])(?![\w'’]|-\w)"  # alone: not "Blue", "C'est", "D-day"
_LETTERS = rf"{_LETTER}(?:[)\]]*(?:,|,?\s(?:and|or|nor)\b)[\s(\[]*{_LETTER}){{1,3}}"  # "A, B and C"
_VERB = r"(?:is|are|was|were|seems|looks|would|could|can|cannot|must|does|has)\b"
_NOT = r"(?:is|are|was|were|seems|looks|would\s+be)(?:\s+(?:not|wrong|incorrect|false|excluded)\b|n['’]t\b)"
_NOT = rf"\s+(?:{_NOT}|(?:does|do|can|could|would|must)(?:\s+not\b|n['’]t\b)|cannot\b|can['’]t\b)"
_DENIED = re.compile(
    rf"(?i)(?:\bnot\b|n['’]t\b|\bnever\b|\bneither\b|\bcannot\b)(?:\s+be)?\s+(?:the\s+)?(?:answer\s+|option\s+|choice\s+)?"
    rf"[(\[]*{_LETTER}[)\]]*(?:\s+n?or\s+[(\[]*{_LETTER}[)\]]*){{0,3}}"  # "not A or B", "neither A nor B"
    rf"|{_LETTERS}[)\]]*(?=\s+are\b){_NOT}"  # "A, B and C are wrong"
    rf"|{_LETTER}[)\].:]*(?!\s+are\b){_NOT}"  # "A is wrong"
)
# "a red bus", "the answer is a Coke", "A red bus": the article. "A Coke" is taken for the option.
_ARTICLE = re.compile(
    rf"(?<![\w'’-])(?:a(?=[^\S\n]+(?!(?:{_VERB}|(?:or|and|nor|because|since|as|but)\b))\w)"
    rf"|A(?=[^\S\n]+(?!(?:{_VERB}|(?:or|and|nor|because|since|as|but)\b))[a-z]))"
)
_OPENING_LETTER = re.compile(rf"(?i)[\W_]*{_LETTER}")
_ANNOUNCED_LETTERS = [
    re.compile(rf"(?i)\b(?:{word})\b(?:\s+is)?[\W_]*(?:(?:option|choice)[\W_]+)?{_LETTER}")
    for word in ("answer", "option|choice")
]
_LONE_CAPITAL = re.compile(_LETTER)
# What follows a letter where another one is offered beside it: "A or B", "A, B", "A and (B)", "A B C D".
_ANOTHER = re.compile(
    rf"(?i)\W*\b(?:or|and|nor)\b[\s(\[]*(?:option\s+|choice\s+)?{_LETTER}"
    rf"|[\s,;:/&.()\[\]]+{_LETTER}[)\]]*(?=\s*(?:$|[,;.:/&]|(?:or|and|nor)\b|\W*[A-D]\b))"
)
# An option as a list has it: "(B) blue", "B. blue", at the beginning or after a line, comma or space.
_LISTED = re.compile(rf"(?i)(?:^|[\s,;])[(\[]?{_LETTER}[).:\]]\s+(?!{_VERB})(?=\w)")


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


def option_letter(text: str) -> str | None:
    """Return the option A..D that `text` chooses, in either case, or None if it chooses none or several.

    A letter counts alone only: "Blue" is not B, "cannot tell" is not C, "D-day" is not D. Letters that are denied do
    not count ("not A", "option A is incorrect"). Of the others the first of these decides:

    1. the letter that the answer opens with: "b", "(B) blue", "b, the blue one", "B because option A is red";
    2. the one it announces, as the answer before as an option or choice: "the answer is b", "option B";
    3. the only single capital: "I would say B".

    None where that letter is one of several on offer ("A or B", "b, c") or of a list of options ("(A) red (B) blue").

    Where A may be the article, it is the option only before a verb or a conjunction ("a is right", "A because ..."), a
    mark or a new line ("a, the red one"), or as a capital before a capital or a digit ("A Red"). So "a red bus", "A red
    bus" and "a Coke" name no option, though they may be meant as option and text: "a) red" or "a. red" is clear. B, C
    and D are no words of English: "b blue" is B.

    >>> option_letter("B. Option A is not blue.")
    'B'
    """
    text = re.sub(r"[*_`]", "", text).strip()  # bold and code
    text = _ARTICLE.sub(" ", _DENIED.sub(" ", text))
    listed = {letter.upper() for letter in _LISTED.findall(text)}
    opening = _OPENING_LETTER.match(text)
    if opening and len(listed) < 2 and not _another_follows(text, opening):
        return opening[1].upper()
    for announced in _ANNOUNCED_LETTERS:
        if matches := list(announced.finditer(text)):
            return _only_letter(text, matches)
    return None if len(listed) > 1 else _only_letter(text, list(_LONE_CAPITAL.finditer(text)))


def _only_letter(text: str, matches: list[re.Match]) -> str | None:
    letters = {match[1].upper() for match in matches}
    return letters.pop() if len(letters) == 1 and not any(_another_follows(text, match) for match in matches) else None


def _another_follows(text: str, match: re.Match) -> bool:
    following = _ANOTHER.match(text, match.end())
    return bool(following) and (following[1] or following[2]).upper() != match[1].upper()


def letter_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if `prediction` chooses the letter that is the reference (or one of them), else 0.

    Raises ValueError without references.
    """
    _require_answers(answers)
    return float(option_letter(prediction) in {answer.strip().upper() for answer in answers})


def most_common_answer(answers: Sequence[str]) -> str:
    """Return the most frequent reference, lower-cased and stripped; of several as frequent the first seen.

    Raises ValueError without references.
    """
    _require_answers(answers)
    return Counter(answer.lower().strip() for answer in answers).most_common(1)[0][0]
