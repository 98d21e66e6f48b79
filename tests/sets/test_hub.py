"""The training sets and a Hub that refuses, and the licences that it tells; tests/test_hub.py has what goes there."""

from types import SimpleNamespace

import pytest

from cropvlm.errors import UserError
from cropvlm.sets import card


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("401")

    monkeypatch.setattr(card.HfApi, "upload_folder", refuse)
    with pytest.raises(UserError, match=r"cannot be sent to me/boxes; .* \(401\)"):
        card.push("me/boxes", {"sft": "folder"})


def test_licence_on_the_hub_and_without_a_network(monkeypatch, tmp_path):
    assert card.licence(str(tmp_path)) == card.licence("textvqa") == "see the source"
    named = ["task_categories:visual-question-answering", "license:mit", "license:cc-by-4.0"]
    infos = iter([SimpleNamespace(tags=tags) for tags in (named, ["size_categories:10K<n<100K"], None)])
    monkeypatch.setattr(card.HfApi, "dataset_info", lambda api, hub_id, timeout: next(infos))
    assert [card.licence("someone/set") for _ in range(3)] == ["mit, cc-by-4.0", "see the source", "see the source"]
