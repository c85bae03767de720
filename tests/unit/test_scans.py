"""pictures/scans.py: late scans are left out, and nothing else changes: neither a status nor an orientation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, noise, oriented, smooth

from gender_batch.pictures import read
from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.pictures.scans import NeverEnoughError, _Structure, shortened, without_late_scans
from gender_batch.prediction import Status

MOZJPEG = Path(__file__).with_name("mozjpeg.jpg").read_bytes()
"""128 x 96 pixels made up here, written by mozjpeg: other scans than libjpeg's, and chrominance is not refined."""


def textured(width: int, height: int) -> Image.Image:
    """Coloured quarters with grain: coefficients of every frequency."""
    grain = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.asarray(smooth(width, height)) + grain).clip(0, 255).astype(np.uint8))


def progressive(width: int = 128, height: int = 96, mode: str = "RGB", **options: Any) -> bytes:
    return encoded(textured(width, height).convert(mode), "JPEG", progressive=True, **{"quality": 85, **options})


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, start and end of each segment, a scan with its data, by another way than the program's: byte for byte."""
    found = [(0xD8, 0, 2)]
    at = 2
    while found[-1][0] != 0xD9:
        start = at
        marker = data[at + 1]
        at += 2
        if marker != 0xD9:
            at += int.from_bytes(data[at : at + 2], "big")
        if marker == 0xDA:
            while data[at] != 0xFF or data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
                at += 1
        found.append((marker, start, at))
    return found


def scans(data: bytes) -> list[tuple[tuple[int, ...], int, int, int]]:
    """Components, first and last coefficient, and earlier bits, of each scan."""
    heads = [
        data[start + 5 : start + 5 + 2 * data[start + 4] + 3] for marker, start, _ in segments(data) if marker == 0xDA
    ]
    return [(tuple(head[:-3:2]), head[-3], head[-2], head[-1] >> 4) for head in heads]


