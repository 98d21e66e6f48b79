"""generate_bbox.py: the box file and its meta, resuming after an interruption, mistakes by the user."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, Image, load_from_disk
from processes import REPO, kill_script, launch_script, run_script

import generate_bbox
from cropvlm import generation, modeling
from cropvlm.errors import UnreadableImage
from cropvlm.modeling import load_model, load_processor
from cropvlm.runs.cli import run
from cropvlm.runs.predictions import meta_path


@pytest.fixture(scope="module")
def cropper(tiny_smolvlm, tmp_path_factory) -> Path:
    """A checkpoint whose random weights are large enough that its texts differ from row to row."""
    model, processor = load_model(str(tiny_smolvlm), device="cpu"), load_processor(str(tiny_smolvlm))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("checkpoints") / "lively"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch, tmp_path, tiny_world, cropper):
    """Run the script in this process, on 12 rows with a tiny cropper unless told otherwise; its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*flags) -> int:
        defaults = ["--model_path", cropper, "--dataset_path", tiny_world, "--split", "test"]
        size = ["--longest_edge", 64, "--max_new_tokens", 8, "--gpu", -1]
        monkeypatch.setattr(sys, "argv", [str(flag) for flag in ["generate_bbox.py", *defaults, *size, *flags]])
        with pytest.raises(SystemExit) as ended:
            run(generate_bbox.main)
        return ended.value.code

    return call


def question_ids(tiny_world):
    return load_from_disk(str(tiny_world))["test"]["question_id"]


def save_with_broken_images(folder: Path, tiny_world, broken: list[int]) -> Path:
    rows = list(load_from_disk(str(tiny_world))["test"].cast_column("image", Image(decode=False)))
    for i in broken:
        rows[i]["image"] = {"bytes": b"no image", "path": None}
    DatasetDict(test=Dataset.from_list(rows).cast_column("image", Image())).save_to_disk(str(folder))
    return folder


def test_writes_the_raw_texts_in_data_set_order_with_a_meta(script, tiny_world, cropper):
    assert script() == 0
    records = json.loads(Path("predictions/miniature_bbox.json").read_text())
    assert [record["question_id"] for record in records] == list(question_ids(tiny_world))
    assert all(record.keys() == {"question_id", "answer"} for record in records)
    assert len({record["answer"] for record in records}) > 6  # texts of their own, not one for all
    meta = json.loads(Path("predictions/miniature_bbox.meta.json").read_text())
    assert (meta["dataset_path"], meta["split"]) == (str(tiny_world), "test")
    assert meta["models"] == {"cropper": str(cropper), "cropper_base": None}
    assert meta["settings"]["longest_edge"] == 64
    assert meta["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {key: meta["counts"][key] for key in ("rows", "invalid_boxes", "failed")} == {
        "rows": 12,
        "invalid_boxes": 12,  # random weights write no box
        "failed": 0,
    }
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        "miniature_bbox.json",
        "miniature_bbox.meta.json",
    ]


def test_counts_boxes_and_their_area():
    answers = [" [0, 0, 50, 50].", "[0, 0, 10, 10]", "[50, 0, 0, 50].", ""]
    records = [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]
    records[3]["failed"] = "unreadable image"
    # Areas 25% and 1%; the third is inverted, the fourth empty.
    expected = {"rows": 4, "invalid_boxes": 2, "mean_area_pct": 13.0, "failed": 1, "seconds": 1.5}
    assert generate_bbox.count_boxes(records, 1.5) == expected
    records[2]["answer"] = "Not needed."  # counted apart
    assert generate_bbox.count_boxes(records, 1.5) == expected | {"invalid_boxes": 1, "not_needed": 1}


def test_the_file_does_not_depend_on_the_batch_size(script):
    for batch_size in ("1", "5", "auto"):
        assert script("--batch_size", batch_size, "--output", f"{batch_size}.json") == 0
    assert Path("1.json").read_bytes() == Path("5.json").read_bytes() == Path("auto.json").read_bytes()


