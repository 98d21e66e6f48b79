"""Scores: hand-worked values, the steps of the normaliser, and what counts as an option letter."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropvlm.letters import letter_accuracy, option_letter
from cropvlm.metrics import anls, most_common_answer, normalize_answer, official_vqa_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("matches", "score"),
    [
        # k of 10 match: k sets hold k - 1 matches, 10 - k sets hold k, each capped at 3 and divided by 3.
        pytest.param(0, 0, id="none"),
        pytest.param(1, 0.3, id="(0 + 9 x 1) / 30"),
        pytest.param(2, 0.6, id="(2 x 1 + 8 x 2) / 30"),
        pytest.param(3, 0.9, id="(3 x 2 + 7 x 3) / 30"),
        pytest.param(4, 1, id="(4 x 3 + 6 x 3) / 30"),
        pytest.param(10, 1, id="all"),
    ],
)
def test_vqa_accuracy_of_ten_references(matches, score):
    assert vqa_accuracy("Stop", ["stop"] * matches + ["other"] * (10 - matches)) == score


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        pytest.param(["stop"], 1, id="1 of 1"),
        pytest.param(["go"], 0, id="0 of 1"),
        pytest.param(["stop", "go"], 0.5, id="2 sets of one: 0 and 1"),
        pytest.param(["stop", "stop", "go"], 2 / 3, id="3 sets of two, 2 needed: 1/2, 1/2, 1"),
        pytest.param(["stop"] * 3, 1, id="3 of 3"),
        pytest.param(["stop"] * 3 + ["go"] * 2, 0.8, id="5 sets of four, 3 needed: 2/3 three times, 1 twice"),
        pytest.param(["stop"] * 5, 1, id="5 of 5"),
    ],
)
def test_vqa_accuracy_of_fewer_references(answers, score):
    assert vqa_accuracy("stop", answers) == pytest.approx(score)


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
    "lower case": ("STOP", "stop"),
    "comma and question mark go": ("1,000?", "1000"),
    "possessive is split off": ("Mary's", "mary 's"),
    "lines and tabs": (" red\n\tsign ", "red sign"),
    "mark beside a space is deleted": ("red - sign", "red sign"),
    "mark inside a word becomes a space": ("coca-cola", "coca cola"),
    "deleted everywhere once beside a space": ("coca-cola - cold", "cocacola cold"),
    "mark at the end becomes a space": ("stop!", "stop"),
    "quotes": ('"stop"', "stop"),
    "dot goes": ("stop.", "stop"),
    "dot before a digit stays": ("3.5", "3.5"),
    "dot after a digit goes": ("2.", "2"),
    "number words": ("none zero one ten eleven", "0 0 1 10 eleven"),
    "articles go": ("a dog an owl the cat", "dog owl cat"),
    "only an article": ("The", ""),
    "contraction": ("dont", "don't"),
    "contraction with one of two apostrophes": ("couldnt've couldn'tve", "couldn't've couldn't've"),
    "contraction with two of three apostrophes": ("yall'd've", "y'all'd've"),
    "words that look like contractions": ("shed were ill id im", "shed were ill id im"),
    "nothing": ("", ""),
    "time": ("10:30 a.m.", "10:30 am"),
    "dollar sign stays": ("$5", "$5"),
}


@pytest.mark.parametrize(("text", "normalized"), NORMALIZED.values(), ids=NORMALIZED.keys())
def test_normalize_answer(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        pytest.param("Bank", ["bank"], 1, id="case"),
        pytest.param(" the\n bank ", ["the bank"], 1, id="white space"),
        pytest.param("bank.", ["bank"], 0.8, id="1 edit of 5"),
        pytest.param("kitten", ["sitting"], 4 / 7, id="3 edits of 7"),
        pytest.param("bank", ["the bank", "bart"], 0, id="4 of 8 and 2 of 4: at the threshold counts 0"),
        pytest.param("bank", ["tank", "x"], 0.75, id="the best reference"),
        pytest.param("", ["bank"], 0, id="empty prediction"),
        pytest.param("", [""], 1, id="both empty"),
        pytest.param("x" * 10_000, ["bank"], 0, id="endless prediction"),
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=10))
def test_scores_are_between_0_and_1(prediction, answers):
    for metric in (vqa_accuracy, official_vqa_accuracy, anls, letter_accuracy):
        assert 0 <= metric(prediction, answers) <= 1
    assert official_vqa_accuracy(prediction, [prediction] * len(answers)) == 1
    assert anls(prediction, [*answers, prediction]) == 1


LETTERS = {
    "alone": ("B", "B"),
    "lower case, as the capitalised question lists them": ("b", "B"),
    "with a dot": ("b.", "B"),
    "in brackets": ("(B)", "B"),
    "with the option's text": ("(b) blue", "B"),
    "with dot and text": ("B. blue", "B"),
    "with text only": ("B blue", "B"),
    "bold": ("**B**", "B"),
    "boxed": ("\\boxed{B}", "B"),
    "tagged": ("<answer>B</answer>", "B"),
    "announced": ("The answer is B.", "B"),
    "announced in lower case": ("the correct option is (c).", "C"),
    "announced with a colon": ("Answer: D", "D"),
    "announced, another mentioned": ("The answer is B, not A.", "B"),
    "at the end": ("I would say D", "D"),
    "letter A": ("A", "A"),
    "A as a subject": ("A is right", "A"),
    "A on a line of its own": ("A\nred", "A"),
    "opening, a denied one announced": ("B\n\nOption A is incorrect", "B"),
    "opening, a denied one in the reason": ("B because option A is not red", "B"),
    "opening, another announced": ("B\nOption A shows a car", "B"),
    "opening, another as a subject": ("D\nA is wrong", "D"),
    "opening, another with its text": ("B, D is blue too", "B"),
    "opening a with a comma": ("a, the red one", "A"),
    "opening a on a line of its own": ("a\nbecause it is red", "A"),
    "opening a with a dash": ("a - the red one", "A"),
    "opening a as a subject": ("a is right", "A"),
    "opening a and its reason": ("a because it is red", "A"),
    "opening in lower case on a line of its own": ("c\nbecause it is red", "C"),
    "opening in lower case with text": ("b blue", "B"),
    "opening with a dash": ("B - blue", "B"),
    "opening with a colon": ("b: blue", "B"),
    "opening and an article": ("B, a red one", "B"),
    "bold with text": ("**B** blue", "B"),
    "A before a capital": ("A Red", "A"),
    "the same twice": ("B. The answer is B", "B"),
    "the same as a list": ("B\nB", "B"),
    "the only one not denied": ("A is wrong, B is right", "B"),
    "one instead of another": ("It is not A but B", "B"),
    "all others denied": ("A, B and C are wrong, so D", "D"),
    "none of two, the third": ("neither A nor B, it is C", "C"),
    "denied with an apostrophe": ("It isn't A. I would say B", "B"),
    "a list, then the answer": ("(A) red\n(B) blue\nThe answer is B", "B"),
    "two, then the answer": ("A or B? The answer is B", "B"),
    "answer before option": ("Option A shows a car. The answer is B.", "B"),
    "answer that is an option": ("Answer: option (c)", "C"),
    "option with its text": ("Option B blue", "B"),
}
NO_LETTERS = {
    "Blue is not B": "Blue",
    "cannot tell is not C": "cannot tell",
    "an article": "A red bus",
    "an article in lower case": "a red bus",
    "an announced article": "The answer is a dog",
    "hyphen": "D-day",
    "apostrophe": "C'est la vie",
    "word": "bad",
    "two letters": "A or B",
    "two letters in lower case": "a, b",
    "two letters, the first a capital": "A, b",
    "two letters and": "C and d",
    "two letters in brackets": "(A) or (B)",
    "two letters with a slash": "B/C",
    "two letters on lines": "B\nC",
    "two announced": "The answer is B or C",
    "two announced, the word once": "Option A or B",
    "two announced, the word twice": "Option A or option B",
    "all letters": "A B C D",
    "all letters with commas": "A, B, C, D",
    "a list": "(A) red\n(B) blue",
    "a list in one line": "(A) red (B) blue (C) green (D) grey",
    "a list in lower case": "a) red\nb) blue",
    "a list with dots": "A. red\nB. blue",
    "denied": "The answer is not A",
    "denied as a subject": "A is not right",
    "denied as an option": "Option A is incorrect.",
    "denied with an apostrophe": "It isn't B",
    "two denied": "not A or B",
    "all but one denied in words": "neither a nor b",
    "an article before a capital": "a Coke",
    "an announced article before a capital": "The answer is a Coca-Cola",
    "an article after an option's word": "option a red bus",
    "no option has it": "E",
    "empty": "",
    "refusal": "I can't see that.",
}


@pytest.mark.parametrize(("text", "letter"), LETTERS.values(), ids=LETTERS.keys())
def test_option_letter(text, letter):
    assert option_letter(text) == letter
    assert letter_accuracy(text, [letter]) == 1
    assert letter_accuracy(text, ["E"]) == 0


@pytest.mark.parametrize("text", NO_LETTERS.values(), ids=NO_LETTERS.keys())
def test_no_option_letter(text):
    assert option_letter(text) is None
    assert letter_accuracy(text, ["A"]) == 0


@pytest.mark.parametrize("text", ["a, ", "A or ", "not A ", "(B) ", "B ", "\n", "A is not ", "option a "], ids=repr)
def test_an_endless_answer_is_read_in_no_time(text):
    start = time.monotonic()
    option_letter(text * 3000)
    assert time.monotonic() - start < 5


def test_most_common_answer():
    assert most_common_answer(["Stop ", "go", "go", "stop", " STOP"]) == "stop"  # counted after lower-casing, 3 : 2
    assert most_common_answer(["b", "a", "a", "b"]) == "b"  # a tie goes to the first seen
    assert most_common_answer([""]) == ""
    with pytest.raises(ValueError, match="list of at least one string"):
        most_common_answer([])
