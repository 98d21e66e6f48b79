"""Draw the miniature world: photo-like canvases with several coloured signs, plates and pages, each with small text.

    python3 -m miniature.world --output_path datasets/miniature --seed 0
    python3 -m miniature.world --output_path datasets/miniature_need --seed 0 --need

writes a `save_to_disk` folder with the splits `train` and `test`, which share no image. Every row has the columns of
TextVQA (image, question, question_id, 10 answers) and, for the upper bound and the contact sheet only, `true_bbox`
(percent of width and height), which no training stage reads. In the world of `--need` every image has a placard that
the answerer can read without a crop, beside smaller ones: half of the questions are about it.
"""

import argparse
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cropvlm.models.cores import cpu_count
from cropvlm.runs.cli import ArgumentParser, run
from cropvlm.runs.files import replacing

COLORS = {
    "red": (200, 30, 35),
    "blue": (35, 70, 205),
    "green": (25, 135, 55),
    "yellow": (245, 210, 30),
    "orange": (250, 130, 15),
    "purple": (125, 40, 165),
    "pink": (250, 130, 185),
    "teal": (15, 160, 165),
}
KINDS = ("sign", "plate", "page")
# The words that the models are taught to read, besides two-digit numbers.
LEXICON = [
    "bank",
    "bus",
    "cafe",
    "club",
    "exit",
    "farm",
    "gate",
    "hall",
    "hotel",
    "inn",
    "left",
    "mall",
    "menu",
    "museum",
    "north",
    "open",
    "park",
    "pizza",
    "pool",
    "pub",
    "sale",
    "school",
    "shop",
    "south",
    "stop",
    "taxi",
    "tea",
    "tours",
    "west",
    "zoo",
]
# The words that the world shows: those that the tiny reader still gets right nine times in ten in a crop twice as wide
# and high as a tight one.
WORDS = ("bus", "exit", "farm", "inn", "left", "museum", "pub", "sale", "school", "zoo")
SMALL, MIDDLE, LARGE = (0.20, 0.30), (0.35, 0.50), (0.55, 0.80)  # widths of placards, relative to the canvas
QUESTIONS = (
    "What is written on the {color} {kind}?",
    "What does the {color} {kind} say?",
    "What is the text on the {color} {kind}?",
    "Which word or number is on the {color} {kind}?",
)


@dataclass(frozen=True)
class Placard:
    """One thing with text on it. `bbox_px` is (x1, y1, x2, y2) in pixels of the canvas."""

    color: str
    kind: str
    text: str
    bbox_px: tuple[int, int, int, int]


def draw_scene(
    rng: random.Random,
    draw_text: Callable[[random.Random], str] = lambda rng: rng.choice(WORDS),
    sizes: Sequence[tuple[float, float]] | None = None,
) -> tuple[Image.Image, list[Placard]]:
    """A canvas of 400 to 640 px a side and its placards, each of another colour and well apart.

    sizes: the range of each one's width, relative to the canvas; by default 3 to 5 small ones. Some may find no place.
    """
    width, height = rng.randint(400, 640), rng.randint(400, 640)
    canvas = draw_background(rng, width, height)
    placards: list[Placard] = []
    sizes = sizes or [SMALL] * rng.randint(3, 5)
    for color, size in zip(rng.sample(sorted(COLORS), len(sizes)), sizes, strict=True):
        bbox_px = place(rng, width, height, [p.bbox_px for p in placards], size)
        if bbox_px is not None:
            placard = Placard(color, rng.choice(KINDS), draw_text(rng), bbox_px)
            draw_placard(rng, canvas, placard)
            placards.append(placard)
    return canvas, placards


def draw_need_scene(rng: random.Random) -> tuple[Image.Image, list[Placard]]:
    """A canvas with a large placard and, after it, one or two others: two thirds small, one third of middle size."""
    sizes = [LARGE, *(rng.choice((SMALL, SMALL, MIDDLE)) for _ in range(2))]
    while True:
        canvas, placards = draw_scene(rng, sizes=sizes)
        x1, _, x2, _ = placards[0].bbox_px if placards else (0, 0, 0, 0)
        if len(placards) > 1 and x2 - x1 > MIDDLE[1] * canvas.width:
            return canvas, placards


def place(
    rng: random.Random, width: int, height: int, taken: list, size: tuple[float, float] = SMALL
) -> tuple[int, int, int, int] | None:
    """A free place for a placard whose width relative to the canvas lies in `size`, or None after 40 tries."""
    gap = 30
    for _ in range(40):
        w = round(width * rng.uniform(*size))
        h = round(w * rng.uniform(0.6, 0.85))
        if h + 8 > height:
            continue
        x, y = rng.randint(4, width - w - 4), rng.randint(4, height - h - 4)
        if all(x + w + gap < x1 or x2 + gap < x or y + h + gap < y1 or y2 + gap < y for x1, y1, x2, y2 in taken):
            return x, y, x + w, y + h
    return None


