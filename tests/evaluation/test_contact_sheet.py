"""The contact sheet: what is drawn where, and that it is always the same."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsi_jax.evaluation import contact_sheet
from dsi_jax.evaluation.contact_sheet import Found, SheetRow
from dsi_jax.inputs.image_files import ImageError

BLUE, RED = (30, 60, 200), (200, 40, 30)
THUMB, COLUMN = 152, 170  # a thumbnail, and from one to the next
TOP, FIRST = 62, 274  # of the first row; where its first result begins
ANSWER = FIRST + 5 * COLUMN + 18
STEP = 224  # from one row to the next


def png(colour, size=(20, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def results(right: int | None, count: int = 5) -> list[Found]:
    return [Found(png(RED), f"image{i}", -0.5 * i, right=i == right) for i in range(count)]


def pixel(sheet: Image.Image, left: int, top: int = TOP) -> tuple:
    """The middle of a thumbnail."""
    return sheet.getpixel((left + THUMB // 2, top + THUMB // 2))


def has_green_frame(sheet: Image.Image, left: int, top: int = TOP) -> bool:
    middle = top + THUMB // 2
    sides = [sheet.getpixel((x, middle)) for x in (left - 2, left + THUMB + 1)]
    return sides == [contact_sheet._GREEN] * 2


def test_right_answers_are_framed_and_ticked():
    sheet = contact_sheet.render([SheetRow("a query", results(right=1))])
    for column in range(5):
        left = FIRST + column * COLUMN
        assert pixel(sheet, left) == RED
        assert has_green_frame(sheet, left) == (column == 1)
        corner = sheet.crop((left + THUMB - 10, TOP + 1, left + THUMB - 1, TOP + 10))
        assert (np.asarray(corner).min(-1) > 240).any() == (column == 1)
    assert sheet.width < ANSWER + THUMB  # nobody needs the column of answers


def test_answer_is_shown_where_it_was_not_found():
    answer = Found(png(BLUE), "answer")
    missed, found = SheetRow("x", results(None), answer), SheetRow("x", results(3), answer)
    sheet = contact_sheet.render([missed, found])
    assert pixel(sheet, ANSWER) == BLUE
    assert has_green_frame(sheet, ANSWER)
    assert pixel(sheet, ANSWER, TOP + STEP) == contact_sheet._PAPER
    # What is right beyond the five shown counts as missed.
    beyond = SheetRow("x", [*results(None), Found(png(RED), "sixth", right=True)], answer)
    assert contact_sheet.render([beyond]).width == sheet.width
    alone = contact_sheet.render([SheetRow("x", results(3), answer)])
    assert alone.width < sheet.width


def test_queries_are_texts_or_images(tmp_path):
    (tmp_path / "query.png").write_bytes(png(BLUE, (40, 20)))
    rows = [SheetRow(query, results(0)) for query in (png(BLUE), tmp_path / "query.png", "blue")]
    sheet = contact_sheet.render(rows)
    left = 24
    assert pixel(sheet, left) == pixel(sheet, left, TOP + STEP) == BLUE
    # A wide image is shown whole, on a mat.
    assert sheet.getpixel((left + 10, TOP + STEP + 10)) == contact_sheet._MAT
    text = np.asarray(sheet.crop((left, TOP + 2 * STEP, left + 200, TOP + 2 * STEP + 25)))
    assert (text < 100).any() and (text == 255).any()


def test_no_image_is_drawn_for_absent_results():
    sheet = contact_sheet.render([SheetRow("x", results(None, count=2))])
    assert pixel(sheet, FIRST + COLUMN) == RED
    column = np.asarray(sheet.crop((FIRST + 2 * COLUMN, TOP, FIRST + 2 * COLUMN + THUMB, TOP + 60)))
    assert (column == 255).all()


@pytest.mark.parametrize("text", ["word " * 200, "x" * 500, "", "Käfig 檻"])
def test_texts_stay_in_their_column(text):
    row = SheetRow(text, [Found(png(RED), "a very long key of an image " * 3, 1.0)])
    sheet = np.asarray(contact_sheet.render([row]))
    between = sheet[TOP:, 24 + 232 : FIRST]
    assert (between[:STEP] == between[0, 0]).all(axis=(1, 2)).sum() >= STEP - 20
    assert (sheet[TOP + THUMB + 5 :, FIRST + THUMB : FIRST + COLUMN] == 255).all()


def test_words_are_wrapped_and_none_is_lost():
    font = contact_sheet._font(19)
    text = "a small red circle at the top left and Donaudampfschifffahrtsgesellschaft"
    lines = contact_sheet._wrap(text, font, 150)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert lines[:2] == ["a small red circle", "at the top left"]


def test_fifteen_rows_are_written_alike_each_time(tmp_path):
    rows = [SheetRow(f"query {i}", results(i % 6)) for i in range(15)]
    contact_sheet.write(tmp_path / "one.png", rows)
    contact_sheet.write(tmp_path / "two.png", rows)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.height > 15 * STEP
        assert pixel(sheet, FIRST, TOP + 14 * STEP) == RED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="no queries"):
        contact_sheet.write(tmp_path / "sheet.png", [])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        contact_sheet.render([SheetRow(Path("nowhere.png"), [])])
    with pytest.raises(ImageError, match="is empty"):
        contact_sheet.render([SheetRow("x", [Found(b"", "key")])])
    assert not list(tmp_path.iterdir())
