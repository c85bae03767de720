"""What is changed in a row for those who get to see it: names that cannot be read, cells that cannot be run."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gender_batch.prediction import Value

Values = Sequence[Value]

SHORTEST_KEY, LONGEST_KEY = 16, 1 << 20
"""Bytes. A key has a few dozen; what is longer is something else, and is not read to its end."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet take a cell for a formula (OWASP, "CSV Injection"); the last four are full-width."""


class KeyFileError(Exception):
    """The key cannot be used. The message names the file, the cause and the remedy."""


def pseudonymiser(key_file: Path) -> Callable[[str], str]:
    """A function from a path to its pseudonym: HMAC-SHA-256 of its bytes (RFC 2104), 64 hexadecimal digits.

    The same key and path give the same pseudonym, every night; without the key nobody can try names out.
    Raises KeyFileError.
    """
    try:
        with key_file.open("rb") as file:
            content = file.read(LONGEST_KEY + 1)
    except OSError as error:
        raise KeyFileError(f"{key_file}: {error.strerror}; name a file that holds a key") from None
    if len(content) > LONGEST_KEY:
        raise KeyFileError(f"{key_file}: more than {LONGEST_KEY:,} bytes, and so no key; name a file that holds one")
    key = content.strip()
    if len(key) < SHORTEST_KEY:
        raise KeyFileError(
            f"{key_file}: a key of {len(key)} bytes; it needs {SHORTEST_KEY} or more: openssl rand -hex 32 > {key_file}"
        )
    return lambda path: hmac.new(key, os.fsencode(path), hashlib.sha256).hexdigest()


def spreadsheet_safe(values: Values) -> list[Value]:
    """The values, with an apostrophe before text that a spreadsheet would run; it then shows the text as it is."""
    return [f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value for value in values]
