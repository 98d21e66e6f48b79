"""The unit of the teacher's boxes: what the flag says, held against all responses of a run."""

import math
from collections.abc import Sequence

from cropvlm.boxes import parse_teacher_bbox
from cropvlm.errors import UserError

RELATIVE = (1000, 1000)  # width and height of every image to a teacher whose boxes are relative


def in_units(records: Sequence[dict], box_format: str = "pixels") -> list[dict]:
    """Return the records with the size that their boxes are given in as `seen_size`.

    box_format: `pixels` of the image as the teacher saw it (Qwen2.5-VL), or `relative`, 0 to 1000 (Qwen2-VL, Qwen3-VL).
    Raises `UserError` where the boxes cannot all be in these pixels: too many leave small images, or none goes beyond
    1000 in images that are larger.
    """
    if box_format == "relative":
        return [record | {"seen_size": list(RELATIVE)} if "seen_size" in record else record for record in records]
    read = [(parse_teacher_bbox(r["teacher_response"]), r["seen_size"]) for r in records if "seen_size" in r]
    small = [(box, size) for box, size in read if box and min(size) < 800]
    outside = [box for box, size in small if box[2] > 1.05 * size[0] or box[3] > 1.05 * size[1]]
    large = [(box, size) for box, size in read if box and max(size) > 1000]
    # The chance that boxes anywhere in these images would all end within 0 to 1000.
    chance = math.prod(min(1, 1000 / size[0]) * min(1, 1000 / size[1]) for _, size in large)
    seen = None
    if large and chance < 0.01 and all(max(box) <= 1000 for box, _ in large):
        seen = f"no box of {len(large)} leaves 0 to 1000 in larger images"
    elif len(outside) >= 3 and 3 * len(outside) > len(small):
        seen = f"{len(outside)} boxes of {len(small)} lie outside of the image as it was sent"
    if seen:
        remedy = "grow them anew with --from_journal --teacher_box_format relative, or ask a Qwen2.5-VL"
        raise UserError(f"the teacher's boxes are not in pixels of the image ({seen}); {remedy}")
    return list(records)
