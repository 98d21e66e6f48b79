"""Size and make-up of batches."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from cropvlm.modeling import load_model, load_processor
from cropvlm.models import batches
from cropvlm.models.batches import Batches, auto_batch_size, image_cost, plan_batches


def test_batches_hold_rows_of_like_cost_window_by_window(monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 2)
    # Windows of 2 x 2 rows: costs 9 1 9 1 | 5 2 2; equal costs keep their order.
    assert plan_batches([9, 1, 9, 1, 5, 2, 2], 2) == [[1, 3], [0, 2], [5, 6], [4]]


def test_cost_of_an_image_is_its_tiles(tiny_smolvlm):
    assert image_cost(load_processor(str(tiny_smolvlm), 64)) is None  # one 64-px tile whatever the image
    cost = image_cost(load_processor(str(tiny_smolvlm), 128))
    # 2x2, 1x2 and 2x1 tiles, and the whole image each time
    assert [cost(size) for size in [(300, 300), (400, 200), (200, 400)]] == [5, 3, 3]


@pytest.mark.parametrize(
    ("free", "cost", "expected"),
    [
        # SmolVLM-256M in bf16, per token: 2 x 30 layers x 3 heads x 64 + 20 x 576 = 23,040 values, 46,080 bytes.
        # Two prompts of 256 + 2 x 64 tokens: 35 MB a row; half of 130 GiB holds 1,970.
        (130 << 30, 0, 256),
        (4 << 30, 0, 32),  # 60
        # 17 + 17 tiles: 2,176 tokens, 224 MB a row.
        (20 << 30, 34, 32),  # 47
        (1 << 20, 34, 1),
    ],
)
def test_auto_fills_half_of_the_free_memory(real_smolvlm, monkeypatch, free, cost, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free // 4, 140 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free)  # most of what is free is its own cache
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: free // 4)
    config = AutoConfig.from_pretrained(real_smolvlm)
    model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, config=config)
    assert auto_batch_size(model, load_processor(str(real_smolvlm)), [0, cost]) == expected


def test_auto_on_a_cpu(tiny_smolvlm):
    model = load_model(str(tiny_smolvlm), device="cpu")
    assert auto_batch_size(model, load_processor(str(tiny_smolvlm)), [1, 9]) == 32


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CPU = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(CUBLAS), RuntimeError(CPU), RuntimeError("mat1")])
def test_out_of_memory_in_any_words(error):
    def compute(part):
        if len(part) > 2:
            raise error
        return part

    sizes = Batches(4)
    with pytest.raises(RuntimeError, match="mat1") if str(error) == "mat1" else contextlib.nullcontext():
        assert list(sizes.run(compute, [1, 2, 3])) == [1, 2, 3]
        assert sizes.size == 2
