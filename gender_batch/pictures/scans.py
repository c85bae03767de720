"""Leave out of a progressive JPEG what a picture decoded at a reduced scale does not show, without decoding it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SOF_PROGRESSIVE, _DHT, _SOI, _EOI, _SOS = 0xC2, 0xC4, 0xD8, 0xD9, 0xDA
_SKIPPABLE = frozenset({0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""DQT, DRI, COM and APPn: segments that are passed on as they are."""

_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""The first marker that is no part of the entropy-coded data: neither a stuffed zero nor a restart."""

_FULLEST_CODE = 1 << 16
"""Code space of 16 bits. libjpeg refuses a Huffman table that fills it: no code may be all ones (T.81, F.1.2.1.3)."""

_END = bytes((0xFF, _EOI))


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
    AC scan is left out when it is decoded at 1/`scale`. `lacking` tells of each component's coefficients how many bits
    the scans so far leave to later ones, None where there was none; `stopped`, that no later scan was looked at."""

    scale: int = 1
    components: dict[int, _Component] = field(default_factory=dict)
    lacking: dict[int, list[int | None]] = field(default_factory=dict)
    tables: dict[int, bool] = field(default_factory=dict)  # by DHT's class and identifier: whether libjpeg takes it
    kept: list[tuple[int, int]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    stopped: bool = False

    def needs_no_more(self) -> bool:
        """Whether all scans that may follow can be left out, and some must: nothing lacks but bits of AC coefficients,
        or AC coefficients that are not shown."""
        for name, (mean, *others) in self.lacking.items():
            shown = not (self.scale == 8 and _shows_only_means(self.components[name], self))
            if mean != 0 or (shown and None in others):
                return False
        return any(any(bits != 0 for bits in bits_of[1:]) for bits_of in self.lacking.values())


def without_late_scans(data: bytes, shorter_side: int) -> bytes:
    """The JPEG in `data` without the scans that matter little when Pillow's `draft` decodes it at 1/4 or 1/8, since
    it needs no more than `shorter_side` pixels.

    Left out are all scans that refine AC coefficients (T.81, G.1.2: successive approximation), and at 1/8 all AC
    scans of components of which libjpeg then shows only the mean of each block. The mean itself, the DC coefficient,
    keeps all its bits. Headers, tables and metadata stay. At 1/2 nothing is left out: there it changes pictures more
    than decoding at that scale does.

    The file must be regular from its first marker to the last scan that is needed, and end with EOI; any other, and
    any that is not progressive or is arithmetic-coded, comes back as it is, so that libjpeg says of it what it always
    says. What cannot be seen is damage of what is left out. Within entropy-coded data, that is nearly all of it,
    libjpeg would not treat it as an error either.
    """
    found = _Structure()
    try:
        _walk(data, shorter_side, found, may_stop=ends_properly(data))
    except (_Irregular, IndexError):  # IndexError: cut short within a header
        return data
    return _spliced(data, found) if found.cut else data


def ends_properly(end: bytes) -> bool:
    return end.endswith(_END)


class NeverEnoughError(Exception):
    """All of the file is needed."""


def shortened(start: bytes, shorter_side: int) -> bytes | None:
    """What `without_late_scans` makes of a file that begins with `start` and ends with EOI, None if more of it must be
    seen to tell. Raises NeverEnoughError of a file that is no progressive JPEG, or not decoded at 1/4 or 1/8."""
    found = _Structure()
    try:
        _walk(start, shorter_side, found, may_stop=True)
    except (_Irregular, IndexError):
        if not found.components or found.scale == 1:
            raise NeverEnoughError from None
    return _spliced(start, found) if found.stopped else None


def _spliced(data: bytes, structure: _Structure) -> bytes:
    return b"".join([*(data[start:end] for start, end in structure.kept), _closing(structure.cut), _END])


def _closing(components: set[int]) -> bytes:
    """For each component a last refinement that changes next to nothing.

    libjpeg takes the coefficients for exact then, and does not spend a third of its time on smoothing blocks. The
    only code of the table is the end of a block, and the data ends behind it: so does the refinement.
    """
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(16)
    scans = (bytes((0xFF, _SOS, 0, 8, 1, name, 0, 1, 63, 0x10, 0x7F)) for name in sorted(components))
    return table + b"".join(scans)


def _walk(data: bytes, shorter_side: int, found: _Structure, may_stop: bool) -> None:
    """Note the structure up to EOI, or, where it `may_stop`, up to the end of the last scan that is needed."""
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
            return
        end = position + int.from_bytes(data[position : position + 2], "big")
        content = data[position + 2 : end]
        position = end
        if marker == _SOS:
            scan_end = _END_OF_SCAN.search(data, position)
            if scan_end is None:
                raise _Irregular
            position = scan_end.start()
            _note_scan(content, found)
            if _is_late(content, found):
                found.kept.append((kept_from, start))
                kept_from = position
            if may_stop and found.needs_no_more():
                found.kept.append((kept_from, position))
                found.cut |= {name for name, bits in found.lacking.items() if any(bit != 0 for bit in bits[1:])}
                found.stopped = True
                return
        elif marker == _DHT:
            _note_tables(content, found)
        elif marker == _SOF_PROGRESSIVE and not found.components:
            _note_frame(content, found, shorter_side)
            if found.scale == 1:
                raise _Irregular
        elif marker not in _SKIPPABLE:
            raise _Irregular  # not progressive, arithmetic-coded, or more than one picture


def _note_frame(frame: bytes, found: _Structure, shorter_side: int) -> None:
    """T.81, B.2.2; the scale as Pillow's JpegImageFile.draft chooses it."""
    most = min(frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]) // shorter_side
    found.scale = next((scale for scale in (8, 4) if most >= scale), 1)
    for start in range(6, 6 + 3 * frame[5], 3):
        sampling = frame[start + 1]
        found.components[frame[start]] = _Component(frame[start], sampling >> 4, sampling & 15)
        found.lacking[frame[start]] = [None] * 64


def _note_tables(tables: bytes, found: _Structure) -> None:
    """T.81, B.2.4.2. A table that libjpeg would refuse is only an error where a scan uses it."""
    start = 0
    while start < len(tables):
        counts = tables[start + 1 : start + 17]
        used = sum(count << (15 - bits) for bits, count in enumerate(counts))
        found.tables[tables[start]] = used < _FULLEST_CODE
        start += 17 + sum(counts)


def _note_scan(scan: bytes, found: _Structure) -> None:
    """T.81, B.2.3 and G.1.1.1: components, first and last coefficient, and the bit at which the scan ends."""
    if len(scan) != 2 * scan[0] + 4:
        raise _Irregular
    *named, first, last, bits = scan[1:]
    for name in named[::2]:
        if name not in found.lacking:
            raise _Irregular
        found.lacking[name][first : last + 1] = [bits & 15] * (last + 1 - first)


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
