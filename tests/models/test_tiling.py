"""Tiles that are cut on the model's device, against those of the processor."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto import image_processing_auto

from cropvlm.encoding import encode_images, merge, model_inputs, prepare
from cropvlm.modeling import load_model, load_processor
from cropvlm.models import tiling as tiling_module
from cropvlm.models.readers import image_reader
from cropvlm.models.tiling import cut_tiles, tiling_of
from cropvlm.prompts import answerer_prompt

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # asked for by name only: nothing here is moved there
QUESTION = "What is written on the red sign?"
SIZES = [(300, 200), (64, 64), (40, 90), (1, 1), (1000, 20), (129, 128)]


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft noise, as a photograph is softer than noise."""
    levels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=[64, 128, 256])
def processor(request, tiny_smolvlm):
    """Tiles of 64 px: one; up to 2x2 and the whole; up to 4x4 and the whole."""
    return load_processor(str(tiny_smolvlm), longest_edge=request.param)


def the_image(prepared):
    """The tensors of the only image."""
    (image,) = prepared.images.values()
    return image.tensors


@pytest.mark.parametrize("by_pil", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_tiles_are_the_processors_to_two_levels(size, by_pil, processor, tiny_smolvlm, monkeypatch):
    """torchvision's LANCZOS has weights of 16 bits, ours of 24: a level may differ in each of two resizes.

    Where torchvision lacks LANCZOS, the processor resizes with PIL.
    """
    if by_pil:
        lanczos = image_processing_auto._LANCZOS_IMAGE_PROCESSORS
        monkeypatch.setattr(image_processing_auto, "DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS", lanczos)
        processor = load_processor(str(tiny_smolvlm), longest_edge=processor.image_processor.size["longest_edge"])
    assert type(processor.image_processor).__name__.endswith("Pil") == by_pil
    prompts = [answerer_prompt(QUESTION, [scene(*size)])]
    theirs = prepare(processor, prompts)
    ours = prepare(processor, prompts, reader=image_reader(processor, GPU))
    assert ours.input_ids == theirs.input_ids
    given, expected = the_image(ours), the_image(theirs)["pixel_values"]
    tiles = ours.tiles([given], CPU)["pixel_values"]
    levels = (tiles - expected).abs() * 127.5  # normalised to -1..1
    assert tiles.shape == expected.shape
    assert levels.max() < 2.01
    assert levels.mean() < 0.05
    assert next(iter(ours.images.values())).values == tiles.numel()


def test_a_processor_that_does_not_split_keeps_to_one_tile(tiny_smolvlm):
    processor = load_processor(str(tiny_smolvlm), longest_edge=256)
    processor.image_processor.do_image_splitting = False
    ours = prepare(processor, [answerer_prompt(QUESTION, [scene(300, 200)])], reader=image_reader(processor, GPU))
    tiles = ours.tiles([the_image(ours)], CPU)["pixel_values"]
    assert (*tiles.shape, next(iter(ours.images.values())).values) == (1, 1, 3, 64, 64, 3 * 64 * 64)


def test_images_are_cut_alike_alone_together_and_grouped_by_size_as_on_a_gpu(processor, monkeypatch):
    """Together, the matrices of all of them are made at once."""
    tiling = tiling_of(processor, GPU)
    images = [torch.from_numpy(np.array(scene(*size))) for size in [*SIZES, SIZES[0]]]
    alone = torch.cat([cut_tiles(tiling, [image]) for image in images])
    channels_first = [image.permute(2, 0, 1) for image in images]
    options = {"do_convert_rgb": False, "return_tensors": "pt", "disable_grouping": False}
    grouped = tiling([channels_first], **options)["pixel_values"].transpose(0, 1)
    made, make = [], tiling_module.resize_matrices
    monkeypatch.setattr(tiling_module, "resize_matrices", lambda *args: made.append(make(*args)) or made[-1])
    assert torch.equal(cut_tiles(tiling, images), alone)
    assert torch.equal(grouped, alone)
    assert len(made) == 1
    assert tiling_module._MATRICES.get() is None  # else they would stay on the GPU
    # A batch of rows from workers shares it: its mean and deviation are copied to the GPU once, not once a row.
    assert tiling_of(processor, GPU) is tiling
    prepared = prepare(processor, [answerer_prompt(QUESTION, [scene(9, 9)])], reader=image_reader(processor, GPU))
    assert pickle.loads(pickle.dumps(prepared)).tiles.__self__ is tiling


@torch.inference_mode()
def test_batches_of_rows_are_merged_and_encoded_alike(processor, tiny_smolvlm):
    model = load_model(str(tiny_smolvlm), device="cpu")
    images = [scene(*size, seed=i) for i, size in enumerate(SIZES)]
    rows = [[answerer_prompt(QUESTION, [images[i], images[(i + 1) % 6]])] for i in range(6)]
    reader = image_reader(processor, GPU)
    theirs = merge([prepare(processor, row) for row in rows])
    ours = merge([prepare(processor, row, reader=reader) for row in rows])
    assert ours.input_ids == theirs.input_ids
    assert len(ours.images) == len(theirs.images) == 6  # each is shown by two rows
    shown = []
    for prepared in (ours, theirs):
        features = encode_images(model, prepared.images, prepared.tiles)
        shown.append(torch.cat([features[key] for keys in prepared.shown for key in keys]))
    torch.testing.assert_close(*shown, rtol=0, atol=0.05)
    logits = [model(**model_inputs(model, prepared, 2)).logits[:, -1] for prepared in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=0, atol=0.05)
