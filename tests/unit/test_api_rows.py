"""Rows over HTTP: written, read at any version, listed in pages that hold together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inprocess import house

pytestmark = pytest.mark.anyio


async def test_a_row_is_written_and_read_back(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        written = await client.put("/v1/groups/UA/tables/flights/rows/k1", json={"b": 1, "a": {"x": None}})
        assert written.status_code == 201, written.text
        read = await client.get("/v1/groups/UA/tables/flights/rows/k1")
        assert read.status_code == 200
