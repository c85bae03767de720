"""Leave out of a progressive JPEG what a picture decoded at a reduced scale does not show, without decoding it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SOF_PROGRESSIVE, _SOF_OTHERS = 0xC2, frozenset(range(0xC0, 0xD0)) - {0xC2, 0xC4, 0xC8, 0xCC}
_DHT, _SOI, _EOI, _SOS = 0xC4, 0xD8, 0xD9, 0xDA
_SKIPPABLE = frozenset({0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""DQT, DRI, COM and APPn: segments that are passed on as they are."""

_END_OF_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""The first marker that is no part of the entropy-coded data, as libjpeg sees it: not a stuffed zero, a restart, TEM or
a fill byte."""

_FULLEST_CODE = 1 << 16
"""Code space of 16 bits. libjpeg refuses a Huffman table that fills it: no code may be all ones (T.81, F.1.2.1.3)."""


class _Irregular(Exception):
    """Nothing to leave out, or a structure of which libjpeg itself must say what it is."""


@dataclass(frozen=True)
class _Component:
    identifier: int
    horizontal: int
    vertical: int


@dataclass
class _Structure:
    """Where the pieces of a file lie: `kept` are byte ranges from its start on, `cut` the components of which some
    AC scan is left out when it is decoded at 1/`scale`."""

    scale: int = 1
    components: dict[int, _Component] = field(default_factory=dict)
    tables: dict[int, bool] = field(default_factory=dict)  # by DHT's class and identifier: whether libjpeg takes it
    kept: list[tuple[int, int]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)


def without_late_scans(data: bytes, shorter_side: int) -> bytes:
    """The JPEG in `data` without the scans that matter little when Pillow's `draft` decodes it at 1/4 or 1/8, since
    it needs no more than `shorter_side` pixels.

    Left out are all scans that refine AC coefficients (T.81, G.1.2: successive approximation), and at 1/8 all AC
    scans of components of which libjpeg then shows only the mean of each block. The mean itself, the DC coefficient,
    keeps all its bits. Headers, tables and metadata stay. At 1/2 nothing is left out: there it changes pictures more
    than decoding at that scale does.

    The file must be regular from its first marker to its EOI; any other, and any that is not progressive or is
    arithmetic-coded, comes back as it is, so that libjpeg says of it what it always says. What cannot be seen is
    damage within the entropy-coded data of a scan that is left out, which libjpeg does not treat as an error either.
    """
    try:
        structure = _walk(data, shorter_side)
    except (_Irregular, IndexError):  # IndexError: cut short within a header
        return data
    if not structure.cut:
        return data
    return b"".join([*(data[start:end] for start, end in structure.kept), _closing(structure.cut), b"\xff\xd9"])


def _closing(components: set[int]) -> bytes:
    """For each component a last refinement that changes next to nothing.

    libjpeg takes the coefficients for exact then, and does not spend a third of its time on smoothing blocks. The
    only code of the table is the end of a block, and the data ends behind it: so does the refinement.
    """
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(16)
    scans = (bytes((0xFF, _SOS, 0, 8, 1, name, 0, 1, 63, 0x10, 0x7F)) for name in sorted(components))
    return table + b"".join(scans)


def _walk(data: bytes, shorter_side: int) -> _Structure:
    found = _Structure()
    position, kept_from = 2, 0
    if data[0] != 0xFF or data[1] != _SOI:
        raise _Irregular
    while True:
        start = position
        if data[position] != 0xFF:
            raise _Irregular
        while data[position] == 0xFF:  # any number of fill bytes before a marker
            position += 1
        marker = data[position]
        position += 1
        if marker == _EOI:
            found.kept.append((kept_from, start))
            return found
        if not found.components and marker in _SOF_OTHERS:
            raise _Irregular  # not progressive, or arithmetic-coded
        end = position + int.from_bytes(data[position : position + 2], "big")
        content = data[position + 2 : end]
        if end > len(data) or end < position + 2:
            raise _Irregular
        position = end
        if marker == _SOS:
            scan_end = _END_OF_SCAN.search(data, position)
            if scan_end is None:
                raise _Irregular
            position = scan_end.start()
            if _is_late(content, found):
                found.kept.append((kept_from, start))
                kept_from = position
        elif marker == _DHT:
            _note_tables(content, found)
        elif marker == _SOF_PROGRESSIVE and not found.components:
            _note_frame(content, found, shorter_side)
            if found.scale == 1:
                raise _Irregular
        elif marker not in _SKIPPABLE:
            raise _Irregular


def _note_frame(frame: bytes, found: _Structure, shorter_side: int) -> None:
    """T.81, B.2.2; the scale as Pillow's JpegImageFile.draft chooses it."""
    most = min(frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]) // shorter_side
    found.scale = next((scale for scale in (8, 4) if most >= scale), 1)
    for start in range(6, 6 + 3 * frame[5], 3):
        sampling = frame[start + 1]
        found.components[frame[start]] = _Component(frame[start], sampling >> 4, sampling & 15)


def _note_tables(tables: bytes, found: _Structure) -> None:
    """T.81, B.2.4.2. A table that libjpeg would refuse is only an error where a scan uses it."""
    start = 0
    while start < len(tables):
        counts = tables[start + 1 : start + 17]
        used = sum(count << (15 - bits) for bits, count in enumerate(counts))
        found.tables[tables[start]] = len(counts) == 16 and used < _FULLEST_CODE
        start += 17 + sum(counts)


def _is_late(scan: bytes, found: _Structure) -> bool:
    """Whether a scan (T.81, B.2.3) can be left out; only of one that libjpeg would read without complaint."""
    if len(scan) != 6 or scan[0] != 1 or scan[1] not in found.components:
        return False  # several components: DC coefficients
    name, first, last, high, low = scan[1], scan[3], scan[4], scan[5] >> 4, scan[5] & 15
    is_sound = 1 <= first <= last <= 63 and low <= 13 and found.tables.get(0x10 | scan[2] & 15, False)
    if not is_sound or (high and high != low + 1):
        return False
    if high or (found.scale == 8 and _shows_only_means(found.components[name], found)):
        found.cut.add(name)
        return True
    return False


def _shows_only_means(component: _Component, found: _Structure) -> bool:
    """Whether libjpeg at 1/8 makes one sample of each of its blocks: it makes more of a component that is sampled half
    as often as another both ways, instead of doubling samples later (jdmaster.c)."""
    most_across = max(other.horizontal for other in found.components.values())
    most_down = max(other.vertical for other in found.components.values())
    if not component.horizontal or not component.vertical:
        return False
    return bool(most_across % (2 * component.horizontal) or most_down % (2 * component.vertical))
