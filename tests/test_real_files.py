"""The real tokenizers are found beside the repository or in the Hub cache."""

from real_files import SMOLVLM, real_files


def test_real_files_beside_the_repository_or_in_the_hub_cache(tmp_path):
    shared, cache = tmp_path / "shared", tmp_path / "cache"
    assert real_files(*SMOLVLM, shared, cache) is None
    repo = cache / "models--HuggingFaceTB--SmolVLM-256M-Instruct"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer_config.json").touch()
    assert real_files(*SMOLVLM, shared, cache) is None  # the tokenizer alone
    (snapshot / "preprocessor_config.json").touch()
    assert real_files(*SMOLVLM, shared, cache) == snapshot
    (shared / SMOLVLM[0]).mkdir(parents=True)
    assert real_files(*SMOLVLM, shared, cache) == shared / SMOLVLM[0]
