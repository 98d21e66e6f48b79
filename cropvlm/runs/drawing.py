"""Boxes on images, captioned tiles and contact sheets: the pictures of the teacher's report, GRPO and the miniature.

Pillow alone: torchvision's `draw_bounding_boxes` and `make_grid` take tensors of one size and write no captions.
"""

import itertools
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from cropvlm.boxes import pct_to_px

LINE = 18  # pixels of a line of text
INK = "#282828"


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return `image` scaled, up or down, to fit `size` (width, height) exactly in one direction; at least 1x1 px."""
    scale = min(size[0] / image.width, size[1] / image.height)
    return image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))


def draw_boxes(image: Image.Image, boxes: Iterable[tuple[Sequence[float], str]], width: int = 2) -> Image.Image:
    """Return a copy of `image` with an outline, `width` pixels thick, for each (bbox_pct, color)."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for bbox_pct, color in boxes:
        left, top, right, bottom = pct_to_px(bbox_pct, *image.size)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)
    return image


def tile(
    image: Image.Image | None,
    size: tuple[int, int],
    *,
    boxes: Iterable[tuple[Sequence[float], str]] = (),
    frame: str | None = None,
    lines: Sequence[tuple[str, str]] = (),
    font_size: int = 12,
) -> Image.Image:
    """Return a picture of `size` (width, height): `image`, if any, with boxes on it, above its lines of text.

    boxes: (bbox_pct, color) of each. frame: color of a frame around the image. lines: (text, color) of each line; what
    is too wide is cut off.
    """
    canvas = Image.new("RGB", size, "white")
    height = size[1] - LINE * len(lines)
    if image is not None:
        picture = draw_boxes(fit(image, (size[0], height)), boxes)
        canvas.paste(draw_boxes(picture, [((0, 0, 100, 100), frame)]) if frame else picture)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(font_size)
    for i, (text, color) in enumerate(lines):
        draw.text((2, height + LINE * i + 2), " ".join(text.split())[: size[0]], fill=color, font=font)
    return canvas


def contact_sheet(tiles: Sequence[Image.Image], columns: int, padding: int = 4) -> Image.Image:
    """Return the tiles row by row on white; cells are as wide as the widest tile, rows as high as their highest."""
    width = max(tile.width for tile in tiles) + 2 * padding
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + 2 * padding for row in rows]
    sheet = Image.new("RGB", (width * columns, sum(heights)), "white")
    for row, top in zip(rows, itertools.accumulate(heights, initial=padding), strict=False):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width + padding, top))
    return sheet
