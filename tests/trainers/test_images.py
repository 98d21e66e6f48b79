"""Images read ahead of the step that needs them, and handed to a GPU as 8-bit levels."""

import pickle
import threading

import torch
from PIL import Image
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from cropvlm import modeling
from cropvlm.models.readers import image_reader
from cropvlm.trainers.images import ImageCollator, ReadAhead


def rows_of(ids):
    return [{"question_id": i, "image": f"image {i}"} for i in ids]


def test_each_image_is_read_once_while_its_step_waits():
    """TRL fetches the rows of a step once a micro-step; those of the step before are still there meanwhile."""
    read = []
    ahead = ReadAhead(lambda source, i: read.append(i) or f"{source}, read by {threading.current_thread().name}")
    first, second, third = rows_of([1, 1, 2, 2]), rows_of([3, 3, 4, 4]), rows_of([5, 5, 1, 1])
    for fetched, rows in ((first, first), (list(first), first), (second, second)):
        assert ahead(fetched) is rows
    results = ahead.results(first)
    assert list(results) == [1, 2]
    assert results[1].startswith("image 1, read by ThreadPoolExecutor")
    ahead(third)
    ahead.results(second)
    ahead.results(third)
    assert sorted(read) == [1, 2, 3, 4, 5]
    ahead(first)
    assert list(ahead.results(first)) == [1, 2]
    assert sorted(read) == [1, 2, 2, 3, 4, 5]  # 2 was forgotten meanwhile


def test_rows_that_a_worker_fetches_are_read_when_they_are_asked_for():
    ahead = ReadAhead(lambda source, i: source)
    rows = next(iter(DataLoader(rows_of([1, 2]), batch_size=2, collate_fn=ahead, num_workers=1)))
    assert ahead.results(rows) == {1: "image 1", 2: "image 2"}


def test_a_worker_hands_over_levels(tiny_smolvlm):
    """Five 64 x 64 x 3 tiles of a 128-px image take 240 kB in float32, its levels 48 kB; no PIL image is pickled."""
    processor = modeling.load_processor(tiny_smolvlm, 128)
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    texts = {"prompt": "<image>Where?", "completion": " Here."}
    rows = [{"image": Image.new("RGB", size, "red")} | texts for size in ((128, 128), (128, 40))]
    batch = ImageCollator(collate, processor, image_reader(processor, torch.device("cuda")).read)(rows)
    assert [image["levels"].dtype for image in batch["images"]] == [torch.uint8] * 2
    assert [image["levels"].shape for image in batch["images"]] == [(128, 128, 3), (40, 128, 3)]
    assert b"PIL" not in pickle.dumps(batch)
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [5 * 16, 3 * 16]
