import numpy as np
import pytest
import torch
from pictures import QUESTION, Pairs, as_authors_show, count_tiles, noise, pair
from steps import load_lively

from cropvlm import generation
from cropvlm.encoding import chat_text, encode_images, merge, prepare
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.generation import generate_rows, generate_texts, greedy
from cropvlm.modeling import load_processor
from cropvlm.models import batches
from cropvlm.models.readers import image_key
from cropvlm.prompts import answerer_messages


@pytest.fixture(scope="module", params=["tiny_smolvlm", "tiny_qwen", "tiny_llava"])
def vlm(request):
    return load_lively(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def smolvlm(tiny_smolvlm):
    return load_lively(tiny_smolvlm)


def plain_inputs(processor, prompts):
    """The processor's own way, which preprocesses a shared image once per prompt."""
    texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in prompts]
    images = [as_authors_show(processor, images) for _, images in prompts]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def test_a_shared_image_is_preprocessed_once_a_row_and_encoded_once_a_batch(smolvlm, monkeypatch):
    model, processor = smolvlm
    tiles, images = count_tiles(monkeypatch, model), []
    kind, preprocess = type(processor.image_processor), type(processor.image_processor).preprocess
    note = lambda self, given, **kwargs: images.append(given) or preprocess(self, given, **kwargs)  # noqa: E731
    monkeypatch.setattr(kind, "preprocess", note)
    # As data sets have it: each row holds its own copy of the image. The last one has an invalid box.
    rows = [(noise(300, 200), noise(50, 50, seed=i)) for i in (1, 2, 2)] + [(noise(300, 200),) * 2]
    texts = dict(generate_rows(model, processor, Pairs(rows), max_new_tokens=6, batch_size=4))
    # 300x200 and its two crops, one 64-px tile each; by row two images for the three that its prompts show, or one.
    assert (tiles, len(images)) == ([3], 7)
    for i, row in enumerate(rows):
        ((_, alone),) = generate_rows(model, processor, Pairs([row]), max_new_tokens=6)
        assert texts[i] == alone


@torch.inference_mode()
@pytest.mark.parametrize(
    ("most", "calls"),
    [(0, [3, 5, 5, 3]), (12, [8, 8]), (13, [13, 3])],  # an image at least
)
def test_many_tiles_are_encoded_in_portions(smolvlm, tiny_smolvlm, monkeypatch, most, calls):
    model, _ = smolvlm
    processor = load_processor(str(tiny_smolvlm), longest_edge=128)
    sizes = [(128, 64), (100, 100), (90, 90), (64, 128)]  # 3, 5, 5 and 3 tiles of 64 px
    parts = [prepare(processor, [(answerer_messages(QUESTION, 1), [noise(*size)])]) for size in sizes]
    merged = merge(parts)
    whole = encode_images(model, merged.images, merged.tiles)
    tiles = count_tiles(monkeypatch, model)
    monkeypatch.setitem(batches.ENCODED_AT_ONCE, "cpu", most * 3 * 64 * 64)
    features = encode_images(model, merged.images, merged.tiles)
    assert tiles == calls
    assert features.keys() == whole.keys()
    for key, image in features.items():
        torch.testing.assert_close(image, whole[key], rtol=0, atol=1e-5)


def test_images_of_the_same_bytes_but_another_shape_are_two():
    tall, wide = np.zeros((6, 2, 3), np.uint8), np.zeros((2, 6, 3), np.uint8)
    assert image_key(tall) != image_key(wide)
    assert image_key(tall) == image_key(tall.copy())


