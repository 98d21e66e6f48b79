"""Tiny random checkpoints of the three real classes and a few rows of the miniature world, made once per test run."""

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import open_chromium
from checkouts import make_checkout
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a busy machine must not fail a test
settings.load_profile("unhurried")
if sys.platform == "linux":
    multiprocessing.set_start_method("fork", force=True)  # as `cropvlm.runs.cli.run` does
# Nothing is downloaded, and no test may wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tests are of the CPU's numbers, also on a machine with a GPU, which is hidden here before torch can see it. Those
# marked `gpu` run in a process of their own: CROPVLM_TEST_DEVICE=cuda python3 -m pytest -m gpu
ON_GPU = os.environ.get("CROPVLM_TEST_DEVICE") == "cuda"
if not ON_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    import torch

    if ON_GPU and torch.cuda.is_available():
        return
    reason = "no CUDA GPU here" if ON_GPU else "runs with CROPVLM_TEST_DEVICE=cuda, on a CUDA GPU"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def _tiny(family: str):
    """A fixture: the folder of a model of 1 M random weights with its family's template, SmolVLM's with 64-px tiles."""

    @pytest.fixture(scope="session", name=f"tiny_{family}")
    def folder(checkpoints) -> Path:
        from miniature import tiny_models

        return tiny_models.save(checkpoints / family, *getattr(tiny_models, f"build_{family}")())

    return folder


tiny_smolvlm, tiny_qwen, tiny_llava = map(_tiny, ("smolvlm", "qwen", "llava"))


@pytest.fixture(scope="session")
def lively(tiny_smolvlm, tiny_qwen, tiny_llava, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family whose random weights are large enough that its texts differ from row to row."""
    from steps import load_lively

    folder = tmp_path_factory.mktemp("lively")
    paths = {path.name: path for path in (tiny_smolvlm, tiny_qwen, tiny_llava)}
    for name, path in paths.items():
        for part in load_lively(path):
            part.save_pretrained(folder / name)
    return {name: folder / name for name in paths}


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the `main` of a script in this process, with flags and in an empty folder; its exit code."""
    from cropvlm.runs.cli import run

    monkeypatch.chdir(tmp_path)

    def call(main, *flags) -> int:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            run(main)
        return ended.value.code

    return call


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The bash scripts in a folder of their own, with a stub for python3."""
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium (Debian's chromium and chromium-driver)."""
    driver = open_chromium()
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def published_llava(tiny_llava, tmp_path_factory) -> str:
    """A tiny LLaVA with LLaVA-1.5's published image settings, but for the size: they cut the middle out."""
    folder = shutil.copytree(tiny_llava, tmp_path_factory.mktemp("llava") / "published")
    config = json.loads((folder / "processor_config.json").read_text())
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    config["image_processor"] |= {"do_center_crop": True} | size
    (folder / "processor_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def sft_adapter(tiny_smolvlm, tmp_path_factory):
    """An adapter with random weights and its processor, as train_sft.py leaves them."""
    import torch

    from cropvlm import modeling
    from train_grpo import GRPOPolicyArguments

    folder = tmp_path_factory.mktemp("models") / "sft"
    torch.manual_seed(0)
    lora = GRPOPolicyArguments(lora_r=4, lora_alpha=8, lora_dropout=0.05).lora_config()
    lora.init_lora_weights = False
    modeling.load_policy(str(tiny_smolvlm), lora, torch.float32).save_pretrained(folder)
    modeling.load_processor(str(tiny_smolvlm)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """A `save_to_disk` folder with the splits `train` (24 rows) and `test` (12 rows) of the miniature world."""
    from miniature.world import write_world

    folder = tmp_path_factory.mktemp("datasets") / "miniature"
    write_world(folder, seed=7, train=24, test=12)
    return folder


@pytest.fixture
def hub_copies(tmp_path, monkeypatch) -> None:
    """Local copies of the benchmarks in the Hub's place: 40 training rows of TextVQA, two in every other split."""
    from published import write_hub

    from cropvlm.data.catalog import BENCHMARKS

    folders = write_hub(tmp_path / "copies")
    for name, benchmark in list(BENCHMARKS.items()):
        copy = dataclasses.replace(benchmark, hub_id=str(folders[benchmark.hub_id]))
        monkeypatch.setitem(BENCHMARKS, name, copy)


@pytest.fixture
def server():
    """A `fake_server.FakeServer` on loopback."""
    from fake_server import started

    with started() as fake:
        yield fake


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator[str]:
    """The URL of `transformers serve` on loopback."""
    from servers import TRANSFORMERS_SERVE, serving

    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install -r requirements.txt")
    with serving(tmp_path_factory.mktemp("serve"), *TRANSFORMERS_SERVE, ready="health") as url:
        yield url


@pytest.fixture
def hurried(monkeypatch):
    """For tests with a server: three retries with hardly a wait, the key set, and an end after 5 minutes."""
    from fake_server import KEY, time_limit
    from openai import _base_client

    from cropvlm.runs import server

    monkeypatch.setattr(server, "RETRIES", 3)
    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with time_limit(300):
        yield


@pytest.fixture(scope="session")
def real_smolvlm() -> Path:
    """The real SmolVLM's tokenizer and configurations."""
    return _real_files("SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct")


@pytest.fixture(scope="session")
def real_qwen() -> Path:
    """The real Qwen2.5-VL's tokenizer and the settings of its image processor."""
    return _real_files("Qwen2.5-VL-tokenizer", "Qwen/Qwen2.5-VL-7B-Instruct")


def _real_files(folder: str, repo: str) -> Path:
    """The files of a model: those beside the repository, else those in the Hub cache; a skip where neither has them."""
    from huggingface_hub import try_to_load_from_cache

    beside = Path(__file__).resolve().parents[2] / "shared" / "hub" / folder
    if beside.is_dir():
        return beside
    cached = [try_to_load_from_cache(repo, name) for name in ("tokenizer_config.json", "preprocessor_config.json")]
    if not all(isinstance(path, str) for path in cached):
        pytest.skip(f"the real tokenizer and configurations are neither at {beside} nor, of {repo}, cached")
    return Path(cached[0]).parent


@pytest.fixture(scope="session")
def boxed_world(tiny_world, tmp_path_factory) -> Path:
    """The training split of `tiny_world` with boxes, as create_dataset.py leaves it."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets") / "sft"
    rows = datasets.load_from_disk(str(tiny_world))["train"]
    rows.add_column("bbox", [[i, i + 5, i + 30, 100] for i in range(len(rows))]).save_to_disk(str(folder))
    return folder
