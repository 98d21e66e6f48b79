"""create_dataset.py: halves, growth worked out by hand, resuming after an interruption, mistakes by the user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from datasets import Image as DatasetImage
from fake_server import error, open_url
from PIL import Image as PILImage
from processes import REPO, kill_launch, kill_script, launch_script, run_script

import create_dataset
from cropvlm.cli import run
from cropvlm.generation import FailedRow
from cropvlm.runtime import server as remote
from cropvlm.teacher import hub, responses, rows
from cropvlm.teacher.asking import PixelBudget

# Responses of five rows whose images are 1000x1000 and seen so, and their boxes as they grow by hand. Areas 0.001,
# 0.01, 0.04, 0.09 and 1 (whole image); n = 5, so the cut points are the sorted areas 1, 2, 3, 4: x45 x10 x4 x2 x1.
RESPONSES = [
    # 50x20 about (125, 210), sides x sqrt(45) = 6.708: 335x134. x -43..293 is pushed to 0..335; y 142..277
    ('{"bbox_2d": [100, 200, 150, 220]}', [0, 14, 33, 27]),
    # 100x100 about (450, 450), sides x sqrt(10) = 3.162: 291.9..608.1
    ('```json\n[{"bbox_2d": [400, 400, 500, 500]}]\n```', [29, 29, 60, 60]),
    # 200x200 about (900, 100), sides x 2: x 700..1100 is pushed to 600..1000, y -100..300 to 0..400
    ("[800, 0, 1000, 200]", [60, 0, 100, 40]),
    # 300x300 about (250, 250), sides x 1.414: 37.9..462.1
    ("[100, 100, 400, 400]", [3, 3, 46, 46]),
    ("I see no sign.", [0, 0, 100, 100]),
]


@pytest.fixture
def script(monkeypatch, tmp_path, tiny_world, tiny_qwen):
    """Run the script in this process, on the tiny world with the tiny teacher unless told otherwise; its exit code."""

    def call(*flags: str) -> int:
        defaults = ["--dataset_path", tiny_world, "--model_path", tiny_qwen, "--output_path", tmp_path / "made"]
        argv = ["create_dataset.py", *defaults, "--max_new_tokens", "8", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as ended:
            run(create_dataset.main)
        return ended.value.code

    return call


@pytest.fixture
def asked(monkeypatch) -> list:
    """Replace the teacher by RESPONSES, in turn. The list fills with the ids that it was asked for."""
    ids = []

    def ask_model(teacher, prompts, done):
        def outcomes():
            for i in sorted(set(range(len(prompts))) - set(done)):
                ids.append(prompts.inspected[i]["question_id"])
                yield i, [RESPONSES[i % len(RESPONSES)][0]]

        return outcomes(), PixelBudget()

    def response_records(outcomes, inspected, budget):
        for i, texts in outcomes:
            yield inspected[i] | {"teacher_response": texts[0], "size": [1000, 1000], "seen_size": [1000, 1000]}

    monkeypatch.setattr(responses, "ask_model", ask_model)
    monkeypatch.setattr(responses, "response_records", response_records)
    return ids


def content(folder: Path) -> list:
    """The saved rows, images as encoded bytes."""
    return load_from_disk(str(folder)).cast_column("image", DatasetImage(decode=False)).to_list()


# Takes the flags, and prints the exit code and which heavy libraries were loaded on the way to it.
PARSED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path("create_dataset.py", run_name="__main__")
except SystemExit as ended:
    heavy = {"torch", "transformers", "datasets", "accelerate", "openai", "qwen_vl_utils"} & set(sys.modules)
    print(ended.code, sorted(heavy))
"""


@pytest.mark.parametrize(("flags", "code"), [(["--help"], 0), (["--growth", "1", "2", "3", "4", "nan"], 2)])
def test_flags_are_read_before_anything_heavy_is_loaded(flags, code):
    call = [sys.executable, "-c", PARSED, "create_dataset.py", *flags]
    ended = subprocess.run(call, capture_output=True, text=True, cwd=REPO, check=True)
    assert ended.stdout.splitlines()[-1] == f"{code} []"
    assert len(ended.stderr.splitlines()) == (code == 2)


