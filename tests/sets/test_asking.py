"""The teacher: the size it sees an image at, its boxes mapped back, batches of like size, unreadable images."""

from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import Image as DatasetImage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from cropvlm.data.images import image_size, open_image
from cropvlm.encoding import prepare
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.generation import generate_rows
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.qwen import PixelBudget, qwen_image, qwen_size
from cropvlm.sets.asking import Asked, Teacher, TeacherPrompts, pixel_budget
from cropvlm.sets.responses import Responses

SIDES = st.integers(min_value=1, max_value=9000)


@pytest.fixture(scope="module")
def processor(tiny_qwen):
    return load_processor(str(tiny_qwen))


def encode(size, color="white", **options) -> dict:
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG", **options)
    return {"bytes": file.getvalue(), "path": None}


def rotated(size) -> dict:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter before it is shown
    return encode(size, exif=exif)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 768), (1036, 756)),  # 1024 / 28 = 36.6 -> 37 x 28; 768 / 28 = 27.4 -> 27 x 28
        ((280, 560), (280, 560)),  # multiples of 28 stay
        # 40 MP: beta = sqrt(7300 * 5480 / 12845056) = 1.76477; 7300 / beta / 28 = 147.7 -> 147, 110.9 -> 110
        ((7300, 5480), (4116, 3080)),
        ((20, 20), (56, 56)),  # below 3136 px: 20 * sqrt(3136 / 400) = 56
        ((1, 1), (56, 56)),
        ((3, 3000), (28, 2996)),  # 1000:1; taken as 30:3000: 30 / 28 -> 1, 3000 / 28 = 107.1 -> 107
    ],
)
def test_the_size_that_the_teacher_sees(size, expected):
    assert qwen_size(size, *PixelBudget()) == expected


@given(width=SIDES, height=SIDES)
def test_the_size_seen_is_one_that_the_processor_keeps(width, height):
    seen_width, seen_height = qwen_size((width, height), *PixelBudget())
    assert seen_width % 28 == seen_height % 28 == 0
    assert 3136 <= seen_width * seen_height <= 12845056


def test_image_size_is_that_of_the_upright_image():
    for source, size in [(encode((30, 20)), (30, 20)), (rotated((30, 20)), (20, 30))]:
        assert image_size(source) == open_image(source).size == size


@pytest.mark.parametrize("source", [None, {"bytes": None, "path": None}, {"bytes": b"no image", "path": None}])
def test_image_size_of_what_is_no_image(source):
    with pytest.raises(UnreadableImage):
        image_size(source)


def make_rows(sizes) -> Dataset:
    rows = [
        {"image": encode(size), "question": f"What is on sign {i}?", "question_id": f"q{i}"}
        for i, size in enumerate(sizes)
    ]
    return Dataset.from_list(rows).cast_column("image", DatasetImage(decode=False))


@pytest.fixture(scope="module")
def model(tiny_qwen):
    return load_model(str(tiny_qwen), device="cpu")


def responses(rows, budget) -> Responses:
    asked = Asked(Teacher("teacher"))
    asked.budget = budget
    return Responses(Path("made"), {}, {}, {}, None, data=rows, asked=asked)


def records(model, processor, rows, **options) -> dict:
    output = responses(rows, pixel_budget(processor, "teacher"))
    outcomes = generate_rows(model, processor, TeacherPrompts(rows), max_new_tokens=8, **options)
    return {f"q{i}": output.make_record(i, t if isinstance(t, ValueError) else t[0]) for i, t in outcomes}


def test_records_are_the_same_at_every_batch_size(model, processor):
    rows = make_rows([(60, 60), (140, 100), (100, 140), (300, 90), (28, 28)])
    one_by_one = records(model, processor, rows, batch_size=1)
    assert set(one_by_one) == {"q0", "q1", "q2", "q3", "q4"}
    assert one_by_one["q1"]["size"] == [140, 100]
    assert one_by_one["q1"]["seen_size"] == [140, 112]  # 100 / 28 = 3.57 -> 4 x 28
    assert records(model, processor, rows, batch_size=2) == one_by_one
    assert records(model, processor, rows, batch_size=5, num_workers=1) == one_by_one


