"""The training sets on a Hub that is played here: what goes there, and what is told of a failure."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from cropvlm.errors import UserError
from cropvlm.runs.hub import create_repository
from cropvlm.sets import card


@pytest.fixture
def folders(tmp_path):
    for part in ("sft", "grpo"):
        Dataset.from_dict({"question": ["What?"]}).save_to_disk(tmp_path / part)
    return {part: tmp_path / part for part in ("sft", "grpo")}


def play(monkeypatch, error: Exception | None = None) -> list:
    """Replace what talks to the Hub. The list fills with what is called, in order."""
    calls = []

    def note(name):
        def call(_, *args, **options):
            calls.append((name, *args, options))
            if error:
                raise error

        return call

    monkeypatch.setattr(card.HfApi, "create_repo", note("create"))
    monkeypatch.setattr(card.HfApi, "upload_folder", note("files"))
    monkeypatch.setattr(Dataset, "push_to_hub", note("rows"))
    return calls


def test_push_sends_card_and_report_then_both_parts(monkeypatch, folders):
    """`datasets` adds the configurations to the card that it finds there."""
    calls = play(monkeypatch)
    card.push("me/boxes", folders)
    name, options = calls[0]
    assert (name, options["folder_path"], options["repo_type"]) == ("files", folders["sft"], "dataset")
    assert options["allow_patterns"] == ["README.md", "teacher_report.*"]
    assert calls[1:] == [("rows", "me/boxes", {"config_name": part, "split": "train"}) for part in ("sft", "grpo")]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda folders: create_repository("me/boxes", "dataset", True), r"me/boxes on the Hub; log in .* \(401\)"),
        (lambda folders: card.push("me/boxes", folders), r"cannot be sent to me/boxes; .* \(401\)"),
    ],
    ids=["the repository", "the rows"],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, folders, act, message):
    play(monkeypatch, error=OSError("401"))
    with pytest.raises(UserError, match=message):
        act(folders)


def test_licence_on_the_hub_and_without_a_network(monkeypatch, tmp_path):
    assert card.licence(str(tmp_path)) == card.licence("textvqa") == "see the source"
    named = ["task_categories:visual-question-answering", "license:mit", "license:cc-by-4.0"]
    infos = iter([SimpleNamespace(tags=tags) for tags in (named, ["size_categories:10K<n<100K"], None)])
    monkeypatch.setattr(card.HfApi, "dataset_info", lambda api, hub_id, timeout: next(infos))
    assert [card.licence("someone/set") for _ in range(3)] == ["mit, cc-by-4.0", "see the source", "see the source"]