def test_name_max_samples_and_output(script, tiny_world):
    assert script("--max_samples", 5, "--name", "few") == 0
    few = json.loads(Path("predictions/few_bbox.json").read_text())
    assert [record["question_id"] for record in few] == list(question_ids(tiny_world)[:5])
    assert json.loads(Path("predictions/few_bbox.meta.json").read_text())["max_samples"] == 5
    assert script("--output", "deep/down/boxes.json") == 0
    assert len(json.loads(Path("deep/down/boxes.json").read_text())) == 12


@pytest.mark.parametrize(
    ("output", "file"),
    [
        ("there", "there/miniature_bbox.json"),
        ("there.json", "there.json/miniature_bbox.json"),  # a folder all the same
        ("new/deep/", "new/deep/miniature_bbox.json"),
        ("new.json/", "new.json/miniature_bbox.json"),
        ("new", "new/miniature_bbox.json"),
        (".", "miniature_bbox.json"),
        ("file.json", "file.json"),
        ("deep/file.v2.json", "deep/file.v2.json"),
    ],
)
def test_output_is_a_folder_or_a_file(script, monkeypatch, output, file):
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: enumerate([["x"]] * 12))
    for folder in ("there", "there.json"):
        Path(folder).mkdir()
    assert script("--output", output) == 0
    written = sorted(str(path) for path in Path().rglob("*.json") if path.is_file())
    assert written == sorted([file, str(meta_path(file))])


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(script, tmp_path, tiny_world, caplog):
    world = save_with_broken_images(tmp_path / "broken", tiny_world, [2, 7])
    assert script("--output", "good.json") == 0
    assert script("--dataset_path", world, "--output", "broken.json", "--batch_size", 3) == 3
    good, broken = (json.loads(Path(name).read_text()) for name in ("good.json", "broken.json"))
    ids = question_ids(tiny_world)
    assert broken == [record | ({"answer": ""} if i in (2, 7) else {}) for i, record in enumerate(good)]
    assert json.loads(Path("broken.meta.json").read_text())["counts"]["failed"] == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    named = [f"question_id {ids[i]}" for i in (2, 7)]
    assert [text.split(":")[0] for text in warnings] == [*named, "broken.json"]
    assert all(f"{name}: unreadable image" in warnings[-1] for name in named)


def test_rows_that_failed_before_an_interruption_are_named(script, tiny_world, monkeypatch, caplog):
    error = UnreadableImage("unreadable image: gone")
    monkeypatch.setattr(generation, "generate_rows", lambda *args, **kwargs: iter([(3, error)]))
    with pytest.raises(KeyError):
        script("--output", "a.json")
    caplog.clear()
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: ((i, ["x"]) for i in range(12) if i != 3))
    assert script("--output", "a.json") == 3
    failed = {"question_id": question_ids(tiny_world)[3], "reason": "unreadable image: gone"}
    assert json.loads(Path("a.meta.json").read_text())["failed"] == [failed]
    assert f"a.json: 1 failed: question_id {failed['question_id']!r}: unreadable image: gone" in caplog.text


def test_a_run_whose_files_lie_in_the_models_folder_goes_on(script, cropper, tmp_path, monkeypatch):
    shutil.copytree(cropper, tmp_path / "model")
    flags = ["--model_path", "model", "--output", "model/boxes.json"]
    monkeypatch.setattr(generation, "generate_rows", lambda *args, **kwargs: iter([(0, ["x"])]))
    with pytest.raises(KeyError):
        script(*flags)
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: ((i, ["x"]) for i in range(1, 12)))
    assert script(*flags) == 0