def draw_background(rng: random.Random, width: int, height: int) -> Image.Image:
    """A muted gradient with soft noise, blocks and discs, so that the placards do not stand out from a plain one."""
    noise = np.random.default_rng(rng.getrandbits(32))
    base = noise.uniform(70, 190) + noise.uniform(-18, 18, 3)
    slope = np.linspace(-1, 1, 12)
    field = base + 25 * (rng.uniform(-1, 1) * slope[:, None, None] + rng.uniform(-1, 1) * slope[None, :, None])
    field = field + noise.normal(0, 14, (12, 12, 1)) + noise.normal(0, 4, (12, 12, 3))
    canvas = Image.fromarray(field.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(4, 9)):
        grey = rng.randint(50, 210)
        fill = tuple(grey + rng.randint(-14, 14) for _ in range(3))
        x, y = rng.randint(-40, width), rng.randint(-40, height)
        shape = rng.choice((draw.rectangle, draw.ellipse))
        shape((x, y, x + rng.randint(20, 160), y + rng.randint(20, 160)), fill=fill)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    grain = noise.normal(0, 5, (height, width, 1))
    return Image.fromarray((np.asarray(canvas) + grain).clip(0, 255).astype(np.uint8))


def draw_placard(rng: random.Random, canvas: Image.Image, placard: Placard) -> None:
    """A sign is rounded, a plate has a bright rim, a page a folded corner; the text fills most of it."""
    draw = ImageDraw.Draw(canvas)
    x1, y1, x2, y2 = placard.bbox_px
    fill = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in COLORS[placard.color])
    box = (x1, y1, x2 - 1, y2 - 1)
    if placard.kind == "sign":
        draw.rounded_rectangle(box, radius=(y2 - y1) // 4, fill=fill)
    else:
        draw.rectangle(box, fill=fill, outline=(235, 235, 235) if placard.kind == "plate" else None, width=2)
    if placard.kind == "page":
        fold = (y2 - y1) // 4
        draw.polygon([(x2 - fold, y1), (x2, y1), (x2, y1 + fold)], fill=(235, 235, 235))
    light = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
    ink = (15, 15, 15) if light > 130 else (250, 250, 250)
    text = placard.text.upper()
    font = fit_font(text, 0.84 * (x2 - x1), 0.62 * (y2 - y1))
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    draw.text(center, text, fill=ink, font=font, anchor="mm")


def fit_font(text: str, width: float, height: float) -> ImageFont.FreeTypeFont:
    """Pillow's default typeface at the largest size at which `text` fits into width x height pixels."""
    left, top, right, bottom = ImageFont.load_default(100).getbbox(text, anchor="mm")
    return ImageFont.load_default(100 * min(width / (right - left), height / (bottom - top)))


def ask(rng: random.Random, placard: Placard) -> str:
    return rng.choice(QUESTIONS).format(color=placard.color, kind=placard.kind)


def draw_answers(rng: random.Random, placard: Placard, others: list[Placard]) -> list[str]:
    """Ten references as annotators give them: about one in ten is misread, wrong or left unanswered."""
    wrong = ["unanswerable", placard.text[:-1], placard.text + "s", *(p.text for p in others)]
    return [rng.choice(wrong) if rng.random() < 0.1 else placard.text for _ in range(10)]


def draw_row(seed: str, questions: int = 1, need: bool = False) -> list[dict]:
    """`questions` rows about one image. The same seed gives the same rows, byte for byte.

    need: one about the large placard of the scene, then one about another.
    """
    rng = random.Random(seed)
    canvas, placards = draw_need_scene(rng) if need else draw_scene(rng)
    encoded = io.BytesIO()
    canvas.save(encoded, "JPEG", quality=92)
    rows = []
    for placard in (placards[0], rng.choice(placards[1:])) if need else rng.sample(placards, questions):
        others = [p for p in placards if p is not placard]
        x1, y1, x2, y2 = placard.bbox_px
        true_bbox = [100 * x1 // canvas.width, 100 * y1 // canvas.height]
        true_bbox += [-(-100 * x2 // canvas.width), -(-100 * y2 // canvas.height)]
        rows.append(
            {
                "image": {"bytes": encoded.getvalue(), "path": None},
                "question": ask(rng, placard),
                "answers": draw_answers(rng, placard, others),
                "true_bbox": true_bbox,
            }
        )
    return rows


FEATURES = Features(
    {
        "image": ImageFeature(),
        "question": Value("string"),
        "question_id": Value("int64"),
        "answers": List(Value("string")),
        "true_bbox": List(Value("int64")),
    }
)


def draw_split(
    seed: int, split: str, rows: int, first_id: int, questions_per_image: int = 2, need: bool = False
) -> Dataset:
    """`rows` rows, `questions_per_image` to an image, numbered from `first_id`."""
    seeds = [(f"{seed}-{split}-{i}", questions_per_image, need) for i in range(-(-rows // questions_per_image))]
    with Pool(cpu_count()) as pool:
        drawn = list(chain.from_iterable(pool.starmap(draw_row, seeds, chunksize=8)))
    numbered = [row | {"question_id": first_id + i} for i, row in enumerate(drawn[:rows])]
    return Dataset.from_list(numbered, features=FEATURES)


def write_world(
    output_path: str | Path, seed: int = 0, train: int = 2160, test: int = 640, need: bool = False
) -> DatasetDict:
    """Write the splits `train` and `test` with `save_to_disk`, whole or not at all; they share no image."""
    world = DatasetDict(
        train=draw_split(seed, "train", train, first_id=1, need=need),
        test=draw_split(seed, "test", test, first_id=100_001, need=need),
    )
    with replacing(output_path) as new:
        world.save_to_disk(new)
    return world


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output_path", default="datasets/miniature")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=2160, help="rows, half for SFT and half for GRPO")
    parser.add_argument("--test", type=int, default=640, help="held-out rows")
    parser.add_argument("--need", action="store_true", help="half of the questions about a placard that needs no crop")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print(write_world(args.output_path, args.seed, args.train, args.test, args.need))


if __name__ == "__main__":
    run(main)
