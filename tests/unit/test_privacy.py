"""Pseudonyms and cells that a spreadsheet does not run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gender_batch.outputs.privacy import KeyFileError, pseudonymiser, spreadsheet_safe


def test_pseudonyms_are_those_of_rfc_4231(tmp_path: Path) -> None:
    # Test case 6 has a key that is longer than a block; 131 bytes of 0xaa.
    (tmp_path / "key").write_bytes(b"\xaa" * 131)
    name_of = pseudonymiser(tmp_path / "key")
    assert (
        name_of("Test Using Larger Than Block-Size Key - Hash Key First")
        == "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    )


def test_any_name_has_a_pseudonym_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    (tmp_path / "other").write_text("0123456789abcdeF\n")
    name_of, other = pseudonymiser(tmp_path / "key"), pseudonymiser(tmp_path / "other")
    names = ["a", "b", os.fsdecode(b"\xff"), "ÿ"]
    assert len({name_of(name) for name in names} | {other(name) for name in names}) == 8


def test_what_never_ends_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"/dev/urandom: more than 1,048,576 bytes"):
        pseudonymiser(Path("/dev/urandom"))
    (tmp_path / "spaces").write_text(" " * (1 << 20) + "0123456789abcdef")  # to its end it is more than what is read
    with pytest.raises(KeyFileError, match=r"spaces: more than 1,048,576 bytes"):
        pseudonymiser(tmp_path / "spaces")


def test_a_weak_or_missing_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with pytest.raises(KeyFileError, match=r"key: a key of 6 bytes.*openssl"):
        pseudonymiser(tmp_path / "key")
    with pytest.raises(KeyFileError, match="none"):
        pseudonymiser(tmp_path / "none")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_whatever_a_formula_begins_with_is_made_text(start: str) -> None:
    assert spreadsheet_safe([f"{start}cmd", f"a{start}b", None, -1]) == [f"'{start}cmd", f"a{start}b", None, -1]


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text())))
def test_no_text_begins_like_a_formula(values: list[str | float | int | None]) -> None:
    safe = spreadsheet_safe(values)
    for before, after in zip(values, safe, strict=True):
        if isinstance(before, str) and before[:1] and before[0] in "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20":
            assert after == f"'{before}"
        else:
            assert after == before