def test_halves_of_the_tiny_world(script, tmp_path, tiny_world):
    assert script() == 0
    source = content(tiny_world / "train")
    sft, grpo = content(tmp_path / "made_sft"), content(tmp_path / "made_grpo")
    assert [row["question_id"] for row in sft + grpo] == [row["question_id"] for row in source]
    assert len(sft) == 12  # 24 // 2
    # Encoded images go through untouched, and so do all columns of the source.
    assert [{key: row[key] for key in source[0]} for row in sft + grpo] == source
    assert set(sft[0]) - set(source[0]) == {"bbox", "teacher_response", "source"}
    assert set(grpo[0]) - set(source[0]) == {"source"}
    assert {row["source"] for row in sft + grpo} == {"miniature"}
    assert all(len(row["bbox"]) == 4 and isinstance(row["teacher_response"], str) for row in sft)


def test_boxes_grow_by_area(script, asked, tmp_path):
    assert script("--max_samples", "10") == 0
    rows = content(tmp_path / "made_sft")
    assert [row["bbox"] for row in rows] == [bbox for _, bbox in RESPONSES]
    assert [row["teacher_response"] for row in rows] == [text for text, _ in RESPONSES]


def test_a_share_of_one_boxes_every_row(script, asked, tmp_path):
    # The slash is what a shell's completion puts behind the name of a folder.
    assert script("--max_samples", "5", "--sft_share", "1.0", "--output_path", f"{tmp_path}/made/") == 0
    assert len(content(tmp_path / "made_sft")) == 5
    assert not (tmp_path / "made_grpo").exists()


def test_attention_reaches_the_model_and_the_journal(script, tmp_path, monkeypatch):
    def load_model(path, **options):
        asked_for.append(options["attn_implementation"])
        return load(path, **options)

    asked_for, load = [], responses.load_model
    monkeypatch.setattr(responses, "load_model", load_model)
    assert script("--max_samples", "2") == 0
    assert script("--max_samples", "4", "--attn_implementation", "eager") == 2  # of a journal without
    assert script("--max_samples", "2", "--attn_implementation", "eager", "--output_path", f"{tmp_path}/eager") == 0
    assert asked_for == [None, "eager"]


def test_it_goes_on_after_an_error(script, asked, tmp_path, monkeypatch):
    assert script("--output_path", str(tmp_path / "undisturbed")) == 0
    everyone = list(asked)
    asked.clear()
    whole = responses.response_records

    def breaks(*args, **options):
        for i, record in enumerate(whole(*args, **options)):
            if i == 5:
                raise RuntimeError("power cut")
            yield record

    monkeypatch.setattr(responses, "response_records", breaks)
    with pytest.raises(RuntimeError):
        script()
    assert not (tmp_path / "made_sft").exists()
    assert not (tmp_path / "made_grpo").exists()
    monkeypatch.setattr(responses, "response_records", whole)
    asked.clear()
    assert script() == 0
    assert asked == everyone[5:]
    for part in ("sft", "grpo"):
        assert content(tmp_path / f"made_{part}") == content(tmp_path / f"undisturbed_{part}")


def test_a_run_again_needs_no_teacher(script, asked, tmp_path):
    assert script() == 0
    asked.clear()
    before = content(tmp_path / "made_sft")
    assert script() == 0
    assert asked == []
    assert content(tmp_path / "made_sft") == before


# create_dataset.py, which writes the number of rows of every batch into the file named first.
COUNTED = """
import sys
from pathlib import Path
import create_dataset
from cropvlm import cli, generation
batches, generate = Path(sys.argv.pop(1)), generation._generate_batch
def note_and_generate(model, processor, items, *args):
    with batches.open("a") as file:
        print(len(items), file=file)
    return generate(model, processor, items, *args)
generation._generate_batch = note_and_generate
cli.run(create_dataset.main)
"""


