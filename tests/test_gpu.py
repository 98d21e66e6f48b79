"""On a CUDA GPU: texts, tiles, log-likelihoods, a real out-of-memory; the six scripts are those of test_pipeline.py."""

import pytest
import torch
from pictures import noise
from steps import load_lively

from cropvlm.generation import generate_texts
from cropvlm.modeling import answer_log_likelihood, load_processor
from cropvlm.models.readers import image_reader
from cropvlm.prompts import answerer_messages, cropper_messages

QUESTIONS = ["What is written on the red sign?", "What does the blue plate say?", "Which word is on the page?"]

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("family", ["tiny_smolvlm", "tiny_qwen", "tiny_llava"])
def test_the_texts_are_the_cpus(family, request):
    """In float32 the GPU's sums differ in the last digits only: no greedy choice of these models is that close."""
    messages = [cropper_messages(question) for question in QUESTIONS * 4]
    images = [[noise(64, 64, i)] for i in range(len(messages))]  # as they are: the next test is about resizing
    texts = []
    for device in ("cpu", "cuda"):
        model, processor = load_lively(request.getfixturevalue(family), device, torch.float32)
        texts.append(generate_texts(model, processor, messages, images, max_new_tokens=12))
    assert len(set(texts[0])) > 3
    assert texts[0] == texts[1]


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (40, 90), (1000, 20)])
def test_the_tiles_are_the_cpus_to_two_levels(size, tiny_smolvlm):
    """Ours, cut on the GPU, against those that the processor cuts."""
    processor, image = load_processor(str(tiny_smolvlm), 256), noise(*size, 0)
    tiles = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        reader = image_reader(processor, device)
        tiles.append(reader.tiles([reader.read(image).tensors], device)["pixel_values"].cpu())
    levels = (tiles[0] - tiles[1]).abs() * 127.5  # normalised to -1..1
    assert levels.max() < 2.01
    assert levels.mean() < 0.2


def test_the_log_likelihood_has_bfloat16s_digits(tiny_smolvlm):
    """Against float64 on the CPU. bfloat16 keeps 8 bits: each logit is right to about 1/256 of its size."""
    images = [[noise(300, 200, i), noise(60, 40, i + 10)] for i in range(3)]
    answers = ["stop", "10:30", "coca cola"]
    exact = answer_log_likelihood(*load_lively(tiny_smolvlm, "cpu", torch.float64), images, QUESTIONS, answers)
    rounded = answer_log_likelihood(*load_lively(tiny_smolvlm, "cuda", torch.bfloat16), images, QUESTIONS, answers)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact.double(), rtol=0.02, atol=0.1)


def test_a_real_out_of_memory_halves_the_batch(tiny_smolvlm, caplog):
    """The memory that is left holds some of the rows at a time, not all; every text is the same."""
    model, processor = load_lively(tiny_smolvlm, "cuda", torch.bfloat16)
    messages = [answerer_messages(QUESTIONS[i % 3], 1) for i in range(64)]
    images = [[noise(64, 64, i)] for i in range(64)]
    options = {"max_new_tokens": 4}

    def peak(rows: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        generate_texts(model, processor, messages[:rows], images[:rows], **options)
        return torch.cuda.max_memory_reserved()

    expected = generate_texts(model, processor, messages, images, **options)
    whole, quarter = peak(64), peak(16)
    assert whole > quarter
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((whole + quarter) / 2 / total)
    try:
        texts = generate_texts(model, processor, messages, images, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: continuing with batches of" in caplog.text
    agreement = sum(one == other for one, other in zip(texts, expected, strict=True))
    assert agreement >= 60  # in bfloat16 another batch size may round a close choice the other way
