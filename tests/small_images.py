"""A dozen small pictures with two captions each, for tests of image search."""

import csv
import json
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 16
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("disc", "square", "bar")
NUM_IMAGES = len(COLOURS) * len(SHAPES)


def draw(colour: str, shape: str) -> Image.Image:
    """A shape of the colour on black."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse((2, 2, 13, 13), fill=colour)
    else:
        pen.rectangle((3, 3, 12, 12) if shape == "square" else (0, 6, 15, 9), fill=colour)
    return image


def write_pictures(directory: Path) -> tuple[Path, Path]:
    """Writes the pictures and a CSV file of their captions beside them.

    Returns:
      (the directory of the pictures, the file).
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for shape in SHAPES:
        for colour in COLOURS:
            name = f"{colour}_{shape}.png"
            draw(colour, shape).save(directory / name)
            rows += [(name, f"a {colour} {shape}"), (name, f"{shape} in {colour}")]
    captions = directory.with_suffix(".csv")
    with captions.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return directory, captions


def write_clip_tokenizer(directory: Path) -> int:
    """Writes a tokenizer of CLIP that knows single bytes; returns the size of its vocabulary."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    tokens.append("<|endoftext|>")
    vocab = {token: i for i, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return len(tokens)
