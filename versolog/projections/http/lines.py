"""NDJSON as it arrives: lines of a body that has no end of its own, none held longer than needed."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from versolog.schemas.errors import TooLarge


async def lines(chunks: AsyncIterable[bytes], line_bytes_max: int) -> AsyncIterator[bytes | TooLarge]:
    """The lines in `chunks` without their ends, blank ones left out; a line over the limit comes as an error."""
    held = bytearray()
    skipping = False
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            if skipping or len(held) + len(piece) > line_bytes_max:
                yield _too_long(line_bytes_max)
            elif line := bytes(held + piece).strip():
                yield line
            held.clear()
            skipping = False
        if skipping or len(held) + len(rest) > line_bytes_max:
            skipping = True
            held.clear()
        else:
            held += rest
    if skipping:
        yield _too_long(line_bytes_max)
    elif line := bytes(held).strip():
        yield line


def _too_long(line_bytes_max: int) -> TooLarge:
    return TooLarge(f"the line is longer than {line_bytes_max:,} bytes", limit=line_bytes_max)
