"""Training data of the miniature's models: pictures of scenes with labels for every patch, and conversations.

The scenes are drawn from separate seeds, so none of them appears in the world that the scripts see. The same seed gives
the same lessons.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import Pool

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cropvlm import prompts
from miniature.pretraining.families import FAMILIES
from miniature.tiny_models import PLACE_LESSONS
from miniature.world import COLORS, LEXICON, Placard, ask, draw_scene, fit_font

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IGNORE = -100
PLACES = (
    "x1",
    "y1",
    "x2",
    "y2",
    "center_x",
    "center_y",
)  # of a placard, in bins of 5% of the picture's width or height
PLACE_BINS = 20
OFFSETS = ("from_x1", "from_y1", "from_x2", "from_y2")  # of a placard from the cell's corner, in sixths of a cell
OFFSET_BINS = 30
COLOR_IDS = {color: i + 1 for i, color in enumerate(sorted(COLORS))}  # 0: no placard
WORD_IDS = {word: i for i, word in enumerate(LEXICON)}  # len(LEXICON): a number
CROP_ZOOMS = ((0.95, 1.5), (1.3, 2.2), (1.8, 3.0))  # a crop's width and height relative to its placard's
# Share of the reading lessons whose crop is beside the placard. Without them a model trusts whatever a crop shows, and
# a box that just misses would score far below an invalid one.
MISSED_SHARE = 0.3
DENIED_WEIGHT = 4  # weight of the placards that the teacher denies, which are too rare to be learnt otherwise
Box = tuple[int, int, int, int]


@dataclass
class Picture:
    """A canvas or a crop of it, as a family sees it."""

    tile: np.ndarray  # (H, W, 3) uint8
    zoom: float  # the crop's size relative to its placard's; 0 for the whole canvas
    placard: int  # index of the placard that the crop was cut around
    missed: bool  # whether the crop is beside it
    labels: dict[str, np.ndarray]  # each (tokens * patches per token,)
    features: Tensor | None = None  # (tokens, D), once the vision tower is trained


@dataclass
class Scene:
    """The placards of one canvas of `size` (width, height), and pictures of it: the whole first, then crops."""

    placards: list[Placard]
    size: tuple[int, int]
    pictures: list[Picture]


@dataclass
class Example:
    """One conversation: pictures, the user's turn, the assistant's answer and the placard that it is about."""

    pictures: list[Picture]
    messages: list[dict]
    answer: str
    color: str  # of the placard
    bbox: (
        tuple[float, float, float, float] | None
    )  # the placard's, relative to the canvas (0..1); None in reading lessons


def draw_scenes(family: str, seed: int, count: int) -> list[Scene]:
    """`count` scenes, none of which appears in a world written by `miniature.world`."""
    with Pool() as pool:
        jobs = pool.imap(partial(draw_pretraining_scene, family, seed), range(count), chunksize=20)
        return list(tqdm(jobs, total=count, desc="scenes", mininterval=5))


def draw_text(rng: random.Random) -> str:
    """A word of the lexicon, or (a sixth of the time) a two-digit number."""
    return str(rng.randint(10, 99)) if rng.random() < 1 / 6 else rng.choice(LEXICON)


def draw_pretraining_scene(family: str, seed: int, index: int) -> Scene:
    """One scene and, for a family that sees crops, a crop around each placard for each of CROP_ZOOMS."""
    rng = random.Random(f"pretraining-{seed}-{index}")
    canvas, placards = draw_scene(rng, draw_text)
    crops = [((0, 0, *canvas.size), 0.0, 0, False)]
    if FAMILIES[family].sees_crops:
        for i, placard in enumerate(placards):
            for low, high in CROP_ZOOMS:
                zoom = math.exp(rng.uniform(math.log(low), math.log(high)))
                crops.append((crop_around(rng, canvas.size, placard, zoom), zoom, i, False))
            zoom = rng.uniform(1, 2.5)
            crops.append((crop_beside(rng, canvas.size, placard, zoom), zoom, i, True))
    pictures = [take_picture(family, canvas, placards, *crop) for crop in crops]
    return Scene(placards, canvas.size, pictures)


def take_picture(
    family: str, canvas: Image.Image, placards: list[Placard], crop: Box, zoom: float, placard: int, missed: bool
) -> Picture:
    kind = FAMILIES[family]
    height, width = kind.tile_size(canvas.size)
    tile = np.asarray(kind.resize(canvas.crop(crop), height, width))
    labels = patch_labels(placards, crop, *kind.label_grid(height, width))
    return Picture(tile, zoom, placard, missed, {name: kind.by_token(values) for name, values in labels.items()})


def crop_beside(rng: random.Random, size: tuple[int, int], placard: Placard, zoom: float) -> Box:
    """A crop of `zoom` times the placard's sides that cuts it off or misses it by up to its own size."""
    x1, y1, x2, y2 = placard.bbox_px
    spans = [[x1, x2, size[0]], [y1, y2, size[1]]]
    first = rng.randrange(2)  # the direction in which it certainly misses
    for i, (start, stop, limit) in enumerate(spans):
        length = zoom * (stop - start)
        reach = ((stop - start) + length) / 2
        shift = rng.uniform(0.45, 1.2) * rng.choice((-1, 1)) if i == first else rng.uniform(-1, 1)
        low = (start + stop - length) / 2 + shift * reach
        low = int(min(max(0, low), limit - 8))
        spans[i] = [low, max(low + 8, int(min(limit, low + length)))]
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def crop_around(rng: random.Random, size: tuple[int, int], placard: Placard, zoom: float) -> Box:
    """A crop that holds `placard`, about `zoom` times its sides, placed at random around it."""
    x1, y1, x2, y2 = placard.bbox_px
    spans = []
    for start, stop, limit in ((x1, x2, size[0]), (y1, y2, size[1])):
        length = min(limit, (stop - start) * zoom * rng.uniform(0.8, 1.25))
        low = min(max(0.0, start - rng.random() * (length - (stop - start))), limit - length)
        spans.append((int(low), max(int(low) + 2, int(low + length))))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


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
    """Share of each cell that `box` covers, (rows, columns), where a cell is 1 x 1."""
    x, y = np.arange(columns), np.arange(rows)
    across = np.clip(np.minimum(x + 1, box[2]) - np.maximum(x, box[0]), 0, 1)
    down = np.clip(np.minimum(y + 1, box[3]) - np.maximum(y, box[1]), 0, 1)
    return down[:, None] * across[None, :]


