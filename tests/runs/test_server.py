"""A model behind a server: what is sent, and whose fault it is where an answer is missing."""

import socket
import threading
import time

import pytest
from fake_server import (
    FATAL,
    HALF,
    KEY,
    OF_A_ROW,
    SILENCE,
    Source,
    ask,
    ask_in_vain,
    begin,
    completion,
    error,
    open_url,
)
from PIL import Image

from cropvlm.errors import UnreadableImage, UserError
from cropvlm.prompts import answerer_messages
from cropvlm.runs import server as remote
from cropvlm.runs.server import CutOff, Rejected, Server, fit_longest_edge, text_of, to_chats

pytestmark = pytest.mark.usefixtures("hurried")


def test_the_request_and_the_key_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert server.bodies == [{"model": "m", "messages": messages, "temperature": 0, "max_completion_tokens": 7}]
    assert server.keys == [f"Bearer {KEY}"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2026")
    with pytest.raises(UserError, match="characters that are invalid in a key") as raised:
        ask(server, ["a"])
    assert "sk-\u2026" not in str(raised.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]  # OpenAI alone needs one
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        ask(server, ["a"], base=remote.OPENAI)


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


def test_size_of_the_pictures_sent():
    given = [((300, 900), 512), ((5000, 1), 512), ((4999, 1), None)]
    sizes = [fit_longest_edge(Image.new("RGB", size), longest_edge).size for size, longest_edge in given]
    # 300 * 512 / 900 = 170.7; a strip is first widened to 100:1, as for local models: 50 * 512 / 5000
    assert sizes == [(171, 512), (512, 5), (4999, 50)]


PARTS = [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "Coca "}, {"type": "refusal"}, "cola", None]


def test_the_text_of_a_message():
    assert text_of("<think>hm</think> Coke") == "<think>hm</think> Coke"  # steps 5 and 6 leave it out
    assert text_of("\ud83d Coke") == "\ufffd Coke"  # half a surrogate pair, which no file in UTF-8 can hold
    assert text_of(PARTS) == "Coca cola"
    assert text_of(f"The key is {KEY}.") == "The key is ***."


def test_a_refusal_is_an_empty_answer(server):
    reactions = {
        "null": completion(None, refusal="I can't."),
        "absent": {"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]},
        "filtered": error(400, "The prompt was filtered", code="content_filter"),
    }
    server.react = lambda text, times: reactions[text]
    assert ask(server, list(reactions)) == [(i, [""]) for i in range(3)]
    assert set(server.asked.values()) == {1}  # nothing to try again


@pytest.mark.parametrize("content", ["<think>Red.</think> Coca co", "<think>Red.</think>\n"])
def test_a_reply_cut_off_is_an_answer_if_it_holds_one(server, content):
    server.react = lambda *_: {"choices": [{"message": {"content": content}, "finish_reason": "length"}]}
    ((_, (text,)),) = ask(server, ["a"])
    assert text == content if "Coca" in content else isinstance(text, CutOff)


@pytest.mark.parametrize(
    "fault",
    [error(429, "Rate limit reached"), (503, b"<html>overloaded</html>"), HALF, SILENCE],
    ids=lambda fault: str(fault)[:30],
)
def test_a_passing_fault_is_tried_again(server, fault):
    server.react = lambda text, times: fault if times < 3 and text == "b" else f"Answer to {text}"
    outcomes = ask(server, ["a", "b", "c"], timeout=1 if fault == SILENCE else 60)
    assert outcomes == [(i, [f"Answer to {text}"]) for i, text in enumerate("abc")]
    assert server.asked == {"a": 1, "b": 3, "c": 1}


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="cannot be reached .*check --api_base"):
        next(Server(url, "m", 7).answer_rows(Source([["a"]]), lambda image: image))


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
def test_a_fault_of_a_row_leaves_the_others_alone(server, name):
    fault, message = OF_A_ROW[name]  # of the first row, where it does not show at once whose fault it is
    server.react = lambda text, times: fault if text == "a" else f"Answer to {text}"
    outcomes = dict(ask(server, "abcde", timeout=0.5 if name == "silence" else 60))
    failure = outcomes.pop(0)[0]
    assert message in str(failure)
    assert KEY not in str(failure)
    assert type(failure) is (CutOff if name == "length" else Rejected)
    assert outcomes == {i: [f"Answer to {text}"] for i, text in enumerate("abcde") if text != "a"}
    assert server.asked["a"] == (4 if name in ("500", "cut", "silence") else 1)


