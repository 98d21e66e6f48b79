"""The card of the training data: what it says, what it keeps to itself, and its YAML head."""

from huggingface_hub import DatasetCard
from made_sets import TEXTS, records

from cropvlm.sets.card import summarise, write_card
from cropvlm.teacher import grow

SETTINGS = {
    "model_path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "min_pixels": None,
    "max_pixels": 1003520,
    "max_new_tokens": 128,
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Outline {question}"}]}],
}


def test_card():
    boxes, cut_points = grow(records(*TEXTS))
    report = summarise(boxes, ["a"] * 6, cut_points, (45, 10, 4, 2, 1))
    sources = [{"name": "a", "path": "someone/a", "licence": "cc-by-4.0", "sft": 6, "grpo": 7}]
    card = write_card(report, SETTINGS, sources)
    gone = write_card(report, SETTINGS | {"model_path": "/gone/with/its/owner/teacher"}, sources)
    assert "Teacher: teacher (a local folder), greedy" in gone  # the card goes to the Hub
    assert card.startswith("---\n")
    assert "| a | someone/a | cc-by-4.0 | 6 | 7 |" in card
    # What is not a licence's name would break the YAML.
    licences = ["cc-by-4.0", "see the source", "mit, cc-by-4.0", "- [", "mit: {"]
    mixed = write_card(report, SETTINGS, [sources[0] | {"licence": licence} for licence in licences])
    assert DatasetCard(mixed).data.license == ["cc-by-4.0", "other", "mit"]
    assert "Teacher: Qwen/Qwen2.5-VL-7B-Instruct, greedy, at most 128 new tokens" in card
    assert "images of its own minimum to 1003520 pixels" in card
    assert "Cut points of relative area: 1.000%, 4.000%, 9.000%, 100.000%" in card
    assert "1 rows x45, 1 rows x10, 1 rows x4, 1 rows x2, 2 rows x1" in card
    assert "4 box, 1 empty, 1 truncated" in card