@pytest.mark.slow
def test_sigkill_and_go_on(tmp_path, tiny_world, tiny_qwen):
    def command(output) -> list:
        flags = ["--dataset_path", tiny_world, "--model_path", tiny_qwen, "--output_path", tmp_path / output]
        return ["-c", COUNTED, tmp_path / f"{output}.batches", *flags, "--max_new_tokens", "32", "--batch_size", "4"]

    journal = tmp_path / "made.journal.jsonl"
    kill_script(command("made"), journal, rows=5)  # in the second of three batches, or behind it
    kept = journal.read_text()
    assert not (tmp_path / "made_sft").exists()
    for output in ("made", "undisturbed"):
        run_script(command(output))
    for part in ("sft", "grpo"):
        assert content(tmp_path / f"made_{part}") == content(tmp_path / f"undisturbed_{part}")
    whole = kept[: kept.rindex("\n") + 1]
    assert journal.read_text().startswith(whole)
    assert sorted(journal.read_text().splitlines()) == sorted(
        (tmp_path / "undisturbed.journal.jsonl").read_text().splitlines()
    )
    asked = {
        name: sum(map(int, (tmp_path / f"{name}.batches").read_text().split())) for name in ("made", "undisturbed")
    }
    assert asked["undisturbed"] == 12
    assert 12 <= asked["made"] <= 12 + 4  # over both runs: at most a batch twice


def test_the_same_command_leaves_the_same_bytes(script, asked, tmp_path):
    def everything() -> dict[str, bytes]:
        return {
            str(file): file.read_bytes() for part in ("sft", "grpo") for file in (tmp_path / f"made_{part}").iterdir()
        }

    assert script() == 0
    first = everything()
    assert {Path(name).name for name in first} >= {
        "state.json",
        "dataset_info.json",
        "README.md",
        "teacher_report.json",
    }
    assert script("--output_path", str(tmp_path / "made"), "--from_journal") == 0
    assert everything() == first


def test_records_that_hold_no_response_are_asked_for_again(script, asked, tmp_path):
    assert script() == 0
    before, everyone = content(tmp_path / "made_sft"), list(asked)
    journal = tmp_path / "made.journal.jsonl"
    header, *lines = journal.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[1]["teacher_response"] = None
    rows[2]["size"] = "large"
    rows[3] = {"question_id": rows[3]["question_id"]}
    journal.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n")
    assert script("--from_journal") == 2
    asked.clear()
    assert script() == 0
    assert asked == everyone[1:4]
    assert content(tmp_path / "made_sft") == before