def as_whole(data: bytes, shorter_side: int | None) -> tuple[Status, np.ndarray | None]:
    """What is read when no scan is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "without_late_scans", lambda data, _: data)
        return as_read(data, shorter_side)


def as_read(data: bytes, shorter_side: int | None) -> tuple[Status, np.ndarray | None]:
    try:
        return Status.OK, np.asarray(decode_picture(data, shorter_side).image).astype(int)
    except PictureError as error:
        return error.status, None


# What is left out


def test_refinements_of_ac_coefficients_are_left_out_and_all_else_stays() -> None:
    data = progressive(comment=b"a comment", exif=Image.Exif().tobytes(), icc_profile=b"profile")
    short = without_late_scans(data, 24)
    before, after = scans(data), scans(short)
    kept = [scan for scan in before if scan[1] == 0 or scan[3] == 0]
    assert len(kept) == 6  # two of DC coefficients, four first ones of AC coefficients
    assert after == [*kept, *(((name,), 1, 63, 1) for name in (1, 2, 3))]
    tables = [data[start:end] for marker, start, end in segments(data) if marker not in (0xDA, 0xD9)]
    *left, closing = [short[start:end] for marker, start, end in segments(short) if marker not in (0xDA, 0xD9)]
    assert len(left) == len(tables) - 3  # those of the refinements of three components behind the last scan needed
    assert left == tables[: len(left)]
    assert closing.startswith(b"\xff\xc4")
    assert len(short) < 0.7 * len(data)


def test_at_an_eighth_only_the_means_of_luminance_blocks_are_read() -> None:
    assert [scan[:2] for scan in scans(without_late_scans(progressive(), 12))][:4] == [
        ((1, 2, 3), 0),
        ((3,), 1),
        ((2,), 1),
        ((1, 2, 3), 0),
    ]
    # Without subsampling, or with one across alone, chrominance is shown by its means, too.
    for subsampling in ("4:4:4", "4:2:2"):
        whole = without_late_scans(progressive(subsampling=subsampling), 12)
        assert [scan[:2] for scan in scans(whole)][:2] == [((1, 2, 3), 0), ((1, 2, 3), 0)]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("shorter_side", [24, 12])
def test_the_picture_is_nearly_the_same(mode: str, subsampling: str, shorter_side: int) -> None:
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    data = progressive(mode=mode, **options)
    assert len(without_late_scans(data, shorter_side)) < 0.8 * len(data)
    (_, short), (_, whole) = as_read(data, shorter_side), as_whole(data, shorter_side)
    assert short is not None
    assert whole is not None
    assert min(short.shape[:2]) == shorter_side
    assert np.abs(short - whole).mean() < 4
    assert abs((short - whole).mean()) < 0.5  # brightness stays: the mean of a block keeps all its bits


@pytest.mark.parametrize(("mode", "subsampling"), [("L", None), ("RGB", "4:4:4"), ("RGB", "4:2:2")])
def test_at_an_eighth_nothing_is_lost_where_only_means_are_shown(mode: str, subsampling: str | None) -> None:
    data = progressive(mode=mode, **({"subsampling": subsampling} if subsampling else {}))
    (_, short), (_, whole) = as_read(data, 12), as_whole(data, 12)
    assert np.array_equal(short, whole)


def test_the_scans_of_mozjpeg() -> None:
    assert len({scan[0] for scan in scans(MOZJPEG)}) == 4
    for shorter_side in (24, 12):
        assert len(without_late_scans(MOZJPEG, shorter_side)) < len(MOZJPEG)
        (_, short), (_, whole) = as_read(MOZJPEG, shorter_side), as_whole(MOZJPEG, shorter_side)
        assert np.abs(short - whole).mean() < 1.5
    assert np.array_equal(short, whole)  # at an eighth


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 3}, {"restart_marker_rows": 1}])
def test_restart_markers_are_no_end_of_a_scan(options: dict[str, int]) -> None:
    data = progressive(**options)
    assert b"\xff\xd1" in data
    assert len(scans(without_late_scans(data, 24))) == 6 + 3
    (_, short), (_, whole) = as_read(data, 24), as_whole(data, 24)
    assert np.abs(short - whole).mean() < 4


def test_a_thumbnail_in_the_exif_block_is_not_walked_into() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + progressive(48, 32)
    data = progressive(exif=exif)
    assert exif in without_late_scans(data, 24)
    (_, short), (_, whole) = as_read(data, 24), as_whole(data, 24)
    assert np.abs(short - whole).mean() < 4


def test_metadata_of_any_kind_are_passed_on() -> None:
    data = progressive()
    more = b"".join(bytes((0xFF, marker, 0, 5)) + b"abc" for marker in (*range(0xE1, 0xF0), 0xFE))
    assert without_late_scans(data[:2] + more + data[2:], 24) == data[:2] + more + without_late_scans(data, 24)[2:]


def test_fill_bytes_before_markers() -> None:
    data = progressive()
    filled = b"".join((b"\xff" * 3 if start else b"") + data[start:end] for _, start, end in segments(data))
    assert len(without_late_scans(filled, 24)) < 0.8 * len(filled)
    assert np.array_equal(as_read(filled, 24)[1], as_read(data, 24)[1])


@pytest.mark.parametrize("names", [(0, 1, 2), (82, 71, 66), (200, 7, 255)])
def test_components_of_any_name(names: tuple[int, int, int]) -> None:
    renamed = bytearray(data := progressive())
    for marker, start, _ in segments(data):
        if marker == 0xC2:
            places = range(start + 10, start + 19, 3)
        elif marker == 0xDA:
            places = range(start + 5, start + 5 + 2 * data[start + 4], 2)
        else:
            continue
        for place in places:
            renamed[place] = names[renamed[place] - 1]
    assert len(without_late_scans(bytes(renamed), 24)) == len(without_late_scans(data, 24))
    (_, short), (_, whole) = as_read(bytes(renamed), 24), as_whole(bytes(renamed), 24)
    assert np.abs(short - whole).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_size_are_those_of_the_file(orientation: int) -> None:
    picture = decode_picture(oriented(smooth(128, 64), orientation, "JPEG", progressive=True), 16)
    assert (picture.width, picture.height) == (128, 64)
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(smooth(*picture.image.size))).mean() < 3


def test_what_follows_the_end_is_of_no_interest() -> None:
    data = progressive()
    (_, alone), (_, before_a_film) = as_read(data, 24), as_read(data + b"\xff\xda a film", 24)
    assert np.array_equal(alone, before_a_film)


@settings(max_examples=60)
@given(width=st.integers(10, 300), height=st.integers(10, 300), shorter_side=st.integers(1, 300))
def test_scans_are_left_out_where_draft_reduces_by_four_or_more_and_nowhere_else(
    width: int, height: int, shorter_side: int
) -> None:
    data = encoded(noise(width, height), "JPEG", progressive=True)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (shorter_side, shorter_side))
        reduced = 3 * image.size[0] < width  # 1/4 or 1/8
    assert (without_late_scans(data, shorter_side) is not data) == reduced


# What is left to libjpeg


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(textured(128, 96), "JPEG"), id="baseline"),
        pytest.param(progressive()[:-2], id="no end"),
        pytest.param(progressive()[:700], id="cut short"),
        pytest.param(b"\xff\xd8\xff\xd9", id="nothing"),
        pytest.param(b"\xff\xd8", id="a signature"),
        pytest.param(progressive().replace(b"\xff\xc2", b"\xff\xca", 1), id="arithmetic coding"),
        pytest.param(b"\xff\xd8\0\0" + progressive()[2:], id="bytes between segments"),
        pytest.param(progressive().replace(b"\xff\xda", b"\xff\xda\0\3\1", 1), id="a scan of nothing"),
    ],
)
def test_irregular_files_and_others_are_handed_on_as_they_are(data: bytes) -> None:
    assert without_late_scans(data, 24) is data


def last_of(data: bytes, marker: int) -> tuple[int, int]:
    """Where the last such segment begins and ends, or what of it precedes a scan's data."""
    *_, (start, end) = ((start, end) for kind, start, end in segments(data) if kind == marker)
    return start, min(end, start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"))


@pytest.mark.usefixtures("looked_at_whole")
@pytest.mark.parametrize("before", [b"", b"\x13" + bytes((1, *[0] * 16))], ids=["alone", "behind another"])
@pytest.mark.parametrize(("codes", "status"), [((1, 1), Status.OK), ((1, 2), Status.CORRUPT), ((2,), Status.CORRUPT)])
def test_a_table_that_is_full_is_refused_also_for_a_scan_that_would_be_left_out(
    codes: tuple[int, ...], status: Status, before: bytes
) -> None:
    data = progressive()
    start, end = last_of(data, 0xC4)
    table = before + data[start + 4 : start + 5] + bytes((*codes, *[0] * (16 - len(codes)))) + bytes(sum(codes))
    changed = data[:start] + b"\xff\xc4" + (2 + len(table)).to_bytes(2, "big") + table + data[end:]
    assert as_whole(changed, 24)[0] is status
    assert as_read(changed, 24)[0] is status


@pytest.mark.usefixtures("looked_at_whole")
@pytest.mark.parametrize(("bits", "status"), [(0xED, Status.OK), (0xFE, Status.CORRUPT)])
def test_bits_that_libjpeg_refuses_are_refused_also_of_a_scan_that_would_be_left_out(bits: int, status: Status) -> None:
    data = bytearray(progressive())
    _, end = last_of(bytes(data), 0xDA)
    data[end - 1] = bits
    assert as_whole(bytes(data), 24)[0] is status
    assert as_read(bytes(data), 24)[0] is status


@pytest.mark.usefixtures("looked_at_whole")
def test_a_table_that_libjpeg_refuses_is_refused_also_for_a_scan_that_would_be_left_out() -> None:
    data = bytearray(progressive())
    *_, last = (start for marker, start, _ in segments(bytes(data)) if marker == 0xC4)
    data[last + 5 : last + 21] = bytes(
        (2, *data[last + 6 : last + 21])
    )  # two codes of one bit leave room for no others
    assert as_whole(bytes(data), 24)[0] is Status.CORRUPT
    assert as_read(bytes(data), 24)[0] is Status.CORRUPT


@pytest.fixture
def looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans that are left out are walked over to the end of the file."""
    monkeypatch.setattr(_Structure, "needs_no_more", lambda _: False)


SMALL = [progressive(64, 48), progressive(64, 48, mode="CMYK"), progressive(64, 48, restart_marker_blocks=2), MOZJPEG]


@settings(max_examples=150)
@given(data=st.data(), number=st.integers(0, len(SMALL) - 1), shorter_side=st.sampled_from([6, 12, 24]))
def test_damage_gives_the_status_that_it_gives_when_all_is_read(
    data: st.DataObject, number: int, shorter_side: int
) -> None:
    file = damaged(data, SMALL[number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "PIXEL_LIMIT", 1_000_000)
        read_in_part, read_whole = (way(file, shorter_side)[0] for way in (as_read, as_whole))
        if read_in_part is not read_whole:  # only what is behind the last scan needed may be as it likes
            assert (read_in_part, file[-2:]) == (Status.OK, b"\xff\xd9")
        patch.setattr(_Structure, "needs_no_more", lambda _: False)
        assert as_read(file, shorter_side)[0] is read_whole


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    file = bytearray(whole)
    for harm in data.draw(
        st.lists(st.sampled_from(["cut", "flip", "set", "remove", "insert"]), min_size=1, max_size=3)
    ):
        at = data.draw(st.integers(2, max(2, len(file) - 1)))
        if harm == "cut":
            del file[at:]
        elif harm == "remove":
            del file[at : at + data.draw(st.integers(1, 40))]
        elif harm == "insert":
            file[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif at < len(file):
            file[at] = 0xFF if harm == "set" else file[at] ^ 1 << data.draw(st.integers(0, 7))
    return bytes(file)


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_every_header_byte_changed(number: int) -> None:
    """Each byte of each frame, table and scan header in turn."""
    file = SMALL[number]
    sound = as_read(file, 6)[1]
    last_needed = end_of_what_is_needed(file)
    places = [
        place
        for marker, start, end in segments(file)
        if marker in (0xC2, 0xC4, 0xDA)
        for place in range(start, min(end, start + 2 + int.from_bytes(file[start + 2 : start + 4], "big")))
    ]
    assert (last_needed < places[-1]) == (file is not MOZJPEG)  # there what comes last is needed
    for place in places:
        harmed = bytearray(file)
        harmed[place] ^= 1 << place % 8
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read, "PIXEL_LIMIT", 1_000_000)
            status, seen = as_read(bytes(harmed), 6)
            if place < last_needed:
                assert status is as_whole(bytes(harmed), 6)[0], place
            else:
                assert np.array_equal(seen, sound), place


def end_of_what_is_needed(file: bytes) -> int:
    """At an eighth: the end of the last scan of DC coefficients, or first one of chrominance's others."""
    ends = [end for marker, _, end in segments(file) if marker == 0xDA]
    colour = file is not SMALL[1]  # CMYK is not subsampled: only means are shown of it
    return max(
        end
        for (names, first, _, earlier), end in zip(scans(file), ends, strict=True)
        if first == 0 or (colour and names != (1,) and not earlier)
    )


# What need not be read


@pytest.mark.parametrize("file", [progressive(300, 200), progressive(300, 200, mode="L"), MOZJPEG])
@pytest.mark.parametrize("shorter_side", [48, 24, 12, 6])
def test_the_start_of_a_file_is_enough_or_is_known_not_to_be(file: bytes, shorter_side: int) -> None:
    whole = without_late_scans(file, shorter_side)
    enough = [count for count in range(len(file)) if start_of(file, count, shorter_side) is not None]
    if not enough:
        assert whole is file or file is MOZJPEG  # nothing can be left out, or what comes last is needed
        return
    assert enough == list(range(enough[0], len(file)))
    assert enough[0] < 0.75 * len(file)
    assert {shortened(file[:count], shorter_side) for count in (enough[0], len(file) - 1)} == {whole}
    assert without_late_scans(whole, shorter_side) == whole


def test_no_start_of_other_files_is_enough() -> None:
    for file in (encoded(textured(128, 96), "JPEG"), progressive()[2:], b"", b"\x89PNG"):
        for count in range(0, len(file), 7):
            with pytest.raises(NeverEnoughError):
                shortened(file[:count], 12)
    whole = progressive()  # of which all is needed at half its size
    for count in range(0, len(whole), 7):
        with pytest.raises(NeverEnoughError):
            shortened(whole[:count], 48)


def start_of(file: bytes, count: int, shorter_side: int) -> bytes | None:
    """What its first bytes give; None also of those that end before the size of the picture."""
    try:
        return shortened(file[:count], shorter_side)
    except NeverEnoughError:
        return None
