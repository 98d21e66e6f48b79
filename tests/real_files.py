"""Where the published tokenizers and configurations lie on this machine, if they do."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "hub"
SMOLVLM = ("SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct")
QWEN = ("Qwen2.5-VL-tokenizer", "Qwen/Qwen2.5-VL-7B-Instruct")


def real_files(folder: str, repo: str) -> Path | None:
    """The files of a model: those beside the repository, else those in the Hub cache; None where neither has them."""
    from huggingface_hub import try_to_load_from_cache  # not before conftest.py has said that it is offline

    if (SHARED / folder).is_dir():
        return SHARED / folder
    names = ("tokenizer_config.json", "preprocessor_config.json")
    cached = [try_to_load_from_cache(repo, name) for name in names]
    return Path(cached[0]).parent if all(isinstance(path, str) for path in cached) else None
