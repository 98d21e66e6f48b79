"""create_dataset.py run again: after an interruption, from its journal, over changed images, by several processes."""

import shutil
from pathlib import Path

import pytest
from made_sets import content, save_rows
from processes import kill_launch, launch_script

from cropvlm import generation
from cropvlm.generation import FailedRow
from cropvlm.sets import rows


def test_the_same_command_has_nothing_to_do(script, asked, tmp_path, caplog, tiny_world):
    assert script() == 0
    asked.clear()
    (tmp_path / "made.journal.jsonl").rename(tmp_path / "kept")
    before = (tmp_path / "made_sft").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert script("--dataset_path", shutil.copytree(tiny_world, tmp_path / "miniature")) == 0  # the same, moved
    assert "made_sft and " in caplog.text
    assert "made_grpo: done before" in caplog.text
    assert (tmp_path / "made_sft").stat().st_mtime_ns == before
    (tmp_path / "kept").rename(tmp_path / "made.journal.jsonl")
    shutil.rmtree(tmp_path / "made_grpo")
    assert script() == 0
    assert (tmp_path / "made_grpo").exists()
    assert asked == []
    assert script("--max_samples", "20") == 0
    assert len(content(tmp_path / "made_grpo")) == 10


def test_a_response_to_another_image_of_that_id_is_none(script, asked, tmp_path, tiny_world):
    rows = content(tiny_world / "train")[:10]
    assert script("--dataset_path", str(save_rows(tmp_path / "before", rows))) == 0
    asked.clear()
    rows[3]["image"], rows[1]["question"] = rows[9]["image"], "What else?"
    assert script("--dataset_path", str(save_rows(tmp_path / "after", rows))) == 0
    assert asked == [rows[1]["question_id"], rows[3]["question_id"]]


def test_a_file_that_is_gone_since_it_was_boxed_is_left_out(script, asked, pictures, tmp_path, caplog):
    assert script("--dataset_path", str(pictures)) == 0
    before = content(tmp_path / "made_sft")
    (pictures / "2.png").unlink()
    assert script("--dataset_path", str(pictures), "--from_journal") == 3
    kept = [row["question_id"] for row in content(tmp_path / "made_sft")]
    assert kept == [before[i]["question_id"] for i in (0, 1, 3, 4)]
    assert f"left out of the SFT part: {{'pictures': 1}} ({before[2]['question_id']})" in caplog.text


def test_a_row_that_is_too_large_is_asked_again(script, tmp_path, monkeypatch):
    def generate_rows(model, processor, source, *, done, **options):
        for i, texts in generate(model, processor, source, done=done, **options):
            yield i, FailedRow("out of memory") if i == 1 and too_large else texts

    generate, too_large = generation.generate_rows, [True]
    monkeypatch.setattr(generation, "generate_rows", generate_rows)
    assert script("--max_samples", "8") == 3
    too_large.clear()
    assert script("--max_samples", "8") == 0
    assert len(content(tmp_path / "made_sft")) == 4


def test_images_for_grpo_are_decoded_once(script, asked, pictures, monkeypatch):
    opened, open_image = [], rows.open_image
    note = lambda source: opened.append(Path(source["path"]).name) or open_image(source)  # noqa: E731
    monkeypatch.setattr(rows, "open_image", note)
    flags = ["--dataset_path", str(pictures)]
    assert script(*flags) == 0
    assert sorted(opened) == ["5.png", "6.png", "7.png", "8.png", "9.png"]
    opened.clear()
    (pictures / "8.png").write_bytes((pictures / "9.png").read_bytes()[:-500])
    (pictures / "6.png").unlink()
    assert script(*flags, "--from_journal") == 3
    assert sorted(opened) == ["6.png", "8.png"]  # other files than before
    assert script(*flags, "--from_journal") == 3
    assert len(opened) == 2
    # All of them boxed: records of images alone are not responses. Then every row with a response is readable.
    assert script(*flags, "--sft_share", "1.0") == 3
    assert len(asked) == 5 + 3
    assert script(*flags) == 3
    assert len(opened) == 2


def test_growth_and_saving_again_from_the_journal(script, asked, tmp_path):
    assert script("--max_samples", "10") == 0
    asked.clear()
    # Neither the teacher nor its settings are needed. 100x100 about (450, 450) at x1 and 200x200 about (900, 100).
    flags = ["--max_samples", "10", "--from_journal", "--model_path", "gone"]
    before = {file: file.read_bytes() for file in tmp_path.glob("made_*/*")}
    assert {file.name for file in before} >= {"state.json", "dataset_info.json", "README.md"}
    assert script(*flags) == 0
    assert {file: file.read_bytes() for file in tmp_path.glob("made_*/*")} == before
    assert script(*flags, "--growth", "1", "1", "1", "1", "1") == 0
    assert asked == []
    boxes = [row["bbox"] for row in content(tmp_path / "made_sft")]
    assert boxes == [[10, 20, 15, 22], [40, 40, 50, 50], [80, 0, 100, 20], [10, 10, 40, 40], [0, 0, 100, 100]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_pixels", "10000"], "other settings (max_pixels None there, 10000 here)"),  # another teacher
        (["--from_journal", "--max_samples", "12"], "has no response to 1 of 6 rows"),
        (["--from_journal", "--output_path", "{tmp}/other"], "other.journal.jsonl is not a readable journal"),
    ],
)
def test_a_journal_of_other_settings_or_rows_is_refused(script, asked, tmp_path, capfd, flags, message):
    assert script("--max_samples", "10") == 0
    assert script(*[flag.replace("{tmp}", str(tmp_path)) for flag in flags]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.slow
def test_accelerate_launch_splits_the_rows(script, tmp_path, tiny_world, tiny_qwen):
    assert script("--max_new_tokens", "32") == 0
    flags = ["--dataset_path", tiny_world, "--model_path", tiny_qwen, "--max_new_tokens", "32", "--batch_size", "1"]
    argv = ["create_dataset.py", *flags, "--output_path", tmp_path / "two"]
    journals = [tmp_path / f"two{name}.journal.jsonl" for name in ("", ".rank1")]
    kill_launch(argv, journals, rows=1)
    kept = [journal.read_text().count("\n") - 1 for journal in journals]
    done = launch_script(argv)
    assert done.returncode == 0, done.stderr
    assert f"{sum(kept)} of 12 rows were done before" in done.stderr  # those of both processes
    assert "6/6" in done.stderr  # the first process's half of the 12 rows
    for part in ("sft", "grpo"):
        assert content(tmp_path / f"two_{part}") == content(tmp_path / f"made_{part}")
    assert [path.name for path in tmp_path.glob("two*.jsonl")] == ["two.journal.jsonl"]
