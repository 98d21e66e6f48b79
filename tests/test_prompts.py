"""Every word that a model sees, frozen; and what the real chat templates make of it."""

import pytest

from cropvlm.boxes import format_bbox
from cropvlm.prompts import answer_completion, answerer_messages, clean_answer, cropper_messages, teacher_messages

QUESTION = "what does the NASA sign say?"


def user(num_images, text):
    return [{"role": "user", "content": [{"type": "image"}] * num_images + [{"type": "text", "text": text}]}]


def assistant(text):
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def test_teacher_prompt():
    assert teacher_messages(QUESTION) == user(
        1,
        "Outline the region in the image that would help answer the following question: what does the NASA sign say?\n"
        "Output the coordinates in JSON format with a 'bbox_2d' field containing [x1, y1, x2, y2].",
    )
    text = teacher_messages("what is in {braces} and {question}?")[0]["content"][1]["text"]
    assert "question: what is in {braces} and {question}?\nOutput" in text


def test_cropper_prompt():
    assert cropper_messages(QUESTION) == user(
        1, "What does the nasa sign say?\nOutline the region in the image that would help answer this question."
    )


@pytest.mark.parametrize("num_images", [1, 2])
def test_answerer_prompt(num_images):
    expected = user(num_images, "What does the nasa sign say?\nGive a very brief answer.")
    assert answerer_messages(QUESTION, num_images) == expected
    expected = user(num_images, "Left or right?\nAnswer the option letter directly.")
    assert answerer_messages("Left or right?", num_images, "Answer the option letter directly.") == expected


def test_messages_share_no_state():
    first = answerer_messages(QUESTION, 2)
    first[0]["content"][0]["image"] = "put in by a caller"
    assert first[0]["content"][1] == {"type": "image"}
    assert answerer_messages(QUESTION, 2)[0]["content"][0] == {"type": "image"}


def test_completions():
    assert format_bbox((1, 2, 30, 100)) == "[1, 2, 30, 100]."
    assert format_bbox((1.0, 2.5, 30.0, 100.0)) == "[1, 2.5, 30, 100]."  # a column of floats
    assert answer_completion("coca COLA") == "Coca cola."
    assert answer_completion("10:30") == "10:30."
    assert answer_completion("") == "."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param(" Coca cola.\n", "Coca cola", id="one dot and white space"),
        pytest.param("stop..", "stop.", id="only one dot"),
        pytest.param("Nokia .", "Nokia", id="space before the dot"),
        pytest.param("<THINKING>A</THINKING>\nB", "B", id="another tag"),
        pytest.param("<think>\nA is red, so B.\n</think>\n\nB.", "B", id="reasoning before the answer"),
        pytest.param("<think>A</think> no <think>B</think> C", "C", id="what follows the last thought"),
        pytest.param(" <think>\nA is red, so", "", id="reasoning cut off"),
        pytest.param("I <think> so", "I <think> so", id="no reasoning"),
    ],
)
def test_clean_answer(text, answer):
    assert clean_answer(text) == answer


def test_prompts_in_the_real_smolvlm_template(real_smolvlm):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(real_smolvlm)
    prompt = cropper_messages(QUESTION)
    expected = (
        "<|im_start|>User:<image>What does the nasa sign say?\n"
        "Outline the region in the image that would help answer this question.<end_of_utterance>\nAssistant:"
    )
    assert processor.apply_chat_template(prompt, add_generation_prompt=True) == expected
    box = assistant(format_bbox((1, 2, 30, 40)))
    assert processor.apply_chat_template(prompt + box) == expected + " [1, 2, 30, 40].<end_of_utterance>\n"
    assert processor.apply_chat_template(answerer_messages(QUESTION, 2) + assistant(answer_completion("10:30"))) == (
        "<|im_start|>User:<image><image>What does the nasa sign say?\nGive a very brief answer.<end_of_utterance>\n"
        "Assistant: 10:30.<end_of_utterance>\n"
    )


def test_prompts_in_the_real_qwen_template(real_qwen):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_qwen)
    rendered = tokenizer.apply_chat_template(teacher_messages(QUESTION), add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Outline the region in the image that would help answer the following question: what does the NASA sign say?\n"
        "Output the coordinates in JSON format with a 'bbox_2d' field containing [x1, y1, x2, y2].<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    two_images = tokenizer.apply_chat_template(answerer_messages(QUESTION, 2), tokenize=False)
    assert "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "What does the nasa sign say?\nGive" in two_images
