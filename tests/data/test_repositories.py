"""Which files of a folder or repository are the rows of a split, and what their image paths are relative to."""

import json
import subprocess
import sys
from pathlib import Path

import loopback_hub
import pytest
from published import RED, textvqa, write_repository

from cropvlm.data import repositories
from cropvlm.data.images import open_image
from cropvlm.data.rows import load_rows
from cropvlm.errors import UserError


def write(file: Path, image: str, key: str = "image") -> None:
    """A JSON line that asks about `image`, which it names in the column `key`; the id is the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({key: image, "question": "q", "question_id": file.name, "answers": ["a"]}) + "\n")


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(RED)


def ids(path: object, *arguments, **more) -> list:
    """The ids of the rows, each of which has an image that opens."""
    rows = load_rows(path, *arguments, **more)
    assert all(open_image(row["image"]).size == (8, 6) for row in rows)
    return rows["question_id"][:]


@pytest.mark.parametrize(
    ("table", "key", "image", "lies"),
    [
        ("data.jsonl", "image", "images/train_station.jpg", "images/train_station.jpg"),  # more images than tables
        ("train/metadata.jsonl", "file_name", "0.JPG", "train/0.JPG"),  # beside the table
        ("data/train.jsonl", "image", "../0.jpg", "0.jpg"),
        ("data/train.jsonl", "image", "images/0.jpg", "images/0.jpg"),  # from the root
    ],
)
@pytest.mark.parametrize("folder", ["signs", "[city] *?/train"])
def test_tables_decide_and_images_do_not(tmp_path, folder, table, key, image, lies):
    root = tmp_path / folder
    write(root / table, image, key)
    picture(root / lies)
    for i in range(3):
        picture(root / f"more/test_{i}.jpg")
    assert ids(root) == [Path(table).name]


def test_a_table_that_belongs_to_no_split_is_named(tmp_path, caplog):
    picture(tmp_path / "a.jpg")
    for name in ("streets", "train_stations"):
        write(tmp_path / f"{name}.jsonl", "a.jpg")
    assert ids(tmp_path) == ["train_stations.jsonl"]
    assert (
        "belong to no split and are left out: streets.jsonl; the splits are train: train_stations.jsonl" in caplog.text
    )
    caplog.clear()
    (tmp_path / "train_stations.jsonl").rename(tmp_path / "stations.jsonl")
    assert len(ids(tmp_path)) == 2
    assert caplog.text == ""


def test_a_folder_of_images_may_be_a_link(tmp_path):
    write(tmp_path / "set/data/train.jsonl", "images/0.jpg")
    picture(tmp_path / "disk/0.jpg")
    (tmp_path / "set/data/images").symlink_to(tmp_path / "disk")
    assert ids(tmp_path / "set") == ["train.jsonl"]


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch, caplog):
    write(tmp_path / "train.jsonl", "0.jpg")
    picture(tmp_path / "0.jpg")
    monkeypatch.setattr(repositories, "cache_dir", repositories.cache_dir.__wrapped__)
    monkeypatch.setattr(repositories.datasets.config, "HF_DATASETS_CACHE", "/proc/cache")  # as root, all else can be
    monkeypatch.setattr(repositories.os, "access", lambda path, mode: str(path) != "/proc")
    assert ids(tmp_path) == ["train.jsonl"]
    assert "/proc/cache cannot be written to" in caplog.text


def test_metadata_in_several_folders_of_a_split(tmp_path):
    for folder in ("train/a", "train/b"):
        write(tmp_path / folder / "metadata.jsonl", "0.jpg", "file_name")
        picture(tmp_path / folder / "0.jpg")
    rows = load_rows(tmp_path)
    assert [row["image"]["path"] for row in rows] == [f"{tmp_path}/train/{name}/0.jpg" for name in "ab"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["a.jsonl", "b.csv"], "has tables of several kinds: a.jsonl, b.csv"),
        (["train_a.jsonl", "test_b.jsonl"], "has several splits; name one with --split: train, test"),
        (["a.jpg"], "has no table; expected .csv, "),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, files, problem):
    for file in files:
        write(tmp_path / file, "a.jpg")
    with pytest.raises(UserError, match=problem):
        load_rows(tmp_path)


def test_a_card_that_lists_images_as_well(tmp_path):
    write(tmp_path / "first/metadata.jsonl", "test.jpg", "file_name")
    picture(tmp_path / "first/test.jpg")
    card = "---\nconfigs:\n- config_name: mine\n  data_files:\n  - split: held_out\n    path: first/**\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert ids(tmp_path, "held_out") == ids(f"{tmp_path}:mine") == ["metadata.jsonl"]


def test_rows_that_the_card_counts_and_no_file_holds(tmp_path):
    write_repository(tmp_path, {"default": {"train": ("data/train-00000-of-00002.parquet", textvqa())}})
    assert len(load_rows(tmp_path)) == 2
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("num_examples: 2", "num_examples: 4"))
    with pytest.raises(UserError, match="has 2 rows of train; its card says 4"):
        load_rows(tmp_path)


CLIENT = """
import sys
from cropvlm.data.rows import data_commit, load_rows
from cropvlm.errors import UserError
for path in sys.argv[1:]:
    try:
        print(load_rows(path)["question"][0], data_commit(path))
    except UserError as error:
        print(error)
"""


def test_a_revision_is_what_is_loaded(tmp_path):
    """Offline as well, and an owner whose data sets have moved is told."""

    def ask(*paths: str, **more: str) -> list[str]:
        env = loopback_hub.environment(hub, tmp_path / "home", **more)
        done = subprocess.run([sys.executable, "-c", CLIENT, *paths], env=env, capture_output=True, text=True)
        return done.stdout.splitlines()

    with loopback_hub.started() as hub:
        repository = hub.repositories["datasets", "me/signs"] = loopback_hub.Repository()
        write(tmp_path / "train.jsonl", "a.jpg")
        for question in ("old", "new"):
            text = (tmp_path / "train.jsonl").read_text().replace('"q"', f'"{question}"')
            repository.commit({"train.jsonl": text.encode(), "a.jpg": RED})
        old, new = repository.commits
        assert ask("me/signs", f"me/signs@{old}") == [f"new {new}", f"old {old}"]
        missing, moved = ask("me/signs@v9", "lmms-lab/textvqa")
        assert "me/signs is neither a local folder nor available on the Hub at v9: " in missing
        assert "(it may be published as lmms-lab-encoder/textvqa as well)" in moved
    assert ask("me/signs", f"me/signs@{old}", HF_HUB_OFFLINE="1") == [f"new {new}", f"old {old}"]
