"""Text of others (file names, labels, values of a table) made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with everything that cannot be seen told as an escape: é of a Latin-1 name is `\xe9`.

    That covers undecodable bytes of a file name (surrogates, which no file of text can hold), control characters and
    those that turn the direction of writing, by which one name can pose as another.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that surrogateescape carried (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
