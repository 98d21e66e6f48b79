"""A model behind a server: what is sent, and whose fault it is where an answer is missing."""

import threading
import time

import pytest
from fake_server import FATAL, KEY, OF_A_ROW, SILENCE, Source, ask, ask_in_vain, begin, error, open_url
from PIL import Image

from cropvlm.errors import UnreadableImage, UserError
from cropvlm.prompts import answerer_messages
from cropvlm.runs import server as remote
from cropvlm.runs.replies import CutOff, Rejected, TimedOut
from cropvlm.runs.server import Server, api_key, data_url, fit_longest_edge, to_chats

pytestmark = pytest.mark.usefixtures("hurried")


# What is sent


def test_the_request(server):
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "temperature": 0,
            "max_completion_tokens": 7,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]


def test_placeholders_become_data_urls_in_their_order():
    full, crop = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (2, 3), "blue")
    prompts = [(answerer_messages("what?", 1), [full]), (answerer_messages("what?", 2), [full, crop])]
    resized = []
    (base,), (cropvlm,) = to_chats(prompts, lambda image: resized.append(image) or image, "png")
    assert resized == [full, crop]  # the shared image once
    assert [part["type"] for part in cropvlm["content"]] == ["image_url", "image_url", "text"]
    assert base["content"] == [cropvlm["content"][0], cropvlm["content"][2]]
    assert base["content"][1]["text"] == "What?\nGive a very brief answer."
    sent = [open_url(part["image_url"]["url"]) for part in cropvlm["content"][:2]]
    assert sent == [full, crop]


def test_image_formats():
    image = Image.linear_gradient("L").convert("RGB")
    assert open_url(data_url(image, "png")) == image
    jpeg = open_url(data_url(image, "jpeg"))
    assert jpeg.size == image.size
    assert max(abs(a - b) for a, b in zip(jpeg.tobytes(), image.tobytes(), strict=True)) <= 3


@pytest.mark.parametrize(
    ("size", "longest_edge", "expected"),
    [
        ((1024, 768), 512, (512, 384)),
        ((300, 900), 512, (171, 512)),  # 300 * 512 / 900 = 170.7
        ((100, 50), 512, (512, 256)),  # smaller images grow, as SmolVLM's processor has it
        ((1, 1), 512, (512, 512)),
        ((5000, 1), 512, (512, 5)),  # a strip is first widened to 100:1, as for local models: 50 * 512 / 5000
        ((640, 480), None, (640, 480)),
        ((5000, 1), None, (5000, 50)),
    ],
)
def test_size_of_the_pictures_sent(size, longest_edge, expected):
    assert fit_longest_edge(Image.new("RGB", size), longest_edge).size == expected


# Faults of the server and faults of a row


@pytest.mark.parametrize("name", FATAL)
def test_a_fault_of_the_server_ends_the_run_after_what_is_done(server, name):
    fault, message = FATAL[name]
    server.react = lambda text, times: fault if text == "c" else f"Answer to {text}"
    outcomes, said = ask_in_vain(server, "abcde", timeout=60)
    assert outcomes == [(0, ["Answer to a"]), (1, ["Answer to b"])]
    assert message in said
    assert "\n" not in said
    assert KEY not in said
    assert server.asked["c"] == (4 if name == "429" else 1)
    assert not server.asked["d"]


@pytest.mark.parametrize("name", OF_A_ROW)
@pytest.mark.parametrize("row", ["a", "c", "e"])
def test_a_fault_of_a_row_leaves_the_others_alone(server, name, row):
    fault, message = OF_A_ROW[name]
    server.react = lambda text, times: fault if text == row else f"Answer to {text}"
    outcomes = dict(ask(server, "abcde", timeout=0.5 if name in ("silence", "drip") else 60))
    failure = outcomes.pop("abcde".index(row))[0]
    assert message in str(failure)
    assert KEY not in str(failure)
    assert type(failure) is {"silence": TimedOut, "drip": TimedOut, "length": CutOff}.get(name, Rejected)
    assert outcomes == {i: [f"Answer to {text}"] for i, text in enumerate("abcde") if text != row}
    assert server.asked[row] == (1 if name in ("403", "400", "length") else 4)


@pytest.mark.parametrize("name", sorted(OF_A_ROW.keys() - {"length"}))
def test_a_fault_of_every_row_ends_the_run(server, name):
    fault, message = OF_A_ROW[name]
    server.react = lambda text, times: fault
    outcomes, said = ask_in_vain(server, "ab", concurrency=2, timeout=0.5 if name in ("silence", "drip") else 60)
    assert outcomes == []
    assert f"{server.url} does not answer" in said
    assert message in said


def test_replies_that_hold_no_answer_end_no_run(server):
    server.react = lambda text, times: OF_A_ROW["length"][0]
    assert [type(texts[0]) for _, texts in ask(server, map(str, range(30)))] == [CutOff] * 30


def test_answers_under_way_are_kept_when_another_row_ends_the_run(server):
    gone = threading.Event()

    def react(text, times):
        if text == "b":
            gone.set()
            return error(401, "no")
        gone.wait(5)
        time.sleep(0.2)  # arrives after the 401 has been dealt with
        return f"Answer to {text}"

    server.react = react
    outcomes, said = ask_in_vain(server, "abcdef", concurrency=3)
    assert "error 401" in said
    assert sorted(outcomes) == [(0, ["Answer to a"]), (2, ["Answer to c"])]
    assert not server.asked["d"]


