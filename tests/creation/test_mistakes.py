"""create_dataset.py: mistakes by the user are one line, and nothing is lost or left behind."""

import pytest

from cropvlm.runs import hub
from cropvlm.sets import card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "no/such/folder"], "no/such/folder"),
        (["--model_path", "{tmp}"], "no processor there"),
        (["--output_path", "/proc/nowhere/made"], "cannot write"),
        (["--output_path", "{tmp}/taken"], "is not a saved data set; name another --output_path"),
        (["--dataset_path", "{tmp}"], "are the same folder, or one lies in the other; name another --output_path"),
        # The tiny teacher's most are 19600.
        (["--min_pixels", "30000"], "at least 30000 and at most 19600 pixels"),
        (["--need_threshold", "1"], "--need_threshold: of the labels, which need --label_need"),
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
    monkeypatch.setattr(hub, "create_repository", lambda *repo, private: made.append((*repo, private)))
    monkeypatch.setattr(card, "push", lambda repo, folders: None)
    assert script("--push_to_hub", "me/boxes", "--dataset_path", "no/such/folder") == 2
    assert script("--push_to_hub", "me/boxes", "--from_journal") == 2
    assert made == []
    assert script("--push_to_hub", "me/boxes") == 0
    assert made == [("me/boxes", "dataset", True)]  # private
