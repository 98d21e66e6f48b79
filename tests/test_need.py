"""The need of a crop: what is recorded with each box, and what a threshold makes of it."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from pictures import noise
from processes import REPO
from steps import answers_of, load_lively

import generate_bbox
import generate_final_answers
from cropvlm import generation
from cropvlm.boxes import NOT_NEEDED, format_bbox
from cropvlm.encoding import model_inputs, prepare
from cropvlm.errors import UserError
from cropvlm.generation import generate_rows
from cropvlm.models.need import BoxText, NeedRecorder
from cropvlm.prompts import cropper_messages
from cropvlm.runs.predictions import read_meta, read_predictions


def test_the_first_token_decides_and_a_box_is_written_all_the_same():
    recorder = NeedRecorder(lambda texts, add_special_tokens: {"input_ids": [[1, 9, 9], [2, 9, 9]]})
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, -1.0, 4.0]])
    masked = recorder(None, logits)
    assert recorder.needs == [3 - 1, -1 - 4]
    assert masked.tolist() == [[0, 3, -math.inf], [0, -1, -math.inf]]
    assert recorder(None, logits) is logits  # later tokens are as they are
    with pytest.raises(UserError, match="begins a box and 'Not needed.' with one token"):
        NeedRecorder(lambda texts, add_special_tokens: {"input_ids": [[1, 9, 9], [1, 9, 9]]})


def test_the_need_is_a_difference_of_log_probabilities(tiny_smolvlm):
    model, processor = load_lively(tiny_smolvlm)
    prompts = [(cropper_messages(f"what is number {i}?"), [noise(64, 48, seed=i)]) for i in range(3)]
    texts = dict(
        generate_rows(model, processor, generation._InMemory([p] for p in prompts), max_new_tokens=4, with_need=True)
    )
    ids = [processor.tokenizer(f" {text}", add_special_tokens=False)["input_ids"][0] for text in ("[7, 7", NOT_NEEDED)]
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits = model(**model_inputs(model, prepare(processor, [prompt]), 2)).logits[0, -1]
        box, other = logits.log_softmax(-1)[ids].tolist()
        (text,) = texts[i]
        assert isinstance(text, BoxText)
        assert text.need == pytest.approx(box - other, abs=1e-4)


@pytest.fixture
def script(call):
    """Run a script in this process; its exit code."""
    return lambda main, *flags: call(main, "--max_new_tokens", 4, "--longest_edge", 64, "--gpu", -1, *flags)


READER = REPO / "miniature" / "models" / "smolvlm"
BOXES = Path("predictions/miniature_bbox.json")


def test_one_box_file_gives_every_operating_point(script, tiny_smolvlm, tiny_world, monkeypatch):
    data = ["--dataset_path", tiny_world, "--split", "test"]
    assert script(generate_bbox.main, "--model_path", tiny_smolvlm, "--need", *data) == 0
    records = read_predictions(BOXES)
    needs = [record["need"] for record in records]
    assert len(set(needs)) == 12
    assert read_meta(BOXES)["counts"]["needed"] == sum(need >= 0 for need in needs)
    true = [format_bbox(box) for box in load_from_disk(str(tiny_world))["test"]["true_bbox"]]  # it wrote none
    BOXES.write_text(json.dumps([record | {"answer": box} for record, box in zip(records, true, strict=True)]))
    prompts, generate_rows = [], generation.generate_rows

    def counted(model, processor, source, **options):
        prompts.append([len(source[i]) for i in range(len(source))])
        return generate_rows(model, processor, source, **options)

    monkeypatch.setattr(generation, "generate_rows", counted)
    middle = sorted(needs)[5]
    points = {"plain": (), "always": (-99,), "some": (middle,), "never": (99,)}
    answers = {}
    for name, threshold in points.items():
        flags = ["--need_threshold", *threshold] if threshold else []
        assert script(generate_final_answers.main, "--bbox", BOXES, "--vqa_model_path", READER, "--name", name,
                      "--modes", "cropvlm", "base", *flags) == 0  # fmt: skip
        files = [f"predictions/{name}_{mode}_answers.json" for mode in ("base", "cropvlm")]
        answers[name] = list(map(answers_of, files))
        settings = read_meta(files[1])["settings"]
        assert settings.get("need_threshold") == (float(*threshold) if threshold else None)
        assert settings["boxes"] == read_meta("predictions/plain_cropvlm_answers.json")["settings"]["boxes"]
        assert read_meta(files[1])["counts"].get("not_needed", 0) == {"some": 5, "never": 12}.get(name, 0)
    assert answers["always"] == answers["plain"]
    base, crop = answers["plain"]
    assert base != crop
    assert answers["never"] == [base, base]
    assert answers["some"][1] == [c if n >= middle else b for n, b, c in zip(needs, base, crop, strict=True)]
    # The base answer is not generated twice.
    assert [sum(numbers) for numbers in prompts] == [24, 24, 24 - 5, 12]
    # The same texts with other needs decide anew.
    BOXES.write_text(json.dumps([record | {"need": -99} for record in read_predictions(BOXES)]))
    assert script(generate_final_answers.main, "--bbox", BOXES, "--vqa_model_path", READER, "--name", "some",
                  "--modes", "cropvlm", "base", "--need_threshold", middle) == 0  # fmt: skip
    assert answers_of("predictions/some_cropvlm_answers.json") == base


def test_labelled_rows_give_the_threshold_that_nine_of_ten_needed_crops_reach(script, tiny_smolvlm, tiny_world):
    for count, beyond in ((11, 1), (10, 1), (9, 0)):  # 10 of 11 are 90.9%, 9 of 10 are 90%, 8 of 9 are 88.9%
        records = [{"question_id": i, "answer": "", "need": i} for i in range(12)]
        assert generate_bbox.count_boxes(records, needed=range(12 - count, 12))["need_of_90_pct"] == 12 - count + beyond
    labels = [i < 10 for i in range(12)]
    load_from_disk(str(tiny_world))["test"].add_column("needed", labels).save_to_disk("labelled")
    assert script(generate_bbox.main, "--model_path", tiny_smolvlm, "--need", "--dataset_path", "labelled") == 0
    needs = [record["need"] for record in read_predictions("predictions/labelled_bbox.json")]
    assert read_meta("predictions/labelled_bbox.json")["counts"]["need_of_90_pct"] == sorted(needs[:10])[1]


def test_need_takes_a_local_cropper_and_its_boxes(script, tiny_smolvlm, tiny_world, capsys):
    assert script(generate_bbox.main, "--api_model", "m", "--need") == 2
    assert "a server does not give" in capsys.readouterr().err
    data = ["--dataset_path", tiny_world, "--split", "test"]
    assert script(generate_bbox.main, "--model_path", tiny_smolvlm, *data) == 0
    assert all(record.keys() == {"question_id", "answer"} for record in read_predictions(BOXES))
    flags = ["--bbox", BOXES, "--vqa_model_path", tiny_smolvlm, "--need_threshold", 0]
    assert script(generate_final_answers.main, *flags) == 2
    assert "lacks the need of some rows; expected boxes of --need" in capsys.readouterr().err
    assert script(generate_final_answers.main, *flags[:-1], "inf") == 2
    assert "expected a finite number" in capsys.readouterr().err
    assert script(generate_final_answers.main, *flags, "--modes", "base") == 2
    assert "--need_threshold decides about crops" in capsys.readouterr().err
