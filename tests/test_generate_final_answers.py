"""generate_final_answers.py: both answers of every question, its files, resuming, mistakes by the user."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from steps import answers_of, question_ids, read, write_boxes

import generate_final_answers
from cropvlm import generation, modeling
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.processors import longest_edge_of
from cropvlm.runs.predictions import write_predictions

# Texts of a cropper that are not boxes: the full image replaces the crop.
INVALID = ["", "no box", "[50, 50, 10, 10].", "[5, 5, 5, 9].", "[NaN, 0, 1, 1].", "[0, 0, 101, 1].", "9" * 10_000]
VALID = [" [0, 0, 50, 50].", "[25, 25, 75, 75].", "[0, 0, 100, 100].", "[10, 10, 11, 11].", "[60, 0, 100, 30]."]


@pytest.fixture
def script(call, lively):
    """Run the script in this process with a tiny SmolVLM as answerer unless told otherwise; its exit code."""
    defaults = ["--vqa_model_path", lively["smolvlm"], "--max_new_tokens", 6, "--gpu", -1]
    return lambda *flags: call(generate_final_answers.main, *defaults, *flags)


@pytest.fixture
def boxes(tmp_path, tiny_world) -> Path:
    """A box file of the 12 test rows, 7 of them invalid, with its meta."""
    return write_boxes(tmp_path / "predictions" / "world_bbox.json", tiny_world, INVALID + VALID)


@pytest.fixture
def asked(monkeypatch):
    """Let the model answer some rows, all 12 by default, without computing it; what it is asked."""
    given = []

    def answer(texts=("a", "b"), rows=range(12)):
        def generate_rows(model, processor, prompts, **options):
            given.append(SimpleNamespace(processor=processor, prompts=prompts, **options))
            return ((i, list(texts)) for i in rows)

        monkeypatch.setattr(modeling, "load_model", lambda *_, **__: SimpleNamespace(device=torch.device("cpu")))
        monkeypatch.setattr(generation, "generate_rows", generate_rows)
        return given

    return answer


def test_writes_both_answer_files_from_the_box_file_alone(script, boxes, tiny_world, lively):
    assert script("--bbox", boxes) == 0
    for mode in ("base", "cropvlm"):
        records = read(f"predictions/world_{mode}_answers.json")
        assert [record["question_id"] for record in records] == question_ids(tiny_world)
        assert all(record.keys() == {"question_id", "answer"} for record in records)
        meta = read(f"predictions/world_{mode}_answers.meta.json")
        assert (meta["dataset_path"], meta["split"]) == (str(tiny_world), "test")
        assert meta["models"] == {"answerer": str(lively["smolvlm"])}
        assert (meta["counts"]["rows"], meta["counts"]["failed"]) == (12, 0)
        assert meta["counts"].get("invalid_boxes") == {"base": None, "cropvlm": 7}[mode]
    assert answers_of("predictions/world_base_answers.json") != answers_of("predictions/world_cropvlm_answers.json")
    assert not list(Path().rglob("*.jsonl"))


@pytest.mark.parametrize("family", ["smolvlm", "qwen", "llava"])
def test_the_files_do_not_depend_on_batch_size_or_modes(script, boxes, lively, family):
    runs_of = {"one": ["--batch_size", 1], "auto": ["--num_workers", 2]}
    runs_of |= {mode: ["--modes", mode] for mode in ("base", "cropvlm")}
    for name, flags in runs_of.items():
        assert script("--bbox", boxes, "--vqa_model_path", lively[family], "--name", name, *flags) == 0
    for mode in ("base", "cropvlm"):
        names = ("one", "auto", mode)
        assert len({Path(f"predictions/{name}_{mode}_answers.json").read_bytes() for name in names}) == 1
    assert not Path("predictions/base_cropvlm_answers.json").exists()
    assert len(set(answers_of("predictions/one_base_answers.json"))) > 6


@pytest.mark.parametrize(
    ("own", "flags", "seen"),
    [
        (2048, [], 512),  # SmolVLM's own is 2048 px
        (64, [], 64),
        (2048, ["--longest_edge", 1024], 1024),
    ],
)
def test_smolvlm_sees_512_px_unless_told_otherwise(script, boxes, tmp_path, lively, asked, own, flags, seen):
    load_processor(str(lively["smolvlm"]), longest_edge=own).save_pretrained(tmp_path / "model")
    given = asked(["a"])
    assert script("--bbox", boxes, "--vqa_model_path", tmp_path / "model", "--modes", "base", *flags) == 0
    assert [longest_edge_of(call.processor) for call in given] == [seen]
    assert read("predictions/world_base_answers.meta.json")["settings"]["longest_edge"] == seen


def test_other_families_keep_their_own_size_and_pixel_bounds_reach_the_processor(script, boxes, lively, asked):
    given = asked(["x"])
    for family, flags in (("qwen", ["--max_pixels", 12544, "--min_pixels", 12544]), ("llava", [])):
        asking = ["--bbox", boxes, "--vqa_model_path", lively[family], "--modes", "base", "--name", family]
        assert script(*asking, *flags) == 0
        assert read(f"predictions/{family}_base_answers.meta.json")["settings"]["longest_edge"] is None
    size = dict(given[0].processor.image_processor.size)
    assert size["shortest_edge"] == size["longest_edge"] == 12544


def test_fewer_samples_than_boxes_and_none(script, boxes, tiny_world):
    assert script("--bbox", boxes, "--max_samples", 4) == 0
    assert len(read("predictions/world_cropvlm_answers.json")) == 4
    assert read("predictions/world_cropvlm_answers.meta.json")["counts"]["invalid_boxes"] == 4
    flags = ["--dataset_path", tiny_world, "--split", "test", "--max_samples", 3]
    assert script(*flags, "--modes", "base") == 0
    assert len(read("predictions/miniature_base_answers.json")) == 3


def test_several_box_files_with_one_loading_of_the_model(script, tmp_path, tiny_world, monkeypatch):
    loaded = []
    monkeypatch.setattr(modeling, "load_model", lambda *args, **kwargs: loaded.append(1) or load_model(*args, **kwargs))
    paths = [write_boxes(tmp_path / f"{name}_bbox.json", tiny_world, VALID * 3) for name in ("sft", "grpo")]
    assert script("--bbox", *paths, "--modes", "cropvlm") == 0
    assert answers_of("predictions/sft_cropvlm_answers.json") == answers_of("predictions/grpo_cropvlm_answers.json")
    assert loaded == [1]


def test_an_interrupted_run_goes_on_with_the_same_settings_only(script, boxes, tiny_world, asked, capsys):
    given = asked(rows=range(7))
    with pytest.raises(KeyError):  # ends before all rows are there: the journals stay
        script("--bbox", boxes)
    assert not list(Path("predictions").glob("*_answers.json"))
    assert script("--bbox", boxes, "--max_new_tokens", 7) == 2
    assert "(max_new_tokens 6 there, 7 here)" in capsys.readouterr().err.splitlines()[-1]
    write_boxes(boxes, tiny_world, VALID * 3)
    assert script("--bbox", boxes) == 2
    told = "world_cropvlm_answers.json.journal.jsonl holds 7 rows of a run with other settings (boxes "
    assert told in capsys.readouterr().err.splitlines()[-1]
    write_boxes(boxes, tiny_world, INVALID + VALID)
    asked(["c", "d"], rows=range(7, 12))
    assert script("--bbox", boxes) == 0
    assert [list(call.done) for call in given] == [[], list(range(7))]
    for mode, texts in (("base", "ac"), ("cropvlm", "bd")):
        assert answers_of(f"predictions/world_{mode}_answers.json") == [texts[0]] * 7 + [texts[1]] * 5
    assert not list(Path().rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs the boxes: give --bbox FILE, or --modes base"),
        (["--bbox", "bare_bbox.json"], "no meta file beside bare_bbox.json"),
        (["--bbox", "few_bbox.json"], "7 missing"),
        (["--bbox", "answers.json"], "answers.json holds answers, by its meta file; expected boxes"),
        (["--bbox", "a_base_answers.json", "--output_path", ".", "--name", "a"], "would replace the boxes"),
        (["--bbox", "world_bbox.json", "--max_pixels", "1000"], "leave --longest_edge, --min_pixels and"),
        (["--bbox", "world_bbox.json", "other/world_bbox.json"], "_answers.json would be written 2 times; run"),
        (["--modes", "base", "--max_pixels", "9", "--min_pixels", "10"], "--min_pixels 10 is more than --max_pixels 9"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, tmp_path, tiny_world, capsys, flags, message):
    write_boxes(tmp_path / "world_bbox.json", tiny_world, VALID * 3)
    write_boxes(tmp_path / "few_bbox.json", tiny_world, VALID)
    write_boxes(tmp_path / "a_base_answers.json", tiny_world, VALID * 3)
    write_predictions("answers.json", [], {"dataset_path": "d", "models": {"answerer": "m"}})
    write_boxes(tmp_path / "other" / "world_bbox.json", tiny_world, INVALID + VALID)
    (tmp_path / "bare_bbox.json").write_text('[{"question_id": 1, "answer": "x"}]')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    assert script(*flags) == 2
    error = capsys.readouterr().err
    assert "usage:" not in error
    assert message in error.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
