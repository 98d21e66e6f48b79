"""The option letter of an answer: what the rule reads, what it refuses, and what it gives up."""

import time

import pytest

from cropvlm.metrics import option_letter

LETTERS = {
    "alone": ("B", "B"),
    "the fifth": ("E", "E"),
    "lower case, as the capitalised question lists them": ("b", "B"),
    "with the option's text": ("(b) blue", "B"),
    "bold": ("**B**", "B"),
    "announced": ("The answer is B.", "B"),
    "announced in lower case": ("the correct option is (c).", "C"),
    "at the end": ("I would say D", "D"),
    "A as a subject": ("A is right", "A"),
    "A on a line of its own": ("A\nred", "A"),
    "opening, another announced": ("B\nOption A shows a car", "B"),
    "opening, another as a subject": ("D\nA is wrong", "D"),
    "opening a on a line of its own": ("a\nbecause it is red", "A"),
    "opening a and its reason": ("a because it is red", "A"),
    "opening and an article": ("B, a red one", "B"),
    "a list, then the answer": ("(A) red\n(B) blue\nThe answer is B", "B"),
    "answer that is an option": ("Answer: option (c)", "C"),
    "announced with its reason": ("The answer is A because it is red", "A"),
    "after reasoning": ("<think>Option A is red, but the bag is blue so B.</think>\nB", "B"),
    "after reasoning that closes alone": ("A or B?\n</think>\n\n(c)", "C"),
}
# Answers that a reader understands and the short rule does not: scored as wrong, never as another letter.
GIVEN_UP = {
    "opening, a denied one in the reason": ("B because option A is not red", "B"),
    "the only one not denied": ("A is wrong, B is right", "B"),
    "denied with an apostrophe": ("It isn't A. I would say B", "B"),
}
NO_LETTERS = {
    "Blue is not B": "Blue",
    "cannot tell is not C": "cannot tell",
    "an article": "A red bus",
    "an article in lower case": "a red bus",
    "an announced article": "The answer is a dog",
    "apostrophe": "C'est la vie",
    "two letters": "A or B",
    "two letters on lines": "B\nC",
    "two announced": "The answer is B or C",
    "a list": "(A) red\n(B) blue",
    "denied": "The answer is not A",
    "denied as a subject": "A is not right",
    "all but one denied in words": "neither a nor b",
    "two letters in quotes": "'A' or 'B'",
    "two announced in quotes": 'The answer is "A" or "B"',
    "an article before a quote": 'A "stop" sign',
    "reasoning that chooses, then nothing": "<think>It is B</think>",
    "empty": "",
}


@pytest.mark.parametrize(("text", "letter"), LETTERS.values(), ids=LETTERS.keys())
def test_option_letter(text, letter):
    assert option_letter(text) == letter


@pytest.mark.parametrize(("text", "letter"), GIVEN_UP.values(), ids=GIVEN_UP.keys())
def test_what_the_short_rule_gives_up_is_no_other_letter(text, letter):
    assert option_letter(text) is None, letter


@pytest.mark.parametrize("text", NO_LETTERS.values(), ids=NO_LETTERS.keys())
def test_no_option_letter(text):
    assert option_letter(text) is None


@pytest.mark.parametrize("pair", ["''", "‘’", '""', "“”", "«»", "``"])
@pytest.mark.parametrize("text", ["{}B{}", "The answer is {}B{}.", "{}B. blue{}"])
def test_a_letter_in_any_pair_of_quotes(pair, text):
    assert option_letter(text.format(*pair)) == "B"


@pytest.mark.parametrize("word", ["not", "neither", "cannot", "wrong", "isn't", "isn’t"])
def test_every_word_of_denial_keeps_a_letter_from_being_the_answer(word):
    assert option_letter(f"this is {word} B") is None
    assert option_letter("this is indeed B") == "B"


@pytest.mark.parametrize("text", ["a, ", "not A ", "(B) ", "\n", "option a "], ids=repr)
def test_an_endless_answer_is_read_in_no_time(text):
    start = time.monotonic()
    option_letter(text * 3000)
    assert time.monotonic() - start < 5
