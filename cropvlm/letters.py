"""Read the option letter that an answer chooses, for V* and HR-Bench."""

import re

from cropvlm.reasoning import without_reasoning

_ARTICLE = r"a[^\S\n]+(?!(?:or|and|is|because)\b)[\w\"“'‘]"  # an a before a word or a quote
_LETTER = rf"(?<![\w'’-])(?!{_ARTICLE})([A-D])(?![\w'’]|-\w)"  # alone: not in "Blue", "C'est", "D-day"
_FINAL = r"(?![)\]]*\s*(?:/|or\b|and\b))"  # no other letter is offered beside it: "A or B"
_OPENING = re.compile(rf"(?im)\A\W*{_LETTER}{_FINAL}(?:[.):\]]|\s*$)")
_LISTED = re.compile(rf"(?im){_LETTER}(?:[.):\]]+\s*[\w(\[]|[)\]]*\s*$)")
_ANNOUNCED = re.compile(rf"(?i)\b(?:answer|option|choice)(?:\s+is\b|\s*:)\W*(?:option\W+|choice\W+)?{_LETTER}{_FINAL}")
_ALONE = re.compile(rf"(?i){_LETTER}")
_DENIAL = re.compile(r"(?i)\b(?:not|never|neither|nor|cannot|except|wrong|incorrect|false)\b|n['’]t\b")


def option_letter(text: str) -> str | None:
    """Return the option A..D that `text` chooses, in upper case, or None if it chooses none or several.

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
