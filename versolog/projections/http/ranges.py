"""The rows of a range as text, read in slices so that nobody else waits for a long one."""

from __future__ import annotations

import asyncio
from typing import Any

from versolog.projections.http import answer
from versolog.projections.http.budget import Budget
from versolog.projections.views import View
from versolog.streams.versions import At

SCANNED_MAX = 200_000
"""A range that looked at so many rows for those that `where` wants ends there, and goes on with the next answer."""


async def read_range(
    view: View, at: At, table: str, bounds: dict[str, Any], *, after: str | None, limit: int, budget: Budget
) -> tuple[list[bytes], str | None]:
    """At most `limit` rows after the key `after`, as far as `budget` goes, and the key after which the next ones go on:
    None at the end. `bounds` are those of `View.scan`."""
    write = answer.RowText(at.group, table)
    rows: list[bytes] = []
    scanned = 0
    while not budget.spent:
        page = view.scan(at, table, **bounds, after=after, limit=min(limit - len(rows), budget.next_rows()))
        texts = [write(key, row) for key, row in page.rows]
        rows += texts
        budget.took(len(texts), sum(map(len, texts)))
        scanned += page.scanned
        after = page.cursor
        if after is None or len(rows) == limit or budget.spent or scanned >= SCANNED_MAX:
            return rows, after
        await asyncio.sleep(0)
    return rows, after or ""  # not begun: those before it in the answer took all of it
