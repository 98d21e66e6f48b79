"""benchmarks/host_work.py and preparation.py: exact counts of what the host launches and hands over."""

import sys
import time
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize(
    ("longest_edge", "tiles", "levels"),
    [
        # Of a 1024x768 image in bfloat16: at 512 px one tile; at 2048 px 4 x 3 tiles and the whole image.
        # As levels: shrunk to 512 x 384 px, and as it is.
        (512, 1 * 3 * 512 * 512 * 2, 512 * 384 * 3),
        (2048, 13 * 3 * 512 * 512 * 2, 1024 * 768 * 3),
    ],
)
def test_bytes_handed_over(longest_edge, tiles, levels):
    import preparation
    import torch

    from cropvlm.models.tiling import tiling_of

    processor = preparation.make_processor(longest_edge)
    ((prompt,),) = preparation.rows_of_images([Image.new("RGB", (1024, 768))])
    way = {"tiles": None, "levels": tiling_of(processor, torch.device("cuda"))}
    sizes = {}
    for name, tiling in way.items():
        sizes[name] = preparation.size_of(preparation.prepare(processor, [prompt], torch.bfloat16, tiling))
    assert sizes == {"tiles": tiles, "levels": levels}


@pytest.mark.slow
def test_operations_of_a_step():
    """A micro-step costs the same number of operations whatever it holds, so TRL's grow with the prompts of a step."""
    import host_work

    one = {way: host_work.step(way, 1, 512)[1] for way in ("trl", "filled")}
    two = {way: host_work.step(way, 2, 512)[1] for way in ("trl", "filled")}
    assert one["filled"] < one["trl"]
    assert two["filled"] - one["filled"] < 0.25 * (two["trl"] - one["trl"])


def test_a_worker_prepares_the_next_rows_while_the_model_sleeps(tmp_path, tiny_smolvlm, monkeypatch):
    """The model returns only when the next row has been opened, which its own process cannot do meanwhile."""
    import torch

    from cropvlm import modeling
    from cropvlm.generation import generate_rows
    from cropvlm.prompts import cropper_messages

    class Rows:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> list:
            (tmp_path / str(i)).touch()
            return [(cropper_messages("What?"), [Image.new("RGB", (64, 48), (i, 0, 0))])]

        def image_sizes(self, i: int) -> list:
            return [(64, 48)]

    processor = modeling.load_processor(str(tiny_smolvlm), 64)
    model = modeling.load_model(str(tiny_smolvlm), device=torch.device("cpu"), dtype=torch.float32)
    asked = []

    def sleep(input_ids: torch.Tensor, **options) -> torch.Tensor:
        asked.append(len(asked))
        end = time.monotonic() + 60
        while asked[-1] < 2 and not (tmp_path / str(asked[-1] + 1)).exists():
            assert time.monotonic() < end, "nothing was prepared meanwhile"
            time.sleep(0.01)
        return input_ids

    monkeypatch.setattr(model, "generate", sleep)
    options = {"max_new_tokens": 1, "batch_size": 1, "num_workers": 1}
    assert dict(generate_rows(model, processor, Rows(), **options)) == {0: [""], 1: [""], 2: [""]}