# Rows that the server rejects


def test_a_rejected_row_fails_alone(server):
    server.react = lambda text, times: error(400, "image too small") if text in "ad" else f"Answer to {text}"
    outcomes = dict(ask(server, list("abcd")))
    assert {i: str(o[0]) for i, o in outcomes.items() if isinstance(o[0], Rejected)} == {
        0: "the server sends error 400, 'image too small'",
        3: "the server sends error 400, 'image too small'",
    }
    assert outcomes[1] == ["Answer to b"]


def test_a_rejected_prompt_leaves_the_others_of_its_row_alone(server):
    server.react = lambda text, times: error(400, "too small") if text == "b crop" else f"Answer to {text}"
    outcomes = dict(ask(server, [[f"{row} base", f"{row} crop"] for row in "abc"]))
    assert outcomes[0] == ["Answer to a base", "Answer to a crop"]
    assert outcomes[1][0] == "Answer to b base"
    assert str(outcomes[1][1]) == "the server sends error 400, 'too small'"
    assert outcomes[2] == ["Answer to c base", "Answer to c crop"]


def test_prompts_that_are_rejected_in_every_row_end_the_run(server):
    server.react = lambda text, times: error(400, "one image only") if "crop" in text else "Coke"
    outcomes, said = ask_in_vain(server, [[f"{row} base", f"{row} crop"] for row in range(30)])
    assert "does not answer: the server sends error 400, 'one image only'" in said
    assert outcomes == []
    assert sum(server.asked.values()) == 2 * 11


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_call_that_is_rejected_for_every_row_ends_the_run(server, status):
    server.react = lambda text, times: error(status, "Unsupported parameter: temperature")
    with pytest.raises(UserError, match="does not answer: .*Unsupported parameter"):
        ask(server, ["a", "b"])
    with pytest.raises(UserError, match="does not answer"):
        ask(server, list("abcdefghijklmnopqrstuvwxyz"))
    assert sum(server.asked.values()) == 2 + 11


def test_rejections_without_end_are_not_taken_for_the_rows_fault(server):
    server.react = lambda text, times: "Coke" if text == "0" else error(400, "Your credit is used up")
    outcomes, said = ask_in_vain(server, map(str, range(30)))
    assert "does not answer: the server sends error 400, 'Your credit is used up'" in said
    assert outcomes == [(0, ["Coke"])]  # the others may be asked again
    assert sum(server.asked.values()) == 1 + 11


# Many at a time


def test_at_most_so_many_requests_at_a_time(server):
    server.react = lambda text, times: time.sleep(0.05) or f"Answer to {text}"
    outcomes = ask(server, [[f"{i} base", f"{i} crop"] for i in range(9)], concurrency=3)
    assert dict(outcomes) == {i: [f"Answer to {i} base", f"Answer to {i} crop"] for i in range(9)}
    assert server.at_once == [0, 3]


def test_a_slow_row_does_not_hold_up_the_others(server):
    others = threading.Event()

    def react(text, times):
        if text == "a":
            others.wait(5)
        elif text == "f":
            others.set()
        return f"Answer to {text}"

    server.react = react
    outcomes = ask(server, list("abcdef"), concurrency=2)
    assert [i for i, _ in outcomes][-1] == 0 or outcomes[-2][0] == 0
    assert sorted(outcomes) == [(i, [f"Answer to {text}"]) for i, text in enumerate("abcdef")]


def test_rows_done_are_left_out_and_unreadable_images_reported(server):
    outcomes = dict(ask(server, ["a", "b", None, "d"], done=[1]))
    assert sorted(outcomes) == [0, 2, 3]
    assert isinstance(outcomes[2], UnreadableImage)
    assert not server.asked["b"]


def test_stopping_early_leaves_no_request_behind(server):
    server.react = lambda text, times: SILENCE if text == "b" else f"Answer to {text}"
    outcomes = begin(server, "abc", concurrency=2, timeout=100)
    start = time.monotonic()
    assert next(outcomes) == (0, ["Answer to a"])
    outcomes.close()
    assert time.monotonic() - start < 3  # not the 5 s of silence
    assert not server.asked["c"]


# Images that cannot be sent


@pytest.mark.parametrize(
    "error", [OSError("broken"), MemoryError(), ValueError("x" * 1000), SyntaxError("a tEXt chunk")]
)
def test_a_row_whose_image_cannot_be_sent_fails_alone(server, error):
    class Images(Source):
        def __getitem__(self, i: int) -> list:
            if i == 1:
                raise error
            return super().__getitem__(i)

    asked = Server(base=server.url, model="m", max_new_tokens=7, concurrency=1)
    outcomes = dict(asked.answer_rows(Images([["a"], ["b"], ["c"]]), lambda image: image))
    assert isinstance(outcomes[1], UnreadableImage)
    assert type(error).__name__ in str(outcomes[1])
    assert len(str(outcomes[1])) < 150
    assert (outcomes[0], outcomes[2]) == (["Answer to a"], ["Answer to c"])


# The key


def test_no_key_is_needed_but_by_openai(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        ask(server, ["a"], base=remote.OPENAI)


@pytest.mark.parametrize("key", ["sk-\u2026", "sk-a\nb"])
def test_a_key_that_cannot_be_one_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="characters that are invalid in a key") as raised:
        api_key()
    assert key not in str(raised.value)


def test_white_space_around_a_key_does_no_harm(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    ask(server, ["a"])
    assert server.keys == [f"Bearer {KEY}"]
