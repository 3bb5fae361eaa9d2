"""A contact sheet: queries and the images that were found for them, on one PNG to look at."""

from __future__ import annotations

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dsi_jax.inputs import image_files
from dsi_jax.utils import atomic_files

SHOWN = 5  # results of a query

_THUMB = 152  # pixels a side
_QUERY = 232  # width of the queries' column
_GAP = 18  # between columns, and around thumbnails
_MARGIN = 24
_HEAD = 44
_CAPTION = 54  # below a thumbnail: key and score
_FRAME = 4  # of a right answer

_INK = (32, 33, 36)
_GREY = (128, 132, 138)
_LINE = (224, 226, 230)
_BORDER = (186, 190, 196)
_PAPER = (255, 255, 255)
_MAT = (244, 245, 247)  # behind an image that is not square
_GREEN = (22, 138, 74)


@dataclasses.dataclass(frozen=True)
class Found:
    """An image on the sheet.

    Attributes:
      image: path, or the bytes of a file.
      key: of the document, written below.
      score: written below the key; None where there is none.
      right: whether it answers the query.
    """

    image: Path | bytes
    key: str
    score: float | None = None
    right: bool = False


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """A query and what was found.

    Attributes:
      query: a text, or an image (path or bytes).
      results: best first; the first SHOWN are drawn.
      answer: a right answer, drawn at the far right if none of the results shown is right.
    """

    query: str | Path | bytes
    results: Sequence[Found]
    answer: Found | None = None

    @property
    def shown(self) -> Sequence[Found]:
        """The results that are drawn."""
        return self.results[:SHOWN]

    @property
    def missed(self) -> Found | None:
        """The answer, if it is drawn."""
        if self.answer is None or any(found.right for found in self.shown):
            return None
        return dataclasses.replace(self.answer, right=True)


def write(path: str | os.PathLike[str], rows: Sequence[SheetRow]) -> None:
    """Draws a contact sheet.

    Args:
      path: of the PNG; it is replaced as a whole.
      rows: queries, from top to bottom. Texts are written in Pillow's own font, which has the
        letters of ASCII alone: others lose their accents, or become question marks.

    Raises:
      ValueError: there is no row, or as `images.decode`.
      FileNotFoundError: an image does not exist.
    """
    if not rows:
        raise ValueError("a contact sheet has no queries; expected at least one")
    with atomic_files.replacing(path) as temporary:
        render(rows).save(temporary, "PNG", optimize=True)


def render(rows: Sequence[SheetRow]) -> Image.Image:
    """The sheet as an image in RGB, see `write`."""
    heads = ["query", *(str(rank) for rank in range(1, SHOWN + 1))]
    if any(row.missed for row in rows):
        heads.append("right answer")
    lefts = [_MARGIN, *(_left(column) for column in range(len(heads) - 1))]
    width = lefts[-1] + _THUMB + _MARGIN
    step = _THUMB + _CAPTION + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * step + _MARGIN - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, head in zip(lefts, heads, strict=True):
        draw.text((left, _HEAD // 2), head, _GREY, _font(15), anchor="lm")
    for index, row in enumerate(rows):
        top = _HEAD + index * step
        draw.line([(_MARGIN, top), (width - _MARGIN, top)], _LINE)
        _draw_row(sheet, row, lefts, top + _GAP)
    return sheet


def _left(column: int) -> int:
    """Where the thumbnails of a column begin; the column of answers stands a little apart."""
    return _MARGIN + _QUERY + _GAP + column * (_THUMB + _GAP) + (column == SHOWN) * _GAP


def _draw_row(sheet: Image.Image, row: SheetRow, lefts: Sequence[int], top: int) -> None:
    if isinstance(row.query, str):
        _draw_text(sheet, row.query, lefts[0], top)
    else:
        _draw_thumbnail(sheet, row.query, lefts[0], top)
    for left, found in zip(lefts[1:], row.shown, strict=False):
        _draw_found(sheet, found, left, top)
    for left in lefts[1 + len(row.shown) : 1 + SHOWN]:
        middle = (left + _THUMB // 2, top + _THUMB // 2)
        ImageDraw.Draw(sheet).text(middle, "no document", _GREY, _font(14), anchor="mm")
    if row.missed is not None:
        _draw_found(sheet, row.missed, lefts[-1], top)


def _draw_text(sheet: Image.Image, text: str, left: int, top: int) -> None:
    font, pitch = _font(19), 25
    lines = _wrap(_ascii(text), font, _QUERY - _GAP)
    most = (_THUMB + _CAPTION) // pitch
    if len(lines) > most:
        lines = [*lines[: most - 1], _shorten(" ".join(lines[most - 1 :]), font, _QUERY - _GAP)]
    for index, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top - 3 + index * pitch), line, _INK, font)


def _draw_found(sheet: Image.Image, found: Found, left: int, top: int) -> None:
    _draw_thumbnail(sheet, found.image, left, top)
    draw = ImageDraw.Draw(sheet)
    if found.right:
        box = [left - _FRAME, top - _FRAME, left + _THUMB + _FRAME - 1, top + _THUMB + _FRAME - 1]
        draw.rectangle(box, outline=_GREEN, width=_FRAME)
        _draw_tick(sheet, left + _THUMB - 2, top + 2)
    baseline = top + _THUMB + 10
    draw.text((left, baseline), _shorten(_ascii(found.key), _font(14), _THUMB), _INK, _font(14))
    if found.score is not None:
        draw.text((left, baseline + 18), f"{found.score:.3f}", _GREY, _font(13))


def _draw_thumbnail(sheet: Image.Image, source: Path | bytes, left: int, top: int) -> None:
    """The whole image, as large as fits, with a thin frame."""
    image = ImageOps.contain(
        image_files.decode(source), (_THUMB, _THUMB), method=Image.Resampling.BICUBIC
    )
    box = [left, top, left + _THUMB - 1, top + _THUMB - 1]
    draw = ImageDraw.Draw(sheet)
    draw.rectangle(box, fill=_MAT)
    sheet.paste(image, (left + (_THUMB - image.width) // 2, top + (_THUMB - image.height) // 2))
    draw.rectangle(box, outline=_BORDER)


def _draw_tick(sheet: Image.Image, x: int, y: int, radius: int = 12) -> None:
    """A white tick on a green disc around (x, y), drawn large and scaled down for smooth edges."""
    scale = 4
    side = 2 * radius * scale
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse([0, 0, side - 1, side - 1], fill=255)
    disc = Image.new("RGB", (side, side), _GREEN)
    corners = [(0.28 * side, 0.52 * side), (0.44 * side, 0.68 * side), (0.73 * side, 0.34 * side)]
    ImageDraw.Draw(disc).line(corners, _PAPER, width=side // 9, joint="curve")
    small = (2 * radius, 2 * radius)
    place = (x - radius, y - radius)
    smooth = Image.Resampling.LANCZOS
    sheet.paste(disc.resize(small, smooth), place, mask.resize(small, smooth))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of a text that are at most so wide; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _ascii(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text)
    letters = "".join(character for character in apart if not unicodedata.combining(character))
    return letters.encode("ascii", "replace").decode()


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