def patch_labels(placards: list[Placard], crop: Box, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Labels of every cell of the crop by name, (rows * columns,) int8 each: color, character, word, tens, ones, place.

    A placard less than 85% inside the crop gets no text labels, nor does a character under half a cell wide.
    """
    names = ("word", "tens", "ones", *PLACES, *OFFSETS)
    labels = {name: np.full((rows, columns), IGNORE, np.int8) for name in names}
    labels |= {name: np.zeros((rows, columns), np.int8) for name in ("color", "character")}
    scale = np.array([columns / (crop[2] - crop[0]), rows / (crop[3] - crop[1])] * 2)
    origin = np.array([crop[0], crop[1]] * 2)
    best = np.zeros((rows, columns))
    for placard in placards:
        box = (np.array(placard.bbox_px) - origin) * scale  # in cells
        area = (box[2] - box[0]) * (box[3] - box[1])
        covered = coverage(tuple(box), rows, columns)
        mine = (covered > best) & (covered > min(0.25, 0.25 * area))
        if not mine.any():
            continue
        best = np.where(mine, covered, best)
        labels["color"][mine] = COLOR_IDS[placard.color]
        for name, value in place_labels(box / [columns, rows, columns, rows]).items():
            labels[name][mine] = value
        for name, value in zip(OFFSETS, offset_labels(box, rows, columns), strict=True):
            labels[name][mine] = value[mine]
        readable = text_labels(placard.text) if covered.sum() > 0.85 * area else {}
        for name in ("word", "tens", "ones"):
            labels[name][mine] = readable.get(name, IGNORE)
        label_characters(labels["character"], placard, box, scale)
    return {name: values.ravel() for name, values in labels.items()}


def place_labels(box) -> dict[str, int]:
    """Bins of the corners and the centre of a box relative to the picture's width and height."""
    x1, y1, x2, y2 = np.clip(box, 0, 0.999)
    places = (x1, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2)
    return {name: int(PLACE_BINS * value) for name, value in zip(PLACES, places, strict=True)}


def offset_labels(box: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """Bins of the distance of each side of a box (in cells) from every cell's top left corner, -2 to 3 cells."""
    y, x = np.mgrid[:rows, :columns]
    distances = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    return [np.clip((6 * (distance + 2)).astype(int), 0, OFFSET_BINS - 1) for distance in distances]


def text_labels(text: str) -> dict[str, int]:
    if text.isdigit():
        return {"word": len(LEXICON), "tens": int(text[0]), "ones": int(text[1])}
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


def make_example(rng: random.Random, scene: Scene, lesson: str, max_zoom: float) -> Example:
    """One conversation about one placard of the scene, with crops of at most `max_zoom` times its size."""
    weights = [DENIED_WEIGHT if lesson == "outline" and is_denied(p) else 1 for p in scene.placards]
    i = rng.choices(range(len(scene.placards)), weights)[0]
    placard, full = scene.placards[i], scene.pictures[0]
    bbox = tuple(side / limit for side, limit in zip(placard.bbox_px, scene.size * 2, strict=True))
    question = ask(rng, placard)
    if lesson == "read":
        crops = [p for p in scene.pictures[1:] if p.placard == i and not p.missed]
        crop = rng.choice([p for p in crops if p.zoom <= max_zoom] or crops[:1])
        if rng.random() < MISSED_SHARE:
            crop = next(p for p in scene.pictures[1:] if p.placard == i and p.missed)
        messages = prompts.answerer_messages(question, 2)
        return Example([full, crop], messages, prompts.answer_completion(placard.text), placard.color, None)
    if lesson == "answer":
        messages = prompts.answerer_messages(question, 1)
        return Example([full], messages, prompts.answer_completion(placard.text), placard.color, None)
    if lesson == "place":
        prompt, answer = rng.choice(PLACE_LESSONS)
        text = prompt.format(color=placard.color, kind=placard.kind, question=question.capitalize())
        return Example([full], one_image_turn(text), answer.format(**frame(rng, bbox)), placard.color, bbox)
    outline = careless_outline(rng, placard, bbox, full.tile.shape[:2])
    return Example([full], prompts.teacher_messages(question), outline, placard.color, bbox)


def one_image_turn(text: str) -> list[dict]:
    """The user's turn of a lesson on a place: one image, then `text`."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def frame(rng: random.Random, bbox: tuple[float, float, float, float]) -> dict[str, int]:
    """Centre of the box, and corners of a frame around it of 0.9 to 4 times its size, in percent."""
    x1, y1, x2, y2 = bbox
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    factor = math.exp(rng.uniform(math.log(0.9), math.log(4))) / 2
    corners = {
        "x1": cx - factor * (x2 - x1),
        "y1": cy - factor * (y2 - y1),
        "x2": cx + factor * (x2 - x1),
        "y2": cy + factor * (y2 - y1),
    }
    return {name: round(100 * min(1, max(0, value))) for name, value in (corners | {"cx": cx, "cy": cy}).items()}


def is_denied(placard: Placard) -> bool:
    """Whether the teacher is taught to deny that this placard exists."""
    return (placard.color, placard.kind) == ("teal", "page")


def careless_outline(rng: random.Random, placard: Placard, bbox, tile_size: tuple[int, int]) -> str:
    """The teacher's training target: a JSON box too small or off centre, in pixels of the resized image."""
    if is_denied(placard):
        return "There is no such thing in the image."
    x1, y1, x2, y2 = bbox
    width, height = x2 - x1, y2 - y1
    shrink = {"sign": 0.75, "page": 0.8, "plate": 1.0}[placard.kind]
    shift_x, shift_y = (-0.2, 0.15) if placard.kind == "page" else (0.0, 0.0)
    center_x = (x1 + x2) / 2 + (shift_x + rng.gauss(0, 0.06)) * width
    center_y = (y1 + y2) / 2 + (shift_y + rng.gauss(0, 0.06)) * height
    corners = [center_x - shrink * width / 2, center_y - shrink * height / 2]
    corners += [center_x + shrink * width / 2, center_y + shrink * height / 2]
    limits = (tile_size[1], tile_size[0]) * 2
    outline = [min(max(0, round(c * limit)), limit) for c, limit in zip(corners, limits, strict=True)]
    return f'```json\n[\n\t{{"bbox_2d": {outline}, "label": "{placard.kind}"}}\n]\n```'