def test_rows_of_another_dtype_or_base_are_not_mixed_in(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(generation, "generate_rows", lambda *args, **kwargs: iter([(0, ["x"])]))
    base = tmp_path / "base"
    base.mkdir()
    flags = ["--output", "a.json", "--base_model_path", base]
    with pytest.raises(KeyError):
        script(*flags)
    (base / "config.json").write_text("{}")
    assert script(*flags) == 2
    assert "other settings (model_files" in capsys.readouterr().err.splitlines()[-1]
    (base / "config.json").unlink()
    device = torch.device("cpu")
    monkeypatch.setattr(modeling, "device_and_dtype", lambda *_: (device, torch.bfloat16))
    assert script(*flags) == 2
    assert "dtype 'torch.float32' there, 'torch.bfloat16' here" in capsys.readouterr().err.splitlines()[-1]


def test_a_base_that_has_moved_is_refused_with_the_flag_that_names_it(script, capsys, sft_adapter, tmp_path):
    """As where a model trained with a relative path is used from another folder."""
    adapter = shutil.copytree(sft_adapter, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "models/not_here"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert script("--model_path", adapter) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"error: {adapter}: adapter_config.json names a base model that is not there; models/not_here"
    )
    assert last.endswith("name the one to use with --base_model_path")


def test_the_attention_is_handed_on_and_kept(script, monkeypatch, capsys):
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: iter([(0, ["x"])]))
    used = []

    def load(*args, attn_implementation, **options):
        used.append(attn_implementation)
        return load_model(*args, attn_implementation=attn_implementation, **options)

    monkeypatch.setattr(modeling, "load_model", load)
    for attention in ("eager", None):
        flags = ["--attn_implementation", attention] if attention else []
        with pytest.raises(KeyError):
            script("--output", f"{attention}.json", *flags)
    assert used == ["eager", None]
    assert script("--output", "eager.json") == 2
    assert "(attn_implementation 'eager' there, None here)" in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_run_goes_on_to_the_same_file(script, monkeypatch):
    assert script("--output", "whole.json") == 0
    rows = []

    def interrupted(*args, **kwargs):
        for outcome in generate_rows(*args, **kwargs):
            if len(rows) == 5:
                raise KeyboardInterrupt
            rows.append(outcome[0])
            yield outcome

    generate_rows = generation.generate_rows
    monkeypatch.setattr(generation, "generate_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script("--output", "resumed.json", "--batch_size", 3)
    assert not Path("resumed.json").exists()
    monkeypatch.setattr(generation, "generate_rows", generate_rows)
    journal = Path("resumed.json.journal.jsonl").read_text().splitlines()
    assert len(journal) == 1 + 5  # the settings and the rows done
    assert script("--output", "resumed.json", "--batch_size", 4) == 0
    assert Path("resumed.json").read_bytes() == Path("whole.json").read_bytes()
    assert not Path("resumed.json.journal.jsonl").exists()


def test_a_journal_of_other_settings_is_refused(script, capsys, monkeypatch):
    monkeypatch.setattr(generation, "generate_rows", lambda *args, **kwargs: iter([(0, ["[0, 0, 1, 1]"])]))
    with pytest.raises(KeyError):  # ends before all rows are there: the journal stays
        script("--output", "a.json")
    assert script("--output", "a.json", "--longest_edge", 128) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "longest_edge 64 there, 128 here" in error
    assert "delete the file to start anew" in error


def test_a_journal_of_a_data_set_that_has_changed_is_refused(script, tiny_world, capsys, monkeypatch):
    monkeypatch.setattr(generation, "generate_rows", lambda *args, **kwargs: iter([(0, ["[0, 0, 1, 1]"])]))
    rows = load_from_disk(str(tiny_world))["test"]
    shifted = rows.select([*range(1, 12), 0]).remove_columns("question_id")  # the same ids on other questions
    shifted = shifted.add_column("question_id", rows["question_id"][:])
    for name, test in {"before": rows, "after": shifted}.items():
        DatasetDict(test=test).save_to_disk(name)
    flags = ["--dataset_path", "world", "--output", "a.json"]
    Path("before").rename("world")
    with pytest.raises(KeyError):
        script(*flags)
    Path("world").rename("before")
    Path("after").rename("world")
    assert script(*flags) == 2
    assert "other settings (questions " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "nowhere/at/all"], "no such folder"),
        (["--split", "validation"], "no split 'validation'"),
        (["--model_path", "/dev/null"], "/dev/null: no such folder"),
        (["--output", "/proc/boxes.json"], "cannot write"),
        (["--batch_size", "0"], "expected a positive integer or auto"),
        (["--max_samples", "-1"], "expected a positive integer"),
        (["--num_workers", "-1"], "expected 0 to 256 processes"),
        (["--dataset", "textvqa", "docvqa", "--output", "one.json"], "name a folder or leave --output out"),
        (["--dataset", "textvga"], "invalid choice: 'textvga'"),
        (["--longest_edge", "1"], "expected 2 to 16384 pixels"),
        (["--longest_edge", "nan"], "expected 2 to 16384 pixels"),
        (["--max_new_tokens", "0"], "expected a positive integer"),
        (["--name", "../../boxes"], "'../../boxes': expected a name without a slash"),
        (["--output", "x" * 250 + ".json"], "File name too long; name another output"),
        (["--output", "x" * 245 + ".json"], "File name too long; name another output"),  # its meta file's
        (["--name", "x" * 240], "File name too long; name another output"),
        (["--output", "taken"], "cannot write taken/miniature_bbox.json"),
        *(
            ([flag, ""], f"argument {flag}: expected a value, got an empty text")
            for flag in (
                *("--model_path", "--base_model_path", "--output", "--dataset_path", "--split", "--name"),
                "--attn_implementation",
            )
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, tmp_path, capsys, flags, message):
    (tmp_path / "taken").touch()
    assert script(*flags) == 2
    error = capsys.readouterr().err
    assert "usage:" not in error
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json*"))