def test_texts_do_not_depend_on_the_batch_size(vlm):
    # Two questions an image, a few crops alike.
    rows = [(noise(200 + 9 * (i // 2), 150, seed=i // 2), noise(40 + i, 30, seed=100 + i // 3)) for i in range(8)]
    results = {}
    for batch_size in (1, 3, 8, "auto"):
        texts = dict(generate_rows(*vlm, Pairs(rows), max_new_tokens=6, batch_size=batch_size))
        results[batch_size] = [texts[i] for i in range(8)]
    assert results[1] == results[3] == results[8] == results["auto"]
    assert len({text for texts in results[1] for text in texts}) > 8


def test_texts_are_those_of_generate_on_single_prompts(vlm):
    model, processor = vlm
    rows = [(noise(200, 150, seed=i), noise(40, 30, seed=100 + i)) for i in range(3)]
    texts = dict(generate_rows(model, processor, Pairs(rows), max_new_tokens=6, batch_size=2))
    for i, row in enumerate(rows):
        for prompt, text in zip(pair(*row), texts[i], strict=True):
            inputs = plain_inputs(processor, [prompt])
            output = model.generate(**inputs, generation_config=greedy(model, processor, 6))
            assert processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == text


def test_an_unreadable_image_is_that_rows_own_matter(smolvlm):
    good = (noise(200, 150), noise(40, 30, seed=1))
    rows = [good, None, good, None, None]
    outcomes = dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=4, batch_size=3))
    assert outcomes[0] == outcomes[2]
    assert [isinstance(outcomes[i], UnreadableImage) for i in range(5)] == [False, True, False, True, True]


def test_done_rows_are_left_out_but_batches_stay_the_same(smolvlm, monkeypatch):
    model, processor = smolvlm
    sizes = []
    original = generation._generate_batch
    monkeypatch.setattr(generation, "_generate_batch", lambda *args: sizes.append(len(args[2])) or original(*args))
    rows = [(noise(200, 150, seed=i), noise(40, 30)) for i in range(6)]
    outcomes = generate_rows(model, processor, Pairs(rows), max_new_tokens=2, batch_size=2, done=[0, 1, 2])
    # Batches (0, 1), (2, 3), (4, 5): the first is done, the second is generated whole, for row 3 alone.
    assert [i for i, _ in outcomes] == [3, 4, 5]
    assert sizes == [2, 2]


def limit_memory(model, fits, monkeypatch):
    """Let `generate` fail where inputs do not fit; return the number of prompts of each call."""
    calls, generate = [], model.generate

    def limited(**kwargs):
        calls.append(len(kwargs["input_ids"]))
        if not fits(kwargs["input_ids"]):  # a CPU's own words
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", limited)
    monkeypatch.setattr(batches, "CPU_BATCH_SIZE", 8)
    return calls


def test_auto_halves_the_batch_on_out_of_memory(smolvlm, monkeypatch):
    rows = [(noise(200, 150, seed=i), noise(40, 30)) for i in range(7)]
    expected = dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=2))
    calls = limit_memory(smolvlm[0], lambda ids: len(ids) <= 5, monkeypatch)
    assert dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=2)) == expected
    # Two prompts a row: 7 rows fail as one batch of 8 and as 4 + 3, then pass as 2 + 2 + 2 + 1.
    assert calls == [14, 8, 4, 4, 4, 2]
    with pytest.raises(UserError, match="out of memory at batch size 4"):  # a fixed one is not halved
        list(generate_rows(*smolvlm, Pairs(rows[:4]), max_new_tokens=2, batch_size=4))


def test_a_row_too_large_for_memory_fails_alone(smolvlm, monkeypatch, caplog):
    """Row 2 does not fit even alone; the others do, also by 8, and get the texts of an undisturbed run."""
    rows = [(noise(200, 150, seed=i), noise(40, 30)) for i in range(12)]
    rows[2] = (*rows[2], "What " * 180)
    expected = dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=2))
    calls = limit_memory(smolvlm[0], lambda ids: ids.shape[1] <= 250, monkeypatch)
    outcomes = dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=2))
    failed = outcomes.pop(2)
    assert isinstance(failed, batches.BatchTooLarge)
    assert "out of memory with this row alone" in str(failed)
    assert outcomes == {i: texts for i, texts in expected.items() if i != 2}
    # Two prompts a row: 8 rows, 4, 2 (0 and 1 pass), 2, 1 (row 2 fails), then 8 again: the 5 left, and the last 4.
    assert calls == [16, 8, 4, 4, 2, 10, 8]


def test_a_question_longer_than_the_context_fails_alone(smolvlm):
    rows = [(noise(200, 150), noise(40, 30)), (noise(200, 150), noise(40, 30), "what " * 20_000)]
    outcomes = dict(generate_rows(*smolvlm, Pairs(rows), max_new_tokens=2))
    assert isinstance(outcomes[0], list)
    assert "tokens; the model's context holds 1024" in str(outcomes[1])


