"""demo_image: scenes of coloured shapes, drawn here, with captions that describe them.

Like `demo_text` it is on every machine. A scene has two shapes, each of a colour, a size and a
place, on a ground; no two scenes are alike in all of these. Its captions say the same in different
words and orders, so that a held-out caption can be understood from the others; most of them speak
of left and right, which is why nothing flips images here. An unseen view is the same scene drawn
anew: shifted, scaled and tinted a little, on another texture.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw

from dsi_jax.data.corpora.image_corpus import CaptionedImages, ImageCorpus, ImageQuerySet
from dsi_jax.data.corpora.image_protocols import heldout_caption

NUM_SCENES = 400
NUM_CAPTIONS = 6
SIZE = 64  # pixels a side
_OVERSAMPLING = 4  # drawn larger and scaled down, for smooth edges

SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
}
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (240, 220, 30),
    "green": (44, 150, 44),
    "blue": (31, 90, 200),
    "purple": (140, 60, 170),
    "brown": (120, 72, 40),
    "black": (20, 20, 20),
}
GROUNDS = {"white": (250, 250, 250), "grey": (180, 180, 180), "pink": (250, 200, 210)}
SIZES = {"large": (("large", "big"), 0.20), "small": (("small", "little"), 0.11)}  # radius
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
_UPPER = {"top": ("top", "upper"), "middle": ("middle",), "bottom": ("bottom", "lower")}


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in a scene: names of SHAPES, COLOURS and SIZES, and its cell among 3 x 3."""

    shape: str
    colour: str
    size: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two things in different columns, the left one first, on one of GROUNDS."""

    left: Thing
    right: Thing
    ground: str


def load(
    seed: int, count: int = NUM_SCENES, *, protocol: str | None = None, skip: bool = False
) -> ImageCorpus:
    """Draws the corpus.

    Args:
      seed: of scenes, captions, drawings and which caption of each scene is held out.
      count: number of scenes N.
      protocol: None or `heldout_caption`, the one that there is.
      skip: not used: every image of it can be used.

    Returns:
      A corpus of the protocol `heldout_caption`; `image_queries["test"]` has one unseen view of
      each scene.

    Raises:
      ValueError: another protocol is asked for.
    """
    del skip
    if protocol not in (None, "heldout_caption"):
        raise ValueError(
            f"corpus 'demo_image' has the protocol 'heldout_caption'; found '{protocol}'"
        )
    described = scenes(seed, count)
    keys = [f"scene{i:04d}" for i in range(count)]
    corpus = heldout_caption(
        CaptionedImages(
            name="demo_image",
            keys=keys,
            images=[draw(scene, [seed, i, 0], jitter=False) for i, scene in enumerate(described)],
            captions=[captions(scene, [seed, i, 1]) for i, scene in enumerate(described)],
        ),
        seed,
    )
    views = ImageQuerySet(
        ids=[f"view{i}" for i in range(count)],
        images=[draw(scene, [seed, i, 2], jitter=True) for i, scene in enumerate(described)],
        relevant=[np.array([i], np.int32) for i in range(count)],
    )
    return dataclasses.replace(corpus, image_queries={"test": views})


def scenes(seed: int, count: int) -> list[Scene]:
    """So many different scenes; a larger count goes on where a smaller one ends."""
    rng = np.random.default_rng(seed)
    found: dict[Scene, None] = {}
    while len(found) < count:
        columns = sorted(rng.permutation(3)[:2].tolist())
        things = [_thing(rng, column) for column in columns]
        scene = Scene(*things, ground=_choice(rng, GROUNDS))
        if things[0].shape != things[1].shape and things[0].colour != things[1].colour:
            found[scene] = None
    return list(found)


def captions(scene: Scene, seed: int | list[int], count: int = NUM_CAPTIONS) -> list[str]:
    """Different captions of a scene.

    Args:
      scene: the scene.
      seed: of the order of the forms and of the choice among words of one meaning.
      count: at most as many as there are forms.
    """
    rng = np.random.default_rng(seed)
    say = functools.partial(_words, rng)
    left, right = scene.left, scene.right
    over = "above" if left.row < right.row else "below" if left.row > right.row else "level with"
    forms: list[Callable[[], str]] = [
        lambda: f"a {say(left)} {_place(rng, left)} and a {say(right)} {_place(rng, right)}",
        lambda: f"a {say(right)} {_place(rng, right)} and a {say(left)} {_place(rng, left)}",
        lambda: f"a {say(left)} to the left of a {say(right)} on {scene.ground}",
        lambda: f"a {say(right)} to the right of a {say(left)} on a {scene.ground} ground",
        lambda: f"there is a {say(left)} {over} a {say(right)}, on {scene.ground}",
        lambda: f"{scene.ground} ground, {say(left)} {_place(rng, left)}, {say(right)}",
        lambda: f"{say(right)} {_place(rng, right)}, {say(left)}, {scene.ground} ground",
    ]
    return [forms[i]() for i in rng.permutation(len(forms))[:count]]


def draw(scene: Scene, seed: int | list[int], *, jitter: bool) -> bytes:
    """Draws a scene.

    Args:
      scene: the scene.
      seed: of the texture of the ground, and of the jitter.
      jitter: whether things are shifted, scaled and tinted a little.

    Returns:
      The bytes of a BMP file of SIZE x SIZE pixels: uncompressed, hence the same everywhere.
    """
    rng = np.random.default_rng(seed)
    side = SIZE * _OVERSAMPLING
    coarse = np.array(GROUNDS[scene.ground]) + rng.normal(0, 6, (8, 8, 3))
    texture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    image = texture.resize((side, side), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    for thing in (scene.left, scene.right):
        centre = (np.array([thing.column, thing.row]) * 0.29 + 0.21) * side
        radius = SIZES[thing.size][1] * side
        colour = np.array(COLOURS[thing.colour], float)
        if jitter:
            centre = centre + rng.uniform(-0.03, 0.03, 2) * side
            radius = radius * rng.uniform(0.88, 1.12)
            colour = colour + rng.uniform(-18, 18, 3)
        _draw(canvas, thing.shape, centre, radius, tuple(colour.clip(0, 255).astype(int).tolist()))
    buffer = io.BytesIO()
    image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(buffer, "BMP")
    return buffer.getvalue()


def _draw(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    centre: np.ndarray,
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    if shape == "circle":
        canvas.ellipse([*(centre - radius), *(centre + radius)], fill=colour)
        return
    corners = {
        "square": [(0.85, 45 + 90 * i) for i in range(4)],
        "diamond": [(0.75 if i % 2 else 1.1, 90 * i) for i in range(4)],
        "triangle": [(1.1, 120 * i) for i in range(3)],
        "star": [(0.42 if i % 2 else 1.1, 36 * i) for i in range(10)],
        "cross": [
            (0.42 if i % 3 == 2 else 1.04, 90 * (i // 3) + (-17, 17, 45)[i % 3]) for i in range(12)
        ],
    }[shape]
    points = [
        (
            centre[0] + radius * length * math.sin(math.radians(angle)),
            centre[1] - radius * length * math.cos(math.radians(angle)),
        )
        for length, angle in corners
    ]
    canvas.polygon(points, fill=colour)


def _thing(rng: np.random.Generator, column: int) -> Thing:
    return Thing(
        shape=_choice(rng, SHAPES),
        colour=_choice(rng, COLOURS),
        size=_choice(rng, SIZES),
        row=int(rng.integers(3)),
        column=column,
    )


def _choice(rng: np.random.Generator, names: Iterable[str]) -> str:
    return list(names)[int(rng.integers(len(names)))]


def _words(rng: np.random.Generator, thing: Thing) -> str:
    """ "large red circle", in one of its wordings."""
    size = _choice(rng, SIZES[thing.size][0])
    return f"{size} {thing.colour} {_choice(rng, SHAPES[thing.shape])}"


def _place(rng: np.random.Generator, thing: Thing) -> str:
    """ "at the top left", in one of its wordings."""
    row, column = _choice(rng, _UPPER[ROWS[thing.row]]), COLUMNS[thing.column]
    if (thing.row, thing.column) == (1, 1):
        return "in the centre"
    return f"at the {row} {column}"
