"""Tuples as bytes that sort as the tuples do, so that RocksDB keeps together what is read together.

A text is its UTF-8 with NUL escaped as 00 FF, ended by 00: any text is safe, texts sort by code point, and what starts
with the same text starts with the same bytes. Numbers are 8 bytes, big-endian, and never begin with FF, so that after
a text's end they can't be taken for an escape.
"""

from __future__ import annotations

from versolog.schemas.errors import Invalid

NUMBER_MAX = 2**63 - 1


def text(value: str) -> bytes:
    """`value` as one element of a key."""
    return beginning(value) + b"\0"


def beginning(value: str) -> bytes:
    """What the bytes of every text that starts with `value` start with. Raises Invalid for what is not Unicode."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"not valid Unicode, a half of a surrogate pair stands alone: {value!a}") from error
    return encoded.replace(b"\0", b"\0\xff") if b"\0" in encoded else encoded


def read_text(key: bytes, start: int = 0) -> tuple[str, int]:
    """The text that begins at `start` of `key`, and where the next element does."""
    end = key.index(b"\0", start)
    while key[end + 1 : end + 2] == b"\xff":
        end = key.index(b"\0", end + 2)
    return key[start:end].replace(b"\0\xff", b"\0").decode(), end + 1


def only_text(element: bytes) -> str:
    """The text that `element` is, and nothing more."""
    return element[:-1].replace(b"\0\xff", b"\0").decode()


def number(value: int) -> bytes:
    """`value`, 0 to `NUMBER_MAX`, as one element of a key."""
    return value.to_bytes(8, "big")


def descending(value: int) -> bytes:
    """As `number`, with the greatest value first."""
    return (NUMBER_MAX - value).to_bytes(8, "big")


def read_number(key: bytes, start: int = 0) -> int:
    """The number that begins at `start` of `key`."""
    return int.from_bytes(key[start : start + 8], "big")


def read_descending(key: bytes, start: int = 0) -> int:
    """As `read_number`, of a descending one."""
    return NUMBER_MAX - int.from_bytes(key[start : start + 8], "big")


def end(prefix: bytes) -> bytes:
    """The end of the range of keys that start with the whole elements in `prefix`.

    Not the next byte string above `prefix`: text "a" ends as the escape in "a\\0b" begins, and that is another text.
    """
    return prefix + b"\xff"


def end_of_beginning(beginning: bytes) -> bytes:
    """The end of the range of texts that start with `beginning`, which is not empty; see the function of that name."""
    kept = beginning.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,))
