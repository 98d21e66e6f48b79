"""Sending the training sets to the Hub, on a Hub that is played here: what goes there, and what fails early."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard

from cropvlm.errors import UserError
from cropvlm.sets import hub

HUB_CARD = "---\nconfigs:\n- config_name: sft\n  data_files: sft/*.parquet\n---\n"


class PlayedHub:
    """Notes what is called."""

    def __init__(self, monkeypatch, error: Exception | None = None):
        self.calls = []
        load = DatasetCard.load

        def note(name):
            def call(*args, **options):
                self.calls.append((name, *args[:1], options))
                if error:
                    raise error

            return call

        monkeypatch.setattr(hub.HfApi, "create_repo", lambda api, *a, **o: note("create")(*a, **o))
        monkeypatch.setattr(hub.HfApi, "upload_file", lambda api, **o: note("upload")(**o))
        monkeypatch.setattr(Dataset, "push_to_hub", lambda rows, *a, **o: note("rows")(*a, **o))
        monkeypatch.setattr(DatasetCard, "push_to_hub", lambda card, *a, **o: note("card")(str(card), **o))
        monkeypatch.setattr(
            hub.DatasetCard, "load", lambda path: DatasetCard(HUB_CARD) if path == "me/boxes" else load(path)
        )


@pytest.fixture
def folders(tmp_path):
    for part in ("sft", "grpo"):
        Dataset.from_dict({"question": ["What?"]}).save_to_disk(str(tmp_path / part))
        (tmp_path / part / "README.md").write_text("---\ntags:\n- cropvlm\n---\n# The card\n")
    (tmp_path / "sft/teacher_report.json").write_text("{}")
    return {part: tmp_path / part for part in ("sft", "grpo")}


def test_push_sends_both_parts_the_card_and_the_report(monkeypatch, folders):
    played = PlayedHub(monkeypatch)
    hub.push("me/boxes", folders)
    rows = [(repo, options["config_name"]) for name, repo, options in played.calls[:2] if name == "rows"]
    assert rows == [("me/boxes", "sft"), ("me/boxes", "grpo")]
    name, card, options = played.calls[2]
    assert (name, options["repo_type"]) == ("card", "dataset")
    assert "# The card" in card
    assert "config_name: sft" in card  # what the Hub wrote about the files stays
    assert "- cropvlm" in card
    name, options = played.calls[3]
    assert (name, options["path_in_repo"]) == ("upload", "teacher_report.json")


def test_a_repository_that_cannot_be_made_is_told_before_the_work(monkeypatch):
    PlayedHub(monkeypatch, error=OSError("401 Unauthorized"))
    with pytest.raises(UserError, match=r"; log in .* \(401 Unauthorized\)"):
        hub.prepare_repository("me/boxes")


def test_a_push_that_breaks_says_what_to_do(monkeypatch, folders):
    PlayedHub(monkeypatch, error=OSError("connection lost"))
    with pytest.raises(UserError, match=r"cannot be sent to me/boxes; .* \(connection lost\)"):
        hub.push("me/boxes", folders)


def play_card(monkeypatch, card: str) -> PlayedHub:
    """A Hub on which the repository has this card already."""
    played, load = PlayedHub(monkeypatch), hub.DatasetCard.load
    monkeypatch.setattr(hub.DatasetCard, "load", lambda path: DatasetCard(card) if path == "me/boxes" else load(path))
    return played


@pytest.mark.parametrize(
    ("card", "reason"),
    [("---\na: [\n---\n", "expected the node content"), ("---\n- a\n- b\n---\n", "should be a dict")],
)
def test_a_broken_card_there_is_one_line(monkeypatch, folders, card, reason):
    play_card(monkeypatch, card)
    with pytest.raises(UserError, match=rf"^the data set cannot be sent to me/boxes; [^\n(]*\([^\n]*{reason}[^\n]*\)$"):
        hub.push("me/boxes", folders)


@pytest.mark.parametrize("card", ["---\nconfigs: 3\n---\n", "\0"])
def test_an_odd_card_there_is_replaced(monkeypatch, folders, card):
    played = play_card(monkeypatch, card)
    hub.push("me/boxes", folders)
    assert [call[0] for call in played.calls][:3] == ["rows", "rows", "card"]


def test_new_repositories_are_private(monkeypatch):
    played = PlayedHub(monkeypatch)
    hub.prepare_repository("me/boxes")
    assert played.calls == [("create", "me/boxes", {"repo_type": "dataset", "private": True, "exist_ok": True})]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("mit", "mit"),
        (["mit", "cc-by-4.0"], "mit, cc-by-4.0"),
        (["mit", None], "mit"),
        ("mit\n# A heading", "mit # A heading"),
        ({"name": 3}, "name"),
        (3, "see the source"),
        ([], "see the source"),
        (None, "see the source"),
    ],
)
def test_licence_on_the_hub(monkeypatch, declared, expected):
    info = SimpleNamespace(card_data={"license": declared})
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda api, hub_id, timeout: info)
    assert hub.licence("someone/set") == expected


def test_licence_on_a_broken_card(monkeypatch):
    def broken(*_, **__):
        raise TypeError("mapping values are not allowed here")

    monkeypatch.setattr(hub.HfApi, "dataset_info", broken)
    assert hub.licence("someone/set") == "see the source"


def test_licence_without_a_network(tmp_path):
    assert hub.licence(str(tmp_path)) == hub.licence("textvqa") == "see the source"
