"""A sheet of held-out pictures with the answers they got, the wrong ones framed in red."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError

THUMBNAIL = 128
CAPTION = 18
FRAME = 4
COLUMNS = 8
MOST = 64

RIGHT, WRONG = "#2e7d32", "#c62828"


@dataclass(frozen=True)
class Answer:
    """One picture's place on the sheet."""

    path: str
    truth: str
    answer: str
    confidence: float

    @property
    def right(self) -> bool:
        return self.truth == self.answer


def choose(answers: Sequence[Answer]) -> list[Answer]:
    """At most 64: half of them wrong, the most confident first, then right ones spread over all confidences."""
    wrong = sorted((a for a in answers if not a.right), key=lambda a: -a.confidence)[: MOST // 2]
    right = sorted((a for a in answers if a.right), key=lambda a: -a.confidence)
    room = min(MOST - len(wrong), len(right))
    return wrong + [right[number * len(right) // room] for number in range(room)]


def draw_gallery(answers: Sequence[Answer], preprocessing: Preprocessing, path: Path) -> None:
    """Write the sheet. The pictures are shown as the network sees them."""
    answers = choose(answers)
    cell = THUMBNAIL + 2 * FRAME
    rows = -(-len(answers) // COLUMNS) or 1
    sheet = Image.new("RGB", (COLUMNS * cell, rows * (cell + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for number, answer in enumerate(answers):
        x, y = number % COLUMNS * cell, number // COLUMNS * (cell + CAPTION)
        colour = RIGHT if answer.right else WRONG
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
        try:
            pixels = preprocessing.apply(preprocessing.read(answer.path).image)
        except PictureError:
            continue
        sheet.paste(Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL)), (x + FRAME, y + FRAME))
        caption = f"{answer.answer} {answer.confidence:.2f}" + ("" if answer.right else f" (is {answer.truth})")
        draw.text((x + FRAME, y + cell + 1), caption, fill=colour, font=font)
    sheet.save(path)
