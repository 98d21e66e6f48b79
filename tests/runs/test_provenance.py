"""Identity of models and data: it changes with them and with nothing else."""

import pytest
from huggingface_hub import constants

from cropvlm.runs.provenance import data_settings, fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_model_that_has_changed_has_another_fingerprint(tmp_path, name):
    (tmp_path / "model.safetensors").write_text("x")
    before = fingerprint(str(tmp_path))
    (tmp_path / "boxes.json.journal.jsonl").write_text("x")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / name).write_text("another")
    assert fingerprint(str(tmp_path)) != before


def test_a_hub_id_counts_by_its_commit(tmp_path, monkeypatch):
    """Offline as here by the cached one; tests/test_hub.py asks a Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fingerprint("HuggingFaceTB/SmolVLM-256M-Instruct") is None
    refs = tmp_path / "models--HuggingFaceTB--SmolVLM-256M-Instruct" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("7e3e67edbbed1bf9888184d9df282b700a323964")
    assert fingerprint("HuggingFaceTB/SmolVLM-256M-Instruct") == "7e3e67edbbed1bf9888184d9df282b700a323964"
    assert fingerprint(None) is None
    assert fingerprint("./missing") is fingerprint("a/folder/that/moved") is None


def test_data_settings_tell_rows_apart_by_ids_and_questions():
    source = {"dataset_path": "a/b", "dataset": None, "split": "test", "max_samples": 3}
    rows = {"question_id": [1, 2], "question": ["what?", "who?"]}
    settings = data_settings(source, rows)
    # sha256 of [[1, 2], ["what?", "who?"]] as JSON
    assert settings == {"dataset_path": "a/b", "questions": "6de769b53a38372e", "dataset": None, "split": "test"}
    for other in ({"question_id": ["1", "2"]}, {"question": ["what?", "where?"]}):
        assert data_settings(source, rows | other)["questions"] != settings["questions"]
