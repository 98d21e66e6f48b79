"""What the miniature's models are taught from: tiles of scenes with labels for every patch, and questions with answers.

The scenes are drawn from seeds of their own, so none of them is an image of the world that the scripts see. Everything
follows from the seed.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import Pool

import numpy as np
from PIL import Image

from miniature.world import COLORS, WORDS, Placard, draw_scene, fit_font

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IGNORE = -100
PLACES = ("x1", "y1", "x2", "y2", "center_x", "center_y")
PLACE_BINS = 20  # of 5% of the crop's side
COLOR_IDS = {color: i + 1 for i, color in enumerate(sorted(COLORS))}  # 0: no placard
WORD_IDS = {word: i for i, word in enumerate(WORDS)}  # len(WORDS): a number
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """One canvas, (H, W, 3) uint8, and its placards."""

    pixels: np.ndarray
    placards: list[Placard]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]


def draw_pretraining_scene(seed: int, index: int) -> Scene:
    """Every fourth scene has but one or two placards: the easy beginning."""
    most = 5 if index % 4 else 1 + index // 4 % 2
    canvas, placards = draw_scene(random.Random(f"pretraining-{seed}-{index}"), most)
    return Scene(np.asarray(canvas), placards)


def draw_scenes(seed: int, count: int) -> list[Scene]:
    """`count` scenes, none of which is in a world that `miniature.world` writes."""
    with Pool() as pool:
        return pool.starmap(draw_pretraining_scene, [(seed, i) for i in range(count)], chunksize=50)


def crop_around(rng: random.Random, scene: Scene, placard: Placard, max_zoom_out: float) -> Box:
    """A crop that holds `placard`, 0.95 to `max_zoom_out` times its sides, anywhere around it."""
    width, height = scene.size
    x1, y1, x2, y2 = placard.bbox_px
    factor = math.exp(rng.uniform(math.log(0.95), math.log(max_zoom_out)))
    spans = []
    for start, stop, limit in ((x1, x2, width), (y1, y2, height)):
        length = min(limit, (stop - start) * factor * rng.uniform(0.8, 1.25))
        low = min(max(0.0, start - rng.random() * (length - (stop - start))), limit - length)
        spans.append((int(low), max(int(low) + 2, int(low + length))))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def full_box(scene: Scene) -> Box:
    return 0, 0, *scene.size


@lru_cache(maxsize=100_000)
def glyph_boxes(text: str, width: int, height: int) -> list[tuple[float, float, float, float]]:
    """Box of each character on a placard of width x height pixels, from its centre; `draw_placard`'s geometry."""
    text = text.upper()
    font = fit_font(text, 0.84 * width, 0.62 * height)
    total = font.getlength(text)
    _, top, _, bottom = font.getbbox(text, anchor="mm")
    edges = [font.getlength(text[:i]) - total / 2 for i in range(len(text) + 1)]
    return [(edges[i], top, edges[i + 1], bottom) for i in range(len(text))]


def coverage(box: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
    """(rows, columns): how much of each cell `box` covers, where a cell is 1 x 1."""
    x, y = np.arange(columns), np.arange(rows)
    across = np.clip(np.minimum(x + 1, box[2]) - np.maximum(x, box[0]), 0, 1)
    down = np.clip(np.minimum(y + 1, box[3]) - np.maximum(y, box[1]), 0, 1)
    return down[:, None] * across[None, :]


def patch_labels(scene: Scene, crop: Box, rows: int, columns: int) -> dict[str, np.ndarray]:
    """What every patch of the crop shows, each (rows * columns,): color, character, word, tens, ones and PLACES.

    A placard of which less than 85% is in the crop has no readable text, a character under half a patch wide none.
    """
    labels = {name: np.full((rows, columns), IGNORE) for name in ("word", "tens", "ones", *PLACES)}
    labels |= {name: np.zeros((rows, columns), np.int64) for name in ("color", "character")}
    scale = np.array([columns / (crop[2] - crop[0]), rows / (crop[3] - crop[1])] * 2)
    origin = np.array([crop[0], crop[1]] * 2)
    best = np.zeros((rows, columns))
    for placard in scene.placards:
        box = (np.array(placard.bbox_px) - origin) * scale
        area = (box[2] - box[0]) * (box[3] - box[1])
        covered = coverage(tuple(box), rows, columns)
        mine = (covered > best) & (covered > min(0.25, 0.25 * area))
        best = np.where(mine, covered, best)
        labels["color"][mine] = COLOR_IDS[placard.color]
        for name, value in place_labels(box / [columns, rows, columns, rows]).items():
            labels[name][mine] = value
        for name in ("word", "tens", "ones"):
            labels[name][mine] = IGNORE
        if covered.sum() > 0.85 * area:
            for name, value in text_labels(placard.text).items():
                labels[name][mine] = value
        label_characters(labels["character"], placard, box, scale)
    return {name: values.ravel() for name, values in labels.items()}


def place_labels(box: np.ndarray) -> dict[str, int]:
    """Bins of the corners and the centre of a box in shares of the crop's sides."""
    x1, y1, x2, y2 = np.clip(box, 0, 0.999)
    places = (x1, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2)
    return {name: int(PLACE_BINS * value) for name, value in zip(PLACES, places, strict=True)}


def text_labels(text: str) -> dict[str, int]:
    if text.isdigit():
        return {"word": len(WORDS), "tens": int(text[0]), "ones": int(text[1])}
    return {"word": WORD_IDS[text]}


def label_characters(characters: np.ndarray, placard: Placard, box: np.ndarray, scale: np.ndarray) -> None:
    x1, y1, x2, y2 = placard.bbox_px
    center = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] * 2)
    for character, glyph in zip(placard.text.upper(), glyph_boxes(placard.text, x2 - x1, y2 - y1), strict=True):
        glyph_box = center + np.array(glyph) * scale
        covered = coverage(tuple(glyph_box), *characters.shape)
        if glyph_box[2] - glyph_box[0] < 0.5:
            characters[covered > 0] = IGNORE
        else:
            characters[covered > 0.2] = CHARACTERS.index(character) + 1


def resize_in_steps(scene: Scene, crop: Box, side: int) -> np.ndarray:
    """The crop as Idefics3's processor sees it, longest edge first, then the square tile: (side, side, 3)."""
    picture = Image.fromarray(scene.pixels[crop[1] : crop[3], crop[0] : crop[2]])
    scale = side / max(picture.size)
    first = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    lanczos = Image.Resampling.LANCZOS
    return np.asarray(picture.resize(first, lanczos, reducing_gap=3).resize((side, side), lanczos))


def resize_at_once(scene: Scene, crop: Box, width: int, height: int) -> np.ndarray:
    """The crop as CLIP's and Qwen2.5-VL's processors see it. (height, width, 3)."""
    picture = Image.fromarray(scene.pixels[crop[1] : crop[3], crop[0] : crop[2]])
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3))