@pytest.mark.parametrize("name", ["400", "silence"])
def test_a_fault_of_every_row_ends_the_run(server, name):
    fault, message = OF_A_ROW[name]
    server.react = lambda text, times: fault
    outcomes, said = ask_in_vain(server, "ab", concurrency=2, timeout=0.5 if name == "silence" else 60)
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


def test_a_rejected_prompt_leaves_the_others_of_its_row_alone(server):
    server.react = lambda text, times: error(400, "too small") if text == "b crop" else f"Answer to {text}"
    outcomes = dict(ask(server, [[f"{row} base", f"{row} crop"] for row in "abc"]))
    assert outcomes[0] == ["Answer to a base", "Answer to a crop"]
    assert outcomes[1][0] == "Answer to b base"
    assert str(outcomes[1][1]) == "the server sends error 400, 'too small'"
    assert outcomes[2] == ["Answer to c base", "Answer to c crop"]


@pytest.mark.parametrize("place", ["base", "crop"])
def test_rejections_without_end_are_not_taken_for_the_rows_fault(server, place):
    spent = error(400, "Your credit is used up")
    server.react = lambda text, times: spent if place in text and text[0] != "0" else "Coke"
    outcomes, said = ask_in_vain(server, [[f"{row} base", f"{row} crop"] for row in range(30)])
    assert "does not answer: the server sends error 400, 'Your credit is used up'" in said
    assert outcomes == [(0, ["Coke", "Coke"])]  # the others may be asked again
    assert sum(server.asked.values()) == 2 * (1 + 11)


def test_at_most_so_many_requests_at_a_time(server):
    server.react = lambda text, times: time.sleep(0.05) or f"Answer to {text}"
    outcomes = ask(server, [[f"{i} base", f"{i} crop"] for i in range(9)], concurrency=3)
    assert dict(outcomes) == {i: [f"Answer to {i} base", f"Answer to {i} crop"] for i in range(9)}
    assert server.at_once == [0, 3]


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


def test_a_row_whose_image_cannot_be_sent_fails_alone(server):
    class Images(Source):
        def __getitem__(self, i: int) -> list:
            if i == 1:
                raise MemoryError("x" * 1000)
            return super().__getitem__(i)

    asked = Server(base=server.url, model="m", max_new_tokens=7, concurrency=1)
    outcomes = dict(asked.answer_rows(Images([["a"], ["b"], ["c"]]), lambda image: image))
    assert isinstance(outcomes[1], UnreadableImage)
    assert "MemoryError: xxx" in str(outcomes[1])
    assert len(str(outcomes[1])) < 350
    assert (outcomes[0], outcomes[2]) == (["Answer to a"], ["Answer to c"])


@pytest.mark.parametrize(("variable", "value"), [("ALL_PROXY", "socks://a:1"), ("SSL_CERT_FILE", "/no/such/ca.pem")])
def test_variables_of_a_proxy_or_certificates(server, monkeypatch, variable, value):
    """A server on this machine is asked without them; for any other they are one line."""
    monkeypatch.setenv(variable, value)
    assert ask(server, ["a"]) == [(0, ["Answer to a"])]
    with pytest.raises(UserError, match="no connection to http://a/v1 can be set up"):
        ask(server, ["a"], base="http://a/v1")
