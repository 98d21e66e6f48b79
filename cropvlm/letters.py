"""The option letter that an answer chooses, for V* and HR-Bench."""

import re
from collections.abc import Sequence

from cropvlm.metrics import _require_answers

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
