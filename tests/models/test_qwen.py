"""Images as Qwen2.5-VL sees them match its authors' qwen_vl_utils, over sizes, strips and alpha channels."""

import numpy as np
import pytest
import torch
from pictures import as_authors_show, noise
from qwen_vl_utils import fetch_image, smart_resize

from cropvlm.crops import widen_strip
from cropvlm.errors import UserError
from cropvlm.modeling import load_processor
from cropvlm.models.qwen import PixelBudget, qwen_image, qwen_size
from cropvlm.models.readers import ProcessorReader

OWN = (56 * 56, 28 * 28 * 16384)  # Qwen2.5-VL's own bounds, in pixels
SIZES = [(640, 480), (33, 47), (1, 1), (102, 38), (1300, 13), (13, 1300), (1000, 10), (28, 28), (1999, 1001)]
SIZES += [(1500, 10), (10, 2000), (30, 6000), (9000, 60)]  # strips of 150:1 and 200:1, which theirs take


@pytest.mark.parametrize("size", [(4100, 20), (1, 3000)])
def test_a_strip_that_theirs_rejects_is_widened_first(size):
    image = noise(*size)
    with pytest.raises(ValueError, match="aspect ratio"):
        fetch_image({"image": image})
    ours = qwen_image(image, *OWN)
    theirs = fetch_image({"image": image.resize(widen_strip(size)), "min_pixels": OWN[0], "max_pixels": OWN[1]})
    assert np.array_equal(np.asarray(theirs), np.asarray(ours))


def test_bounds_that_no_image_fits():
    assert PixelBudget().within(None, 4000) == (3136, 4000, 28)
    assert PixelBudget().within(1, 784) == (1, 784, 28)  # one patch of 28x28
    for bounds in [(1, 783), (None, 784), (30_000, 19_600)]:
        with pytest.raises(UserError, match="pixels do not exist"):
            PixelBudget().within(*bounds)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [{}, {"min_pixels": 112 * 112}, {"min_pixels": 784, "max_pixels": 12544}])
def test_the_processor_gets_these_pixels(size, pixels, tiny_qwen):
    """Through the processor with its bounds set: the tensors of theirs, and one size that boxes are mapped by."""
    processor = load_processor(str(tiny_qwen), **pixels)
    bounds = processor.image_processor.size
    least, most = bounds["shortest_edge"], bounds["longest_edge"]
    tensors = ProcessorReader(processor).read(noise(*size)).tensors
    (_, high, wide) = tensors["image_grid_thw"][0].tolist()
    assert (wide * 14, high * 14) == qwen_size(size, least, most)
    if 0 in smart_resize(size[1], size[0], 28, least, most):
        return
    images = as_authors_show(processor, [noise(*size)])
    plain = processor(text=[processor.image_token], images=[images], return_tensors="pt", do_resize=False)
    assert torch.equal(plain["pixel_values"], tensors["pixel_values"])
