"""Held-out pictures with the answers they got: which are worth seeing, how to show them, and all on one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gender_batch.evaluation.text import printable
from gender_batch.pictures.preprocessing import LONGEST_ASPECT, Preprocessing
from gender_batch.pictures.read import Picture, PictureError, read_picture
from gender_batch.prediction import Box

THUMBNAIL = 128
CAPTION, LINE = 32, 13
FRAME = 4
COLUMNS = 8
MOST = 64

BOX = "#ffd400"
RIGHT, WRONG = "#2e7d32", "#c62828"


@dataclass(frozen=True)
class Answer:
    """One held-out picture and its probabilities, by class.

    It is read from `path` and shown as `name`; both may hold undecodable bytes as surrogates. `truth` is the index of
    its label. `group` is its person, or the picture itself; `attributes` are what else is known of it. `box` is that of
    the face that was answered for, in pixels of the oriented picture; None: the whole picture was.
    """

    path: str
    name: str
    truth: int
    probabilities: tuple[float, ...]
    group: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    box: Box | None = None

    @property
    def answer(self) -> int:
        """Index of the most probable class."""
        return self.probabilities.index(max(self.probabilities))

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return max(self.probabilities)

    @property
    def right(self) -> bool:
        return self.truth == self.answer


def confident_errors(answers: Sequence[Answer], most: int) -> list[Answer]:
    """The wrong answers, the most confident first."""
    return sorted((answer for answer in answers if not answer.right), key=lambda answer: -answer.confidence)[:most]


def least_certain(answers: Sequence[Answer], most: int) -> list[Answer]:
    """The answers of the smallest confidence, right or wrong, the smallest first."""
    return sorted(answers, key=lambda answer: answer.confidence)[:most]


def thumbnail(answer: Answer, preprocessing: Preprocessing, most: int) -> Image.Image:
    """The picture as the network sees it, or whole with the face's box; its side at most `most` pixels.

    Raises PictureError.
    """
    if answer.box:
        return boxed(read_picture(answer.path, most), [answer.box], most)
    image = Image.fromarray(preprocessing.apply(preprocessing.read(answer.path).image))
    image.thumbnail((most, most))
    return image


def boxed(picture: Picture, boxes: Sequence[Box], most: int) -> Image.Image:
    """The picture, its longer side at most `most` pixels, with the boxes drawn, the first one thicker.

    It is whole, or, where one side is more than four times the other, so much of it about the first box, or its centre.
    """
    size = picture.image.size
    share = size[0] / picture.width
    x, y, width, height = boxes[0] if boxes else (0, 0, picture.width, picture.height)
    longest = LONGEST_ASPECT * min(size)
    across, down = (
        max(0, min(round(middle * share - longest / 2), length - longest))
        for middle, length in zip((x + width / 2, y + height / 2), size, strict=True)
    )
    image = picture.image.crop((across, down, min(across + longest, size[0]), min(down + longest, size[1])))
    before = image.width
    image.thumbnail((most, most))
    scale = image.width / before
    draw = ImageDraw.Draw(image)
    for number, (x, y, width, height) in reversed(list(enumerate(boxes))):
        left, top = (x * share - across) * scale, (y * share - down) * scale
        right, bottom = left + width * share * scale, top + height * share * scale
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=3 if number == 0 else 2)
        draw.rectangle((left, top, right, bottom), outline=BOX, width=2 if number == 0 else 1)
    return image


def draw_gallery(answers: Sequence[Answer], preprocessing: Preprocessing, path: Path, labels: Sequence[str]) -> None:
    """Write a sheet of right and wrong answers as PNG, the wrong ones framed in red.

    The place of a picture that cannot be read stays empty. Needs matplotlib, for its font.
    """
    import matplotlib

    answers = _choose(answers)
    cell = THUMBNAIL + 2 * FRAME
    rows = -(-len(answers) // COLUMNS) or 1
    sheet = Image.new("RGB", (COLUMNS * cell, rows * (cell + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    # Pillow's own has no letters but those of English.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 10)
    for number, answer in enumerate(answers):
        x, y = number % COLUMNS * cell, number // COLUMNS * (cell + CAPTION)
        colour = RIGHT if answer.right else WRONG
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
        try:
            image = thumbnail(answer, preprocessing, THUMBNAIL)
        except PictureError:
            continue
        scale = THUMBNAIL / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        sheet.paste(image, (x + FRAME + (THUMBNAIL - image.width) // 2, y + FRAME + (THUMBNAIL - image.height) // 2))
        answered, truth = (printable(labels[index]) for index in (answer.answer, answer.truth))
        lines = [f"{answer.confidence:.2f} {answered}", *([] if answer.right else [f"label: {truth}"])]
        for line, text in enumerate(lines):
            place = (x + FRAME, y + cell + 1 + line * LINE)
            draw.text(place, _fitting(text, font, THUMBNAIL), fill=colour, font=font)
    sheet.save(path)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of the text as is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _choose(answers: Sequence[Answer]) -> list[Answer]:
    """At most 64: half of them wrong, the most confident first, then right ones spread over all confidences."""
    wrong = confident_errors(answers, MOST // 2)
    right = sorted((answer for answer in answers if answer.right), key=lambda answer: -answer.confidence)
    room = min(MOST - len(wrong), len(right))
    return wrong + [right[number * len(right) // room] for number in range(room)]
