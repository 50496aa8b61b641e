"""Fields of rows: their names as text, what stands there, and the numbers among them that count exactly."""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, Overflow
from typing import Any, Final

from versolog.schemas.conflicts import ABSENT, Path
from versolog.schemas.documents import DECIMAL

EXACT: Final = Context(prec=200, traps=[Inexact, Overflow])
"""Adds what `exact` gives, however much of it, without rounding."""


def field_path(text: str) -> Path:
    """A field by its names with dots between them; with a slash before each (RFC 6901), names may hold dots."""
    if text.startswith("/"):
        return tuple(name.replace("~1", "/").replace("~0", "~") for name in text[1:].split("/"))
    return tuple(text.split("."))


def value_at(row: Any, path: Path) -> Any:
    """What stands at `path` of a row; ABSENT where nothing does."""
    for name in path:
        row = row.get(name, ABSENT) if isinstance(row, dict) else ABSENT
    return row


def exact(value: Any) -> Decimal | None:
    """The number that `add` counts with: an integer, or a decimal in a string. None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    return Decimal(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else None
