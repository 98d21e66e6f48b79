"""Saving both parts or none, in folders of this script's own, with nothing of the user's replaced."""

import signal
from pathlib import Path

import pytest
from datasets import Dataset, Image
from kills import run_forked
from published import BLUE, RED

from cropvlm.errors import UserError
from cropvlm.sets.flags import parse_source
from cropvlm.sets.saving import output_folders, save_whole


def make_rows(images: list[dict], **columns) -> Dataset:
    ids = list(range(len(images)))
    columns = {"image": images, "question": ["What?"] * len(ids), "question_id": ids} | columns
    return Dataset.from_dict(columns).cast_column("image", Image(decode=False))


@pytest.fixture
def parts() -> dict[str, Dataset]:
    red, blue = ({"bytes": image, "path": None} for image in (RED, BLUE))
    return {"sft": make_rows([red, blue]), "grpo": make_rows([blue])}


FILES = {"sft": {"README.md": b"card", "teacher_report.json": b"{}"}, "grpo": {"README.md": b"card"}}


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def save_source(folder: Path) -> Path:
    make_rows([{"bytes": RED, "path": None}]).save_to_disk(folder)
    return folder


def test_the_fingerprint_depends_on_the_rows_alone(parts, tmp_path):
    # As another history of the same rows gives them: by default each step of it changes the fingerprint.
    copy = {part: rows.add_column("more", [0] * len(rows)).remove_columns("more") for part, rows in parts.items()}
    assert copy["sft"]._fingerprint != parts["sft"]._fingerprint
    for target, rows in (("x", parts), ("y", copy)):
        save_whole(str(tmp_path / target), rows, FILES)
    assert snapshot(tmp_path / "x_sft") == snapshot(tmp_path / "y_sft")
    save_whole(str(tmp_path / "z"), {"sft": parts["sft"].add_column("bbox", [[0, 0, 9, 9]] * 2)}, FILES)
    assert (tmp_path / "z_sft/state.json").read_text() != (tmp_path / "x_sft/state.json").read_text()


def test_images_that_are_files_are_taken_in(tmp_path):
    picture = tmp_path / "private" / "red.png"
    picture.parent.mkdir()
    picture.write_bytes(RED)
    save_whole(str(tmp_path / "x"), {"sft": make_rows([{"bytes": None, "path": str(picture)}])}, {"sft": {}})
    saved = Dataset.load_from_disk(str(tmp_path / "x_sft")).cast_column("image", Image(decode=False))
    assert saved[0]["image"] == {"bytes": RED, "path": "red.png"}
    assert not any(b"private" in file.read_bytes() for file in (tmp_path / "x_sft").iterdir())


def test_what_was_there_stays_where_saving_fails(parts, tmp_path, monkeypatch):
    save_whole(str(tmp_path / "x"), parts, FILES)
    before, save_to_disk = snapshot(tmp_path), Dataset.save_to_disk

    def fails(rows, folder, **options):
        save_to_disk(rows, folder, **options)
        if "grpo" in Path(folder).name:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(Dataset, "save_to_disk", fails)
    with pytest.raises(UserError, match="cannot save"):
        save_whole(str(tmp_path / "x"), {name: rows.select([0]) for name, rows in parts.items()}, FILES)
    assert snapshot(tmp_path) == before


def test_a_killed_run_is_made_good_by_the_next(parts, tmp_path):
    """At each of its file-system events."""

    def save() -> None:
        save_whole(str(tmp_path / "x"), parts, FILES)

    save()
    whole, (_, events) = snapshot(tmp_path), run_forked(save)
    assert events > 20
    for event in range(events):
        assert run_forked(save, event)[0] == -signal.SIGKILL
        whole_ones = {folder.name for folder in tmp_path.iterdir() if (folder / "state.json").exists()}
        assert whole_ones >= {"x_grpo", "x_sft"} or len(whole_ones) >= 3  # nothing is lost
        if event % 4 == 0:
            save()
            assert snapshot(tmp_path) == whole, event
            assert sorted(path.name for path in tmp_path.iterdir()) == ["x_grpo", "x_sft"]


# The source as the user names it and where the parts would go, in a folder with the saved set `x_sft`, its links
# `link` and `up/x_sft`, the saved set `x_grpo/inner` in a saved set, and the folder `up` around the link.
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("{tmp}/x_sft", "up/../x"),
        ("link=0.5", "x"),
        ("x_grpo/inner", "x"),  # the source lies in what would be replaced
        ("x_sft", "x_sft/y"),  # the parts would lie in the source
    ],
)
def test_an_output_that_is_a_source(tmp_path, monkeypatch, source, target):
    save_source(tmp_path / "x_sft")
    save_source(tmp_path / "x_grpo")
    save_source(tmp_path / "x_grpo/inner")
    (tmp_path / "link").symlink_to("x_sft")
    (tmp_path / "up").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = [parse_source(source.format(tmp=tmp_path))]
    with pytest.raises(UserError, match="is the same folder|one lies in the other|would be lost"):
        output_folders(target.format(tmp=tmp_path), sources)


def test_an_output_that_would_be_lost(tmp_path):
    (tmp_path / "x_sft").symlink_to(save_source(tmp_path / "elsewhere"))
    (save_source(tmp_path / "y_sft") / "notes.txt").write_text("mine")
    (tmp_path / "z_grpo").mkdir()
    told = {
        "x": "x_sft is a symbolic link",
        "y": r"y_sft holds notes\.txt",
        "z": "z_grpo exists and is not a saved data set",
        "x" * 300: "File name too long",
    }
    for name, message in told.items():
        with pytest.raises(UserError, match=message):
            output_folders(str(tmp_path / name), [])


def test_outputs_beside_their_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "x")
    save_source(tmp_path / "x_sft")  # of an earlier run; `train_sft.py` may have cached something there
    (tmp_path / "x_sft/cache-0123.arrow").touch()
    sources = [parse_source("x"), parse_source("textvqa=5"), parse_source("someone/x_sft")]
    assert output_folders("x", sources) == {"sft": Path("x_sft"), "grpo": Path("x_grpo")}
