"""How much one answer may hold, counted in rows and in bytes, for rows of any size."""

from __future__ import annotations

FIRST_ROWS = 16
"""Few, since nothing is known of their size yet."""
SLICE_ROWS = 500
"""Read between two turns of the event loop: a few milliseconds of it."""
PAGE_BYTES_MAX = 8 * 1024 * 1024
"""A page of large rows ends here; its cursor goes on."""


class Budget:
    """Says how many rows to read next, so that a page of large rows does not grow far over its size."""

    def __init__(self, rows_max: int, *, bytes_max: int = PAGE_BYTES_MAX, slice_rows: int = SLICE_ROWS) -> None:
        self._rows_max, self._bytes_max, self._slice_rows = rows_max, bytes_max, slice_rows
        self._rows = self._bytes = 0

    def took(self, rows: int, size_bytes: int) -> None:
        """Count what was read."""
        self._rows += rows
        self._bytes += size_bytes

    @property
    def spent(self) -> bool:
        """Whether the answer is full."""
        return self._rows >= self._rows_max or self._bytes >= self._bytes_max

    def next_rows(self) -> int:
        """How many rows to read next; at least one."""
        left = max(1, self._rows_max - self._rows)
        if self._rows == 0:
            return min(FIRST_ROWS, left)
        row_bytes = max(1, self._bytes // self._rows)
        return max(1, min(left, self._slice_rows, (self._bytes_max - self._bytes) // row_bytes))
