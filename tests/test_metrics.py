"""Scores by hand, the steps of the normaliser, and the option letter of an answer."""

import time

import pytest

from cropvlm.metrics import (
    anls,
    letter_accuracy,
    most_common_answer,
    normalize_answer,
    official_vqa_accuracy,
    option_accuracy,
    option_letter,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        # k of 10 match: k sets hold k - 1 matches, 10 - k sets hold k, each capped at 3 and divided by 3.
        pytest.param(["go"] * 10, 0, id="none"),
        pytest.param(["stop"] * 2 + ["go"] * 8, 0.6, id="(2 x 1 + 8 x 2) / 30"),
        pytest.param(["stop"], 1, id="1 of 1"),
        pytest.param(["stop", "go"], 0.5, id="2 sets of one: 0 and 1"),
        pytest.param(["stop", "stop", "go"], 2 / 3, id="3 sets of two, 2 needed: 1/2, 1/2, 1"),
        pytest.param(["stop"] * 3 + ["go"] * 2, 0.8, id="5 sets of four, 3 needed: 2/3 three times, 1 twice"),
    ],
)
def test_vqa_accuracy(answers, score):
    assert vqa_accuracy("Stop", answers) == pytest.approx(score)


@pytest.mark.parametrize("metric", [vqa_accuracy, official_vqa_accuracy, anls, letter_accuracy])
@pytest.mark.parametrize("answers", [[], "stop"], ids=["none", "a string, not a list"])
def test_references_are_required(metric, answers):
    with pytest.raises(ValueError, match="list of at least one string"):
        metric("stop", answers)


def test_paper_accuracy_takes_references_as_they_stand():
    assert vqa_accuracy("Nokia", ["Nokia"] * 10) == 0  # only the prediction is lower-cased
    assert vqa_accuracy(" nokia", ["nokia"] * 10) == 0
    assert vqa_accuracy("nokia.", ["nokia"] * 10) == 0
    assert official_vqa_accuracy(" Nokia.", ["nokia"] * 10) == 1


NORMALIZED = {
    "comma and question mark go": ("1,000?", "1000"),
    "possessive is split off": ("Mary's", "mary 's"),
    "lines and tabs": (" red\n\tsign ", "red sign"),
    "mark beside a space is deleted": ("red - sign", "red sign"),
    "mark inside a word becomes a space": ("coca-cola", "coca cola"),
    "deleted everywhere once beside a space": ("coca-cola - cold", "cocacola cold"),
    "dot before a digit stays": ("3.5", "3.5"),
    "number words": ("none zero one ten eleven", "0 0 1 10 eleven"),
    "articles go": ("a dog an owl the cat", "dog owl cat"),
    "contraction": ("dont", "don't"),
    "contraction with two of three apostrophes": ("yall'd've", "y'all'd've"),
    "words that look like contractions": ("shed were ill id im", "shed were ill id im"),
    "dollar sign stays": ("$5", "$5"),
}


@pytest.mark.parametrize(("text", "normalized"), NORMALIZED.values(), ids=NORMALIZED.keys())
def test_normalize_answer(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        pytest.param("Bank.", ["bank"], 0.8, id="1 edit of 5, case aside"),
        pytest.param("kitten", ["sitting"], 4 / 7, id="3 edits of 7"),
        pytest.param("bank", ["the bank", "bart"], 0, id="4 of 8 and 2 of 4: at the threshold counts 0"),
        pytest.param("bank", ["tank", "x"], 0.75, id="the best reference"),
        pytest.param("\ud800bank", ["bank"], 0.8, id="half a surrogate pair is one character"),
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


def test_letter_accuracy():
    assert letter_accuracy("B", [" b "]) == 1  # the reference in lower case
    assert letter_accuracy("blue", ["B"]) == 0  # no letter


QUESTION = "Which color?\nA. red\nB. blue\n(C) blue\n(D) Dark  green\nE. 5"


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        pytest.param("B", "B", 1, id="the letter"),
        pytest.param("(A) blue", "A", 1, id="the letter before any text"),
        pytest.param("Red.", "A", 1, id="the text of an option"),
        pytest.param("dark green", "D", 1, id="an option in brackets, white space and case"),
        pytest.param("blue", "B", 0, id="the text of two options"),
        pytest.param("<think>red</think>5", "E", 1, id="after reasoning"),
    ],
)
def test_option_accuracy(prediction, answer, score):
    assert option_accuracy(prediction, [answer], QUESTION) == score


def test_most_common_answer():
    assert most_common_answer(["Stop ", "go", "go", "stop", " STOP"]) == "stop"  # counted after lower-casing, 3 : 2
    assert most_common_answer(["b", "a", "a", "b"]) == "b"  # a tie goes to the first seen
    assert most_common_answer([""]) == ""
    with pytest.raises(ValueError, match="list of at least one string"):
        most_common_answer([])


LETTERS = {
    "lower case, as the capitalised question lists them": ("b", "B"),
    "A on a line of its own": ("A\nred", "A"),
    "A as a subject": ("A is right", "A"),
    "opening, another announced": ("B\nOption A shows a car", "B"),
    "a list, then the answer": ("(A) red\n(B) blue\nThe answer is B", "B"),
    "after reasoning": ("<think>Option A is red, but the bag is blue so B.</think>\nB", "B"),
    "the only one not denied, which the short rule gives up": ("A is wrong, B is right", None),
    "cannot tell is not C": ("cannot tell", None),
    "an article": ("A red bus", None),
    "an announced article": ("The answer is a dog", None),
    "apostrophe": ("C'est la vie", None),
    "language": ("C++", None),
    "for example": ("e.g. red", None),
    "two letters": ("A or B", None),
    "two announced": ("The answer is B or C", None),
    "denied": ("this is not B", None),
    "denied by a contraction": ("this isn’t B", None),
    "within a sentence": ("this is indeed B", "B"),
    "all but one denied in words": ("neither a nor b", None),
    "an article before a quote": ('A "stop" sign', None),
    "reasoning that chooses, then nothing": ("<think>It is B</think>", None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("text", "letter"), LETTERS.values(), ids=LETTERS.keys())
def test_option_letter(text, letter):
    assert option_letter(text) == letter


@pytest.mark.parametrize("pair", ["''", "“”", "``"])
@pytest.mark.parametrize("text", ["{}B{}", "The answer is {}B{}.", "{}B. blue{}"])
def test_a_letter_in_any_pair_of_quotes(pair, text):
    assert option_letter(text.format(*pair)) == "B"


@pytest.mark.parametrize("text", ["a, ", "not A ", "(B) ", "\n", "option a "], ids=repr)
def test_an_endless_answer_is_read_in_no_time(text):
    start = time.monotonic()
    option_letter(text * 3000)
    assert time.monotonic() - start < 5
