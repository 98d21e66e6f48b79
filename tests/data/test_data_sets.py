"""The paper's benchmarks, from copies with their published columns through stages 4 to 6, several at once."""

import pytest
from steps import read

import generate_bbox
import generate_final_answers
import vqa_accuracy
from cropvlm import generation
from cropvlm.prompts import BRIEF_ANSWER

# What a model may answer to the two rows of each, and the score (see below).
ANSWERS = {
    "textvqa": (["nokia", "you"], 50),  # all ten agree; none of ten
    "docvqa": (["0.281", "x"], 90),  # 0.280 is one edit of five characters away, 0.8; exact
    "infovqa": (["4", "Five"], 100),  # the case does not count
    "stvqa": (["b", "zzz"], 50),
    "vstar": (["B", "The answer is B"], 50),  # B and A are right
    "hrbench4k": (["A. red", "Blue"], 50),  # "Blue" is not a letter; cycles 0 and 1 have a row each: (100 + 0) / 2
    "hrbench8k": (["B", "(a)"], 100),  # the same rows the other way round
}
INSTRUCTIONS = dict.fromkeys(ANSWERS, BRIEF_ANSWER) | {
    "vstar": "Answer with the option's letter from the given choices directly.",
    "hrbench4k": "Answer the option letter directly.",
    "hrbench8k": "Answer the option letter directly.",
}


def test_all_benchmarks_from_images_to_scores(hub_copies, call, tiny_smolvlm, monkeypatch):
    model = ["--max_new_tokens", 2, "--gpu", -1]
    cropper = ["--model_path", tiny_smolvlm, "--longest_edge", 64]
    assert call(generate_bbox.main, *cropper, "--dataset", *ANSWERS, *model) == 0
    boxes = [f"predictions/{name}_bbox.json" for name in ANSWERS]
    assert [read(path)[0].keys() for path in boxes] == [{"question_id", "answer"}] * 7

    asked = {}  # by benchmark: the last line of its prompts

    def answer(model, processor, prompts, **_):
        name = list(ANSWERS)[len(asked)]
        asked[name] = {messages[0]["content"][-1]["text"].split("\n")[-1] for i in (0, 1) for messages, _ in prompts[i]}
        return ((i, [text, f" {text}.\n"]) for i, text in enumerate(ANSWERS[name][0]))

    monkeypatch.setattr(generation, "generate_rows", answer)
    assert call(generate_final_answers.main, "--bbox", *boxes, "--vqa_model_path", tiny_smolvlm, *model) == 0
    assert asked == {name: {instruction} for name, instruction in INSTRUCTIONS.items()}
    for name, (_, score) in ANSWERS.items():
        for mode in ("base", "cropvlm"):
            file = f"predictions/{name}_{mode}_answers.json"
            assert call(vqa_accuracy.main, "--predictions_file", file, "--output", "score.json") == 0
            result = read("score.json")
            assert result["score"] == pytest.approx(score), name
    assert result["by_cycle_category"].keys() == {"0", "1"}
    assert result["by_category"].keys() == {"single", "cross"}