def test_rows_done_are_left_out(model, processor):
    rows = make_rows([(60, 60), (140, 100), (100, 140)])
    assert set(records(model, processor, rows, done=[0, 2])) == {"q1"}


def test_unreadable_images_leave_the_others_alone(model, processor):
    rows = make_rows([(100, 100)] * 4).to_list()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:-30]  # the header stands, the pixels are cut off
    rows[2]["image"]["bytes"] = b"no image"
    rows = Dataset.from_list(rows).cast_column("image", DatasetImage(decode=False))
    found = records(model, processor, rows, batch_size=4)
    assert "unreadable image" in found["q1"]["error"]
    assert "unreadable image" in found["q2"]["error"]
    assert "teacher_response" in found["q0"]
    assert "teacher_response" in found["q3"]


@pytest.mark.parametrize("size", [(140, 84), (1023, 681), (3, 2000), (2000, 3), (41, 4100), (1, 1), (7300, 5480)])
def test_the_teacher_sees_the_size_that_boxes_are_mapped_from(processor, size):
    rows = make_rows([size])
    prompts = TeacherPrompts(rows)
    prepared = prepare(processor, prompts[0])
    width, height = qwen_size(size, *pixel_budget(processor, "teacher"))
    (seen,) = prepared.images.values()
    assert seen.tensors["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]


def test_prompt_reaches_the_teacher(processor):
    rows = make_rows([(140, 84)])
    prompts = TeacherPrompts(rows)
    text = processor.tokenizer.decode(prepare(processor, prompts[0]).input_ids[0])
    assert text.count("<|image_pad|>") == 15  # 10 x 6 patches, merged two by two
    assert (
        "<|vision_end|>Outline the region in the image that would help answer the following question: "
        "What is on sign 0?\nOutput the coordinates in JSON format with a 'bbox_2d' field containing "
        "[x1, y1, x2, y2].<|im_end|>\n<|im_start|>assistant\n"
    ) in text


def test_a_model_of_another_kind_is_no_teacher(tiny_smolvlm):
    with pytest.raises(UserError, match="give a Qwen2.5-VL"):
        pixel_budget(load_processor(str(tiny_smolvlm)), str(tiny_smolvlm))


@pytest.mark.parametrize(
    ("processor_class", "video_class"),
    [(Qwen2VLProcessor, Qwen2VLVideoProcessor), (Qwen3VLProcessor, Qwen3VLVideoProcessor)],
)
def test_teachers_that_write_boxes_from_0_to_1000(processor, tmp_path, processor_class, video_class):
    template = processor.chat_template
    other = processor_class(processor.image_processor, processor.tokenizer, video_class(), chat_template=template)
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{processor_class.__name__} belongs to a model .* give a Qwen2.5-VL"):
        pixel_budget(load_processor(str(tmp_path)), str(tmp_path))


def test_the_budget_of_the_real_processor(real_qwen):
    from transformers import AutoImageProcessor

    settings = AutoImageProcessor.from_pretrained(real_qwen)
    factor = settings.patch_size * settings.merge_size
    assert PixelBudget() == (settings.size["shortest_edge"], settings.size["longest_edge"], factor)


def test_a_row_that_fails_may_succeed_another_time():
    output = responses(make_rows([(28, 28)] * 4), PixelBudget())
    outcomes = [UnreadableImage("broken"), ValueError("rejected"), "ok"]
    output.rows = {i: {"key": 1} | output.make_record(i, text) for i, text in enumerate(outcomes)}
    assert [output.is_done(i, 1) for i in range(4)] == [True, False, True, False]
    assert not output.is_done(2, 7)  # another image
    output.only_journal = True
    assert [output.is_done(i, 1) for i in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("size", [(640, 480), (1, 1), (33, 47), (1000, 10), (13, 1300), (1500, 10), (7301, 541)])
def test_a_server_gets_what_the_authors_code_shows(size):
    image = Image.effect_noise(size, 60).convert("RGB")
    budget = PixelBudget(56 * 56, 1280 * 28 * 28)
    theirs = fetch_image({"image": image, "min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels})
    ours = qwen_image(image, *budget)
    assert theirs.size == ours.size == qwen_size(size, *budget)
    assert theirs.tobytes() == ours.tobytes()
    assert qwen_image(ours, *budget).tobytes() == ours.tobytes()  # the server's own resizing keeps it
