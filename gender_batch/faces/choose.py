"""Whom a picture shows: its main face, and who else is as large."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

from gender_batch.faces.detect import Face

COMPARABLE = 0.5
"""Least area of another face, as a share of the main one's, that makes the picture one of several people."""

MOST = 8
"""People of comparable size that are asked at most, the main one among them: more say nothing new."""


def weight(face: Face, width: int, height: int) -> float:
    """How likely the picture is of this face: its area, less towards the edges; in a corner it counts half.

    The distance is that of the face's centre from the picture's, as a share of the half diagonal.
    """
    x = face.left + face.width / 2 - width / 2
    y = face.top + face.height / 2 - height / 2
    distance = hypot(x, y) / (hypot(width, height) / 2)
    return face.area * (1 - min(distance, 1.0) / 2)


def by_weight(faces: Sequence[Face], width: int, height: int) -> list[Face]:
    """The faces of a picture of that size, the main one first."""
    return sorted(faces, key=lambda face: -weight(face, width, height))


def comparable(faces: Sequence[Face]) -> list[Face]:
    """Of faces by weight the main one and those at least half as large, eight at most; none of none."""
    return [face for face in faces if face.area >= COMPARABLE * faces[0].area][:MOST]
