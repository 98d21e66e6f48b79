"""The teacher: its prompt, records at every batch size, unreadable images, boxes that are not in pixels."""

from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import Image as DatasetImage
from PIL import Image
from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

from cropvlm.encoding import prepare
from cropvlm.errors import UnreadableImage, UserError
from cropvlm.generation import generate_rows
from cropvlm.modeling import load_model, load_processor
from cropvlm.models.qwen import PixelBudget, qwen_size
from cropvlm.sets.responses import Responses, TeacherPrompts, in_units, pixel_budget
from cropvlm.teacher import grow


@pytest.fixture(scope="module")
def processor(tiny_qwen):
    return load_processor(str(tiny_qwen))


@pytest.fixture(scope="module")
def model(tiny_qwen):
    return load_model(str(tiny_qwen), device="cpu")


def make_rows(*sizes) -> Dataset:
    rows = []
    for i, size in enumerate(sizes):
        Image.new("RGB", size, "white").save(file := BytesIO(), "JPEG")
        image = {"bytes": file.getvalue(), "path": None}
        rows.append({"image": image, "question": f"What is on sign {i}?", "question_id": f"q{i}"})
    return Dataset.from_list(rows).cast_column("image", DatasetImage(decode=False))


def responses(rows, budget=()) -> Responses:
    return Responses(Path("made"), {}, {}, {}, None, data=rows, seen_size=lambda size: qwen_size(size, *budget))


def records(model, processor, rows, **options) -> dict:
    output = responses(rows, pixel_budget(processor, "teacher"))
    outcomes = generate_rows(model, processor, TeacherPrompts(rows), max_new_tokens=8, **options)
    return {f"q{i}": output.make_record(i, texts[0]) for i, texts in outcomes}


def test_records_are_the_same_at_every_batch_size(model, processor):
    rows = make_rows((60, 60), (140, 100), (300, 90))
    one_by_one = records(model, processor, rows, batch_size=1)
    assert one_by_one["q1"]["size"] == [140, 100]
    assert one_by_one["q1"]["seen_size"] == [140, 112]  # 100 / 28 = 3.57 -> 4 x 28
    assert records(model, processor, rows, batch_size=3, num_workers=1) == one_by_one


def test_prompt_reaches_the_teacher(processor):
    text = processor.tokenizer.decode(prepare(processor, TeacherPrompts(make_rows((140, 84)))[0]).input_ids[0])
    assert text.count("<|image_pad|>") == 15  # 10 x 6 patches, merged two by two
    assert (
        "<|vision_end|>Outline the region in the image that would help answer the following question: "
        "What is on sign 0?\nOutput the coordinates in JSON format with a 'bbox_2d' field containing "
        "[x1, y1, x2, y2].<|im_end|>\n<|im_start|>assistant\n"
    ) in text


def test_a_teacher_that_writes_boxes_from_0_to_1000(processor):
    other = Qwen3VLProcessor(processor.image_processor, processor.tokenizer, Qwen3VLVideoProcessor())
    with pytest.raises(UserError, match="Qwen3VLProcessor belongs to a model .* give a Qwen2.5-VL"):
        pixel_budget(other, "a teacher")


def test_the_budget_of_the_real_processor(real_qwen):
    from transformers import AutoImageProcessor

    settings = AutoImageProcessor.from_pretrained(real_qwen)
    factor = settings.patch_size * settings.merge_size
    assert PixelBudget() == (settings.size["shortest_edge"], settings.size["longest_edge"], factor)


def test_a_row_that_fails_may_succeed_another_time():
    output = responses(make_rows(*[(28, 28)] * 4), PixelBudget())
    outcomes = [UnreadableImage("broken"), ValueError("rejected"), "ok"]
    output.rows = {i: {"key": 1} | output.make_record(i, text) for i, text in enumerate(outcomes)}
    assert [output.is_done(i, 1) for i in range(4)] == [True, False, True, False]
    assert not output.is_done(2, 7)  # another image
    output.seen_size = None  # of --from_journal
    assert [output.is_done(i, 1) for i in range(4)] == [True, True, True, False]


def seen_at(size: tuple[int, int], *boxes: list) -> list[dict]:
    return [{"size": list(size), "seen_size": list(size), "teacher_response": str(box)} for box in boxes]


@pytest.mark.parametrize(
    ("responses", "seen"),
    [
        # All within 0..1000 of 2016x1512: by chance (1000/2016 x 1000/1512)^6 = 0.1%.
        (seen_at((2016, 1512), *[[800, 800, 900, 900]] * 6), "no box of 6 leaves 0 to 1000 in larger images"),
        (seen_at((644, 476), *[[800, 100, 900, 200]] * 3, *[[1, 1, 9, 9]] * 5), "3 boxes of 8 lie outside"),
    ],
)
def test_boxes_that_cannot_be_in_pixels_are_refused_or_read_as_relative(responses, seen):
    with pytest.raises(UserError, match=f"{seen}.*--teacher_box_format relative"):
        in_units(responses)
    boxes, _ = grow(in_units(responses, "relative"), (1, 1, 1, 1, 1))
    assert boxes[0].bbox_px[0] == pytest.approx(0.8 * boxes[0].size[0])  # 800 of 1000


@pytest.mark.parametrize(
    ("responses", "box_format", "seen"),
    [
        (seen_at((640, 480), [0.1, 0.2, 0.5, 0.6]), "pixels", "all 1 lie within 0 to 1"),
        # (100/640 x 100/480)^3 = 0.003%
        (seen_at((640, 480), *[[i, 10, 90, 60] for i in range(3)]), "pixels", "no box of 3 leaves 0 to 100"),
        (seen_at((2016, 1512), *[[10, 10, 1500, 900]] * 3), "relative", "3 boxes of 3 go beyond 1000"),
        # x, y, width, height
        (seen_at((640, 480), *[[400, 300, 90, 50]] * 3, *[[1, 1, 90, 90]] * 5), "pixels", "3 boxes of 8 end before"),
    ],
)
def test_boxes_in_other_units_are_refused(responses, box_format, seen):
    with pytest.raises(UserError, match=f"the teacher's boxes are not .*{seen}"):
        in_units(responses, box_format)


@pytest.mark.parametrize(
    "responses",
    [
        seen_at((640, 480), *[[1, 10, 90, 60]] * 20),  # one box, however often
        seen_at((2016, 1512), *[[800, 800, 900, 900]] * 5, [1500, 10, 1600, 90]),
        seen_at((1036, 700), *[[100, 100, 300, 300]] * 20),  # 1000/1036 to the 20th is 49%
        seen_at((644, 476), *[[800, 100, 900, 200]] * 3, *[[1, 1, 9, 9]] * 6),
        seen_at((644, 476), *[[400, 300, 90, 50]] * 3, *[[1, 1, 90, 90]] * 6),
        [{"error": "broken"}, *seen_at((28, 28), "no box")],
    ],
)
def test_boxes_that_can_be_in_pixels_are(responses):
    assert in_units(responses) == responses
