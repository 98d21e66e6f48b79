"""Files that a training run leaves behind: whole or not at all, wherever it is killed; on a full disk; on the Hub."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from kills import run_forked

import train_sft
from cropvlm.errors import UserError
from cropvlm.trainers import results as saving
from cropvlm.trainers.checkpoints import RECORD, read_record, write_record
from cropvlm.trainers.settings import PolicyArguments

RUN = {"settings": {"seed": 1}, "contents": {"base_model": "checksum"}, "training": {}}
OTHER = RUN | {"settings": {"seed": 0}}


@pytest.fixture(scope="module")
def trainer(tiny_smolvlm, boxed_world, tmp_path_factory):
    """An SFT trainer that has yet to be trained."""
    policy = PolicyArguments(base_model=str(tiny_smolvlm), dataset_path=str(boxed_world), longest_edge=64, lora_r=4)
    args = train_sft.SFTArguments(output_dir=str(tmp_path_factory.mktemp("output")), report_to="none", use_cpu=True)
    return train_sft.make_trainer(args, policy)


def contents(folder: Path) -> dict[str, bytes]:
    """Contents of its files, except those that name the folder or come before the training."""
    names = (RECORD, "training_args.bin", "README.md")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in names]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def save_and_merge(trainer, folder: Path) -> None:
    saving.save_result(trainer, RUN)
    saving.add_merged(folder, torch.float32)


def loads(folder: Path) -> bool:
    """Whether a loader would take the folder for a model, of one kind or the other."""
    return any((folder / name).exists() for name in ("adapter_model.safetensors", "model.safetensors"))


@pytest.mark.slow
def test_a_result_is_whole_wherever_its_saving_is_killed(trainer, tmp_path, monkeypatch):
    """At each of its file-system events, over another run's: not finished, and saved again; or finished, and whole.

    Whoever loads the folder in between finds the one model or the other, or none.
    """

    def save(folder: Path, kill_at: int | None = None) -> tuple[int, int]:
        monkeypatch.setattr(trainer.args, "output_dir", str(folder))
        return run_forked(lambda: save_and_merge(trainer, folder), kill_at)

    def prepare(folder: Path) -> Path:
        shutil.copytree(expected, folder)
        (folder / "adapter_model.safetensors").write_bytes(b"the weights of another run")
        (folder / "merged" / "model.safetensors").write_bytes(b"the merged weights of another run")
        write_record(folder, OTHER, [Path("adapter_model.safetensors")])
        (folder / saving.UNFINISHED).mkdir()
        (folder / saving.UNFINISHED / "stale.bin").write_bytes(b"of the run that was killed")
        return folder

    expected = tmp_path / "expected"
    assert save(expected)[0] == 0
    whole = contents(expected)
    assert {"adapter_model.safetensors", "adapter_config.json", "merged/model.safetensors"} <= whole.keys()
    assert read_record(expected)["settings"] == RUN["settings"]
    unmerged = {name: content for name, content in whole.items() if not name.startswith("merged/")}
    points = save(prepare(tmp_path / "count"))[1]
    assert points > 20
    assert contents(tmp_path / "count") == whole
    for point in range(points):
        folder = prepare(tmp_path / f"killed-{point}")
        assert save(folder, point)[0] == -signal.SIGKILL
        record = read_record(folder)
        finished = record is not None and record["settings"] == RUN["settings"]
        weights = whole["adapter_model.safetensors"]
        if finished or (loads(folder) and (folder / "adapter_model.safetensors").read_bytes() == weights):
            held = contents(folder)
            assert {name: held.get(name) for name in unmerged} == unmerged, point
        if (folder / "merged").exists() and finished:
            merged = {name: held for name, held in contents(folder).items() if name.startswith("merged/")}
            assert merged == {name: held for name, held in whole.items() if name.startswith("merged/")}, point
        if point % 5 == 0:
            assert save(folder)[0] == 0
            assert contents(folder) == whole, point
            assert read_record(folder)["settings"] == RUN["settings"]
            assert not [*folder.glob(".*"), *folder.glob("_*")], point
        shutil.rmtree(folder)


def test_the_merged_model_and_the_card_may_go_or_change(trainer, tmp_path, monkeypatch):
    """The one can be made again, the other is edited on the Hub."""
    monkeypatch.setattr(trainer.args, "output_dir", str(tmp_path))
    save_and_merge(trainer, tmp_path)
    merged = contents(tmp_path / "merged")
    (tmp_path / "README.md").write_text("edited")
    shutil.rmtree(tmp_path / "merged")
    assert read_record(tmp_path) is not None
    saving.add_merged(tmp_path, torch.float32)
    assert contents(tmp_path / "merged") == merged
    assert not (tmp_path / saving.UNFINISHED).exists()


def test_the_figures_are_those_of_the_whole_run():
    """Not the sums over the time since the last resume."""
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.23456, "text": "x"}, {"step": 2, "train_loss": 0.0}]
    assert saving.latest_figures(log) == {"loss": "1.235"}


def test_the_result_is_pushed_without_checkpoints(monkeypatch):
    sent = []
    made = lambda self, name, exist_ok, **options: SimpleNamespace(repo_id=exist_ok and f"me/{name}")  # noqa: E731
    monkeypatch.setattr(HfApi, "create_repo", made)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: sent.append(options))
    args = SimpleNamespace(hub_model_id=None, output_dir="m/sft_512", hub_private_repo=None, hub_revision="a_branch")
    saving.push(args, saving.create_repo(args))
    (upload,) = sent
    assert (upload["repo_id"], upload["folder_path"], upload["revision"]) == ("me/sft_512", "m/sft_512", "a_branch")
    assert set(upload["ignore_patterns"]) == {"_*", "checkpoint-*", ".*"}


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    args = SimpleNamespace(hub_model_id="us/cropper", output_dir="m", hub_private_repo=None, hub_revision=None)

    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    message = r"^m is whole, but cannot be pushed to us/cropper on the Hub.* \(no route to host\)$"
    with pytest.raises(UserError, match=message):
        saving.push(args, "us/cropper")
    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"^cannot make or reach .* us/cropper on the Hub.* \(no route to host\)$"):
        saving.create_repo(args)