def test_a_source_is_not_replaced(script, tmp_path, tiny_world, capfd):
    source = save_rows(tmp_path / "made_sft", content(tiny_world / "train")[:4])
    before = content(source)
    assert script("--dataset_path", str(source)) == 2
    assert "are the same folder, or one lies in the other; name another --output_path" in capfd.readouterr().err
    assert content(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["made_sft"]


def save_rows(folder: Path, rows: list[dict]) -> Path:
    Dataset.from_list(rows).cast_column("image", DatasetImage(decode=False)).save_to_disk(str(folder))
    return folder


def test_an_unreadable_image_is_skipped_with_its_id(script, tmp_path, tiny_world, caplog):
    rows = content(tiny_world / "train")[:8]
    rows[2]["image"]["bytes"] = b"no image"
    assert script("--dataset_path", str(save_rows(tmp_path / "broken", rows))) == 3
    kept = [row["question_id"] for row in content(tmp_path / "made_sft")]
    assert kept == [rows[i]["question_id"] for i in (0, 1, 3)]
    assert str(rows[2]["question_id"]) in caplog.text


@pytest.fixture
def pictures(tmp_path, tiny_world) -> Path:
    """A saved data set of ten rows whose images are files in its folder: 0.png to 9.png."""
    (tmp_path / "pictures").mkdir()
    rows = content(tiny_world / "train")[:10]
    for i, row in enumerate(rows):
        picture = tmp_path / "pictures" / f"{i}.png"
        picture.write_bytes(row["image"]["bytes"])
        row["image"] = str(picture)
    Dataset.from_list(rows).save_to_disk(tmp_path / "pictures")
    return tmp_path / "pictures"


def test_a_response_to_what_a_file_held_before_is_none(script, asked, pictures):
    assert script("--dataset_path", str(pictures)) == 0
    everyone = list(asked)
    asked.clear()
    (pictures / "3.png").write_bytes((pictures / "9.png").read_bytes())
    assert script("--dataset_path", str(pictures)) == 0
    assert asked == [everyone[3]]


def test_a_file_that_is_gone_since_it_was_boxed_is_left_out(script, asked, pictures, tmp_path, caplog):
    assert script("--dataset_path", str(pictures)) == 0
    before = content(tmp_path / "made_sft")
    (pictures / "2.png").unlink()
    assert script("--dataset_path", str(pictures), "--from_journal") == 3
    assert [row["question_id"] for row in content(tmp_path / "made_sft")] == [
        before[i]["question_id"] for i in (0, 1, 3, 4)
    ]
    assert f"left out of the SFT part: {{'pictures': 1}} ({before[2]['question_id']})" in caplog.text


def test_a_row_that_is_too_large_fails_alone(script, tmp_path, tiny_world, monkeypatch, caplog):
    def generate_rows(model, processor, source, *, done, **options):
        for i, texts in generate(model, processor, source, done=done, **options):
            yield i, FailedRow("out of memory") if i == 1 and too_large else texts

    generate, too_large = responses.generate_rows, [True]
    monkeypatch.setattr(responses, "generate_rows", generate_rows)
    rows = content(tiny_world / "train")[:8]
    folder = str(save_rows(tmp_path / "rows", rows))
    assert script("--dataset_path", folder) == 3
    assert f"left out of the SFT part: {{'rows': 1}} ({rows[1]['question_id']})" in caplog.text
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["left_out"] == [{"question_id": rows[1]["question_id"], "error": "out of memory"}]
    too_large.clear()
    assert script("--dataset_path", folder) == 0  # asked for again
    assert len(content(tmp_path / "made_sft")) == 4


def test_only_unreadable_images(script, tmp_path, tiny_world, capsys):
    rows = content(tiny_world / "train")[:4]
    for row in rows:
        row["image"]["bytes"] = b"no image"
    assert script("--dataset_path", str(save_rows(tmp_path / "broken", rows))) == 2
    assert "none of the 4 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "no/such/folder"], "no/such/folder"),
        (["--split", "nowhere"], "nowhere"),
        (["--model_path", "{tmp}"], "no processor there"),
        (["--max_samples", "1"], "a share of 0.5 for SFT holds not even one"),
        (["--output_path", "/proc/nowhere/made"], "cannot write"),
        (["--output_path", "{tmp}/taken"], "is not a saved data set; name another --output_path"),
        (["--longest_edge", "3"], "unrecognized arguments"),
        (["--batch_size", "0"], "--batch_size"),
        # The tiny teacher's most are 19600.
        (["--min_pixels", "30000"], "at least 30000 and at most 19600 pixels"),
        (["--max_pixels", "783", "--min_pixels", "1"], "do not exist; change --min_pixels and --max_pixels"),
        (["--api_base", "http://127.0.0.1:1/v1"], "name the model there with --api_model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, tmp_path, capfd, flags, message):
    (tmp_path / "taken_sft").mkdir()
    assert script(*[flag.replace("{tmp}", str(tmp_path)) for flag in flags]) == 2
    error = capfd.readouterr().err.strip()
    assert "usage:" not in error
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not list(tmp_path.glob("*made*"))


def test_no_repository_is_made_for_a_mistake(script, asked, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(hub, "prepare_repository", made.append)
    monkeypatch.setattr(hub, "push", lambda repo, folders: None)
    assert script("--push_to_hub", "me/boxes", "--dataset_path", "no/such/folder") == 2
    assert script("--push_to_hub", "me/boxes", "--from_journal") == 2
    assert made == []
    assert script("--push_to_hub", "me/boxes") == 0
    assert made == ["me/boxes"]


def test_another_teacher_does_not_mix_with_a_begun_journal(script, asked, tmp_path, capfd):
    assert script() == 0
    assert script("--max_pixels", "10000") == 2
    assert "other settings (max_pixels None there, 10000 here)" in capfd.readouterr().err


def test_nothing_is_left_where_saving_fails(script, asked, tmp_path, monkeypatch, capfd):
    assert script() == 0
    before = content(tmp_path / "made_sft")
    save_to_disk = Dataset.save_to_disk

    def full_disk(self, folder, **options):
        if "grpo" in str(folder):
            raise OSError(28, "No space left on device")
        save_to_disk(self, folder, **options)

    monkeypatch.setattr(Dataset, "save_to_disk", full_disk)
    assert script("--max_samples", "10") == 2
    assert "No space left on device" in capfd.readouterr().err
    assert content(tmp_path / "made_sft") == before  # the halves of the run before still stand
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.journal.jsonl", "made_grpo", "made_sft"]


def test_the_journal_holds_raw_responses(script, asked, tmp_path):
    assert script("--max_samples", "4") == 0
    header, *rows = map(json.loads, (tmp_path / "made.journal.jsonl").read_text().splitlines())
    assert header["settings"]["max_new_tokens"] == 8
    assert [row["teacher_response"] for row in rows[:2]] == [text for text, _ in RESPONSES[:2]]
    assert [row["readable"] for row in rows[2:]] == [True, True]  # of the GRPO part


def test_images_for_grpo_are_decoded_once(script, asked, pictures, monkeypatch):
    def open_and_note(source):
        opened.append(Path(source["path"]).name)
        return open_image(source)

    opened, open_image = [], rows.open_image
    monkeypatch.setattr(rows, "open_image", open_and_note)
    flags = ["--dataset_path", str(pictures)]
    assert script(*flags) == 0
    assert sorted(opened) == ["5.png", "6.png", "7.png", "8.png", "9.png"]
    opened.clear()
    (pictures / "8.png").write_bytes((pictures / "9.png").read_bytes()[:-500])
    (pictures / "6.png").unlink()
    assert script(*flags, "--from_journal") == 3
    assert opened == ["8.png"]  # another file than before; that of 6 is not there
    assert script(*flags, "--from_journal") == 3
    assert opened == ["8.png"]
    # All of them boxed: records of images alone are not responses. Then every row with a response is readable.
    assert script(*flags, "--sft_share", "1.0") == 3
    assert len(asked) == 5 + 3
    assert script(*flags) == 3
    assert opened == ["8.png"]


def test_growth_and_saving_again_from_the_journal(script, asked, tmp_path):
    assert script("--max_samples", "10") == 0
    asked.clear()
    # Neither the teacher nor its settings are needed. 100x100 about (450, 450) at x1 and 200x200 about (900, 100).
    flags = ["--max_samples", "10", "--from_journal", "--model_path", "gone", "--growth", "1", "1", "1", "1", "1"]
    assert script(*flags) == 0
    assert asked == []
    boxes = [row["bbox"] for row in content(tmp_path / "made_sft")]
    assert boxes == [[10, 20, 15, 22], [40, 40, 50, 50], [80, 0, 100, 20], [10, 10, 40, 40], [0, 0, 100, 100]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_samples", "12"], "has no response to 1 of 6 rows"),
        (["--output_path", "{tmp}/other"], "other.journal.jsonl is not a readable journal"),
        (["--growth", "1", "2", "3", "4", "0"], "--growth"),
        (["--num_workers", "-1"], "expected 0 to 256 processes"),
    ],
)
def test_from_journal_refuses(script, asked, tmp_path, capfd, flags, message):
    assert script("--max_samples", "10") == 0
    assert script("--from_journal", *[flag.replace("{tmp}", str(tmp_path)) for flag in flags]) == 2
    assert message in capfd.readouterr().err


def test_a_response_to_another_image_of_that_id_is_none(script, asked, tmp_path, tiny_world):
    rows = content(tiny_world / "train")[:10]
    assert script("--dataset_path", str(save_rows(tmp_path / "before", rows))) == 0
    asked.clear()
    rows[3]["image"], rows[1]["question"] = rows[9]["image"], "What else?"
    assert script("--dataset_path", str(save_rows(tmp_path / "after", rows))) == 0
    assert asked == [rows[1]["question_id"], rows[3]["question_id"]]


@pytest.mark.parametrize("ids", [None, [5, 5, 6, 7]])
def test_a_concatenated_set_without_ids_of_its_own(script, asked, tmp_path, tiny_world, ids, caplog):
    rows = [{key: row[key] for key in ("image", "question", "answers")} for row in content(tiny_world / "train")[:4]]
    if ids:
        rows = [row | {"question_id": question_id} for row, question_id in zip(rows, ids, strict=True)]
    folder = str(save_rows(tmp_path / "concatenated", rows))
    assert script("--dataset_path", folder) == 0
    assert "row numbers" in caplog.text
    assert asked == [0, 1]
    asked.clear()
    assert script("--dataset_path", folder) == 0  # the ids are the same at every run
    assert asked == []
    assert [row["question_id"] for part in ("sft", "grpo") for row in content(tmp_path / f"made_{part}")] == [
        0,
        1,
        2,
        3,
    ]
    assert script("--dataset_path", folder, str(tiny_world), "--output_path", str(tmp_path / "mixed")) == 0
    assert [row["question_id"] for row in content(tmp_path / "mixed_sft")[:2]] == ["concatenated/0", "concatenated/1"]


def test_a_mixture(script, asked, tmp_path, tiny_world):
    rows = content(tiny_world / "train")
    for row in rows[:12]:
        row["answers"] = [] if row is rows[10] else row["answers"]
    signs, plates = save_rows(tmp_path / "signs", rows[:12]), save_rows(tmp_path / "plates", rows[12:])
    assert script("--dataset_path", str(signs), f"{plates}=8") == 0
    sft, grpo = content(tmp_path / "made_sft"), content(tmp_path / "made_grpo")
    assert [row["source"] for row in sft] == ["signs"] * 6 + ["plates"] * 4
    # Of the second half of signs one row has no references: there is nothing to reward its boxes by.
    assert [row["source"] for row in grpo] == ["signs"] * 5 + ["plates"] * 4
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["left_out_of_grpo"] == {"no references": 1, "unreadable images": 0}
    assert sft[0]["question_id"] == f"signs/{rows[0]['question_id']}"
    assert [row["image"]["bytes"] for row in sft[6:]] == [row["image"]["bytes"] for row in rows[12:16]]


def test_saved_sets_are_no_larger_than_their_sources(script, asked, tmp_path, tiny_world):
    def arrow_bytes(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.arrow"))

    assert script() == 0
    made = arrow_bytes(tmp_path / "made_sft") + arrow_bytes(tmp_path / "made_grpo")
    assert made < 1.02 * arrow_bytes(tiny_world / "train")


def test_saved_images_open_as_pictures(script, asked, tmp_path):
    assert script() == 0
    assert load_from_disk(str(tmp_path / "made_sft"))[0]["image"].size[0] > 100


def test_rows_without_references_alone(script, asked, tmp_path, tiny_world, capfd):
    rows = content(tiny_world / "train")[:4]
    for row in rows:
        row["answers"] = []
    folder = str(save_rows(tmp_path / "bare", rows))
    assert script("--dataset_path", folder) == 2
    assert "box them all with --sft_share 1.0" in capfd.readouterr().err
    assert script("--dataset_path", folder, "--sft_share", "1.0") == 0
    assert len(content(tmp_path / "made_sft")) == 4


def test_an_unreadable_image_for_grpo_is_left_out(script, asked, tmp_path, tiny_world, caplog):
    rows = content(tiny_world / "train")[:8]
    rows[6]["image"]["bytes"] = rows[6]["image"]["bytes"][:-500]
    assert script("--dataset_path", str(save_rows(tmp_path / "broken", rows))) == 3
    assert [row["question_id"] for row in content(tmp_path / "made_grpo")] == [
        rows[i]["question_id"] for i in (4, 5, 7)
    ]
    assert str(rows[6]["question_id"]) in caplog.text
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["left_out_of_grpo"] == {"no references": 0, "unreadable images": 1}


def test_report_and_card_lie_beside_the_rows(script, asked, tmp_path):
    assert script("--max_samples", "10") == 0
    report = json.loads((tmp_path / "made_sft/teacher_report.json").read_text())
    assert report["responses"] == {"box": 4, "no list": 1}
    # The areas of RESPONSES sorted, at indices 1 to 4
    assert report["cut_points"] == pytest.approx([0.01, 0.04, 0.09, 1])
    assert report["rows_by_fifth"] == [1, 1, 1, 1, 1]
    with PILImage.open(tmp_path / "made_sft/teacher_report.png") as picture:
        assert picture.size == (1440, 480)  # histogram and one line of five tiles of 240
    card = (tmp_path / "made_sft/README.md").read_text()
    assert "| miniature | miniature (a local folder) | see the source | 5 | 5 |" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "made_grpo/README.md").read_text() == card


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
    assert f"{sum(kept)} of 12 responses are in" in done.stderr  # those of both processes
    assert "6/6" in done.stderr  # the first process's half of the 12 rows
    for part in ("sft", "grpo"):
        assert content(tmp_path / f"two_{part}") == content(tmp_path / f"made_{part}")
    assert [path.name for path in tmp_path.glob("two*.jsonl")] == ["two.journal.jsonl"]


def test_the_next_run_takes_over_what_other_processes_did(script, asked, tmp_path):
    assert script() == 0
    everyone, journal = list(asked), tmp_path / "made.journal.jsonl"
    header, *rows = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([header, *rows[:4]]))
    (tmp_path / "made.rank3.journal.jsonl").write_text("".join([header, *rows[4:10]]))
    asked.clear()
    assert script() == 0
    assert asked == everyone[10:]
    assert not list(tmp_path.glob("*rank*"))


def test_what_a_server_rejected_is_asked_for_again(script, tmp_path, server, hurried, monkeypatch, tiny_world):
    def react(text, times):
        return error(413, "Too large") if any(question in text for question in too_large) else "[0, 0, 28, 28]"

    monkeypatch.setattr(remote, "MOST_REJECTED", 2)
    monkeypatch.setattr(responses, "MOST_REJECTED", 2)
    rows = content(tiny_world / "train")
    for i, row in enumerate(rows):
        row["question"] = f"What is number {i}?"
    # Not three in a row, which would be the server's fault.
    too_large, server.react = {rows[i]["question"] for i in (1, 3, 5, 7, 9)}, react
    flags = ["--api_base", server.url, "--api_model", "qwen", "--api_concurrency", "1"]
    flags += ["--dataset_path", str(save_rows(tmp_path / "numbers", rows))]
    assert script(*flags) == 3
    assert script(*flags) == 3  # the five are asked for again, alone; still rejected
    assert sum(server.asked.values()) == 12 + 5
    assert script(*flags, "--from_journal") == 3
    too_large.remove(rows[9]["question"])
    assert script(*flags) == 3
    assert sum(server.asked.values()) == 12 + 5 + 5
    assert [row["question_id"] for row in content(tmp_path / "made_sft")] == [
        rows[i]["question_id"] for i in (0, 2, 4, 6, 8, 9, 10, 11)
    ]


def test_a_server_is_the_teacher(script, tmp_path, server, hurried):
    def lower_right_quarter(*_) -> str:
        width, height = sizes()[-1]
        return json.dumps({"bbox_2d": [width // 2, height // 2, width, height]})

    def sizes() -> list:
        return [open_url(body["messages"][0]["content"][0]["image_url"]["url"]).size for body in server.bodies]

    server.react = lower_right_quarter
    flags = ["--api_base", server.url, "--api_model", "qwen", "--api_concurrency", "1"]
    flags += ["--max_pixels", "100000", "--max_samples", "6", "--growth", "1", "1", "1", "1", "1"]
    assert script(*flags) == 0
    assert len(sizes()) == 3
    # The server gets images that Qwen2.5-VL's resizing keeps, and its boxes are read in their pixels.
    assert all(width % 28 == height % 28 == 0 and width * height <= 100000 for width, height in sizes())
    assert [row["bbox"] for row in content(tmp_path / "made_sft")] == [[50, 50, 100, 100]] * 3
    assert "Teacher: qwen, greedy" in (tmp_path / "made_sft/README.md").read_text()
