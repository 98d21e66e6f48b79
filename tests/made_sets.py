"""Training sets as create_dataset.py saves them, and the responses of a teacher that is played."""

from pathlib import Path

from datasets import Dataset, load_from_disk
from datasets import Image as DatasetImage

# Responses of five rows whose images are 1000x1000 and seen so, and their boxes as they grow by hand. Areas 0.001,
# 0.01, 0.04, 0.09 and 1 (whole image); n = 5, so the cut points are the sorted areas 1, 2, 3, 4: x45 x10 x4 x2 x1.
RESPONSES = [
    # 50x20 about (125, 210), sides x sqrt(45) = 6.708: 335x134. x -43..293 is pushed to 0..335; y 142..277
    ('{"bbox_2d": [100, 200, 150, 220]}', [0, 14, 33, 27]),
    # 100x100 about (450, 450), sides x sqrt(10) = 3.162: 291.9..608.1
    ('```json\n[{"bbox_2d": [400, 400, 500, 500]}]\n```', [29, 29, 60, 60]),
    # 200x200 about (900, 100), sides x 2: x 700..1100 is pushed to 600..1000, y -100..300 to 0..400
    ("[800, 0, 1000, 200]", [60, 0, 100, 40]),
    # 300x300 about (250, 250), sides x 1.414: 37.9..462.1
    ("[100, 100, 400, 400]", [3, 3, 46, 46]),
    ("I see no sign.", [0, 0, 100, 100]),
]


# Of images of 200x100, seen at 100x100. Relative areas 0.01, 0 (no area), 0.04, 1 (empty), 0.09, 1 (truncated); sorted
# 0 .01 .04 .09 1 1; n = 6, so the cut points are those at 6//5 = 1, 12//5 = 2, 18//5 = 3, 24//5 = 4: .01 .04 .09 1
TEXTS = ("[0, 0, 10, 10]", "[5, 5, 5, 9]", "[0, 0, 20, 20]", "", "[50, 50, 80, 80]", "[1, 2")


def records(*texts: str) -> list[dict]:
    """Records of images of 200x100, seen at 100x100."""
    return [{"size": [200, 100], "seen_size": [100, 100], "teacher_response": text} for text in texts]


def content(folder: Path) -> list:
    """The saved rows, images as encoded bytes."""
    return load_from_disk(str(folder)).cast_column("image", DatasetImage(decode=False)).to_list()


def save_rows(folder: Path, rows: list[dict]) -> Path:
    Dataset.from_list(rows).cast_column("image", DatasetImage(decode=False)).save_to_disk(str(folder))
    return folder