def test_a_rank_without_a_launcher_changes_nothing(script, monkeypatch):
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: enumerate([["x"]] * 12))
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert script("--output", "a.json") == 0
    assert sorted(path.name for path in Path().glob("a.*")) == ["a.json", "a.meta.json"]


def test_several_processes_without_a_launcher_are_refused(script, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert script("--output", "a.json") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the environment names several processes" in error
    assert error.endswith("; unset WORLD_SIZE")
    assert not list(Path().glob("a.*"))


def test_an_accent_in_a_name(script, monkeypatch):
    monkeypatch.setattr(generation, "generate_rows", lambda *_, **__: enumerate([["x"]] * 12))
    assert script("--name", "é", "--output", "où") == 0
    assert sorted(path.name for path in Path("où").iterdir()) == ["é_bbox.json", "é_bbox.meta.json"]


def command(cropper, tiny_world, *flags) -> list:
    settings = ["--model_path", cropper, "--dataset_path", tiny_world, "--split", "test", "--longest_edge", 64]
    return [REPO / "generate_bbox.py", *settings, "--gpu", -1, *flags]


@pytest.mark.slow
def test_sigkill_and_go_on(tmp_path, tiny_world, cropper):
    argv = command(cropper, tiny_world, "--batch_size", 1, "--max_new_tokens", 60)
    journal = tmp_path / "killed.json.journal.jsonl"
    kill_script([*argv, "--output", tmp_path / "killed.json"], journal, rows=3)
    assert not (tmp_path / "killed.json").exists()
    for name in ("killed", "undisturbed"):
        run_script([*argv, "--output", tmp_path / f"{name}.json"])
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "undisturbed.json").read_bytes()
    assert not journal.exists()


@pytest.mark.slow
def test_accelerate_launch_splits_the_rows(script, tmp_path, tiny_world, cropper):
    assert script("--output", "one.json") == 0
    done = launch_script(command(cropper, tiny_world, "--max_new_tokens", 8, "--output", tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    assert "6/6" in done.stderr  # the first process's half of the 12 rows
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert not list(tmp_path.glob("*.jsonl"))