@pytest.mark.parametrize("error", [MemoryError(), ValueError("bad\nmatrix")])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_row_that_cannot_be_prepared_fails_alone(smolvlm, error, num_workers, caplog):
    class Failing(Pairs):
        def __getitem__(self, i):
            if i == 1:
                raise error
            return super().__getitem__(i)

    rows = Failing([(noise(200, 150, seed=i), noise(40, 30)) for i in range(3)])
    with caplog.at_level("DEBUG", logger="cropvlm"):
        outcomes = dict(generate_rows(*smolvlm, rows, max_new_tokens=2, num_workers=num_workers))
    assert [isinstance(outcomes[i], ValueError) for i in range(3)] == [False, True, False]
    assert str(outcomes[1]).startswith(f"cannot be prepared: {type(error).__name__}")
    assert "\n" not in str(outcomes[1])
    assert "Traceback" in caplog.text  # for --verbose


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 50), (3000, 1), (1, 3000)])
def test_images_of_any_size_get_a_text(vlm, size):
    (text,) = generate_texts(*vlm, [answerer_messages(QUESTION, 1)], [[noise(*size)]], max_new_tokens=2)
    assert isinstance(text, str)


def test_a_text_alone_and_beside_images_gets_what_generate_writes(vlm):
    messages, images = [answerer_messages(QUESTION, shown) for shown in (0, 1)], [[], [noise(60, 40)]]
    alone = [generate_texts(*vlm, messages[i : i + 1], images[i : i + 1], max_new_tokens=6)[0] for i in (0, 1)]
    assert alone == generate_texts(*vlm, messages, images, max_new_tokens=6)
    text = vlm[1].apply_chat_template(messages[0], add_generation_prompt=True)
    inputs = vlm[1].tokenizer(text, return_tensors="pt")
    output = vlm[0].generate(**inputs, generation_config=greedy(*vlm, 6))
    assert vlm[1].decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == alone[0]


def test_a_question_cannot_smuggle_in_a_placeholder(smolvlm):
    _, processor = smolvlm
    messages = answerer_messages(f"What does {processor.image_token} mean?", 1)
    assert chat_text(processor, messages).count(processor.image_token) == 1


def test_greedy_search_ignores_the_checkpoints_sampling(smolvlm):
    model, processor = smolvlm
    model.generation_config.update(do_sample=True, temperature=0.1, repetition_penalty=1.5, top_k=1)
    try:
        config, _ = model._prepare_generation_config(greedy(model, processor, 8))
    finally:
        model.generation_config.update(do_sample=False, temperature=None, repetition_penalty=None, top_k=None)
    assert (config.do_sample, config.repetition_penalty, config.temperature, config.top_k) == (False, 1, 1, 50)
    assert config.eos_token_id == [processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")]


@pytest.mark.parametrize("longest_edge", [512, 1024, 2048])
def test_the_real_processor_sees_the_same_tokens_and_tiles(real_smolvlm, longest_edge):
    processor = load_processor(str(real_smolvlm), longest_edge=longest_edge)
    # 4:3 and 1:3 images: 1 and 1, 2x2+1 and 2x1+1, or 4x3+1 and 4x2+1 tiles of 512 px, of 64 tokens each.
    tiles = {512: (1, 1), 1024: (5, 3), 2048: (13, 9)}[longest_edge]
    prompts = pair(noise(400, 300), noise(100, 300, seed=1))
    prepared = prepare(processor, prompts)
    plain = plain_inputs(processor, prompts)
    lengths = plain["attention_mask"].sum(1).tolist()
    assert prepared.input_ids == [row[-n:] for row, n in zip(plain["input_ids"].tolist(), lengths, strict=True)]
    assert [image.tokens for image in prepared.images.values()] == [64 * n for n in tiles]
    pixels = torch.cat([image.tensors["pixel_values"] for image in prepared.images.values()]).transpose(0, 1)
    assert torch.equal(pixels, plain["pixel_values"][1:, : sum(tiles)])
