"""The option letter of an answer: what the rule reads, what it refuses, and what it gives up."""

import time

import pytest

from cropvlm.metrics import option_letter

LETTERS = {
    "alone": ("B", "B"),
    "lower case, as the capitalised question lists them": ("b", "B"),
    "the fifth": ("E", "E"),
    "bold": ("**B**", "B"),
    "A on a line of its own": ("A\nred", "A"),
    "with the option's text": ("(b) blue", "B"),
    "announced": ("The answer is B.", "B"),
    "A as a subject": ("A is right", "A"),
    "opening, another announced": ("B\nOption A shows a car", "B"),
    "opening a and its reason": ("a because it is red", "A"),
    "opening and an article": ("B, a red one", "B"),
    "a list, then the answer": ("(A) red\n(B) blue\nThe answer is B", "B"),
    "answer that is an option": ("Answer: option (c)", "C"),
    "after reasoning": ("<think>Option A is red, but the bag is blue so B.</think>\nB", "B"),
}
NO_LETTERS = {
    "the only one not denied, which the short rule gives up": "A is wrong, B is right",
    "Blue is not B": "Blue",
    "cannot tell is not C": "cannot tell",
    "an article": "A red bus",
    "an announced article": "The answer is a dog",
    "apostrophe": "C'est la vie",
    "two letters": "A or B",
    "two announced": "The answer is B or C",
    "a list": "(A) red\n(B) blue",
    "denied": "The answer is not A",
    "all but one denied in words": "neither a nor b",
    "an article before a quote": 'A "stop" sign',
    "reasoning that chooses, then nothing": "<think>It is B</think>",
    "empty": "",
}


@pytest.mark.parametrize(("text", "letter"), LETTERS.values(), ids=LETTERS.keys())
def test_option_letter(text, letter):
    assert option_letter(text) == letter


@pytest.mark.parametrize("text", NO_LETTERS.values(), ids=NO_LETTERS.keys())
def test_no_option_letter(text):
    assert option_letter(text) is None


@pytest.mark.parametrize("pair", ["''", "“”", "``"])
@pytest.mark.parametrize("text", ["{}B{}", "The answer is {}B{}.", "{}B. blue{}"])
def test_a_letter_in_any_pair_of_quotes(pair, text):
    assert option_letter(text.format(*pair)) == "B"


@pytest.mark.parametrize("word", ["neither", "cannot", "wrong", "isn’t"])
def test_every_word_of_denial_keeps_a_letter_from_being_the_answer(word):
    assert option_letter(f"this is {word} B") is None
    assert option_letter("this is indeed B") == "B"


@pytest.mark.parametrize("text", ["a, ", "not A ", "(B) ", "\n", "option a "], ids=repr)
def test_an_endless_answer_is_read_in_no_time(text):
    start = time.monotonic()
    option_letter(text * 3000)
    assert time.monotonic() - start < 5
