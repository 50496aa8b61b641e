"""A restored copy over HTTP: as readable as the live store, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tests.inprocess import PARTITIONS, House
from versolog.projections.copy import Manifest, open_copy
from versolog.projections.http import app
from versolog.projections.lag import Lag
from versolog.projections.node import Node
from versolog.schemas.topics import partition_of

pytestmark = pytest.mark.anyio

ROW = "/v1/groups/UA/tables/flights/rows/k1"
ELSEWHERE = next(f"g{n}" for n in range(99) if partition_of(f"g{n}", PARTITIONS) != partition_of("UA", PARTITIONS))


async def nobody(*, refresh: bool = False) -> Mapping[int, str]:
    return {}


async def written(directory: Path) -> str:
    """Two versions of a row, left in stores; answers the time of the last one."""
    house = House(directory)
    try:
        async with house.client() as client:
            for number in (1, 2):
                told = (await client.put(ROW, json={"n": number})).json()
        return str(told["committed_at"])
    finally:
        house.close()


async def test_a_copy_answers_reads_and_refuses_the_rest(tmp_path: Path) -> None:
    last = await written(tmp_path)
    kept = partition_of("UA", PARTITIONS)
    about: dict[str, Any] = {"at": "UA", "group": "UA", "version": 2, "time_ms": None, "commits": 2, "digest": ""}
    Manifest(identity="in-process", partitions=PARTITIONS, **about).write(tmp_path)
    _, partitions = open_copy(tmp_path)
    others = [partitions.pop(number) for number in list(partitions) if number != kept]
    node = Node(
        partitions, count=PARTITIONS, codec=partitions[kept].store.codec, intake=None, owners=nobody, own_url="",
        lag=Lag(partitions),
    )  # fmt: skip
    transport = httpx.ASGITransport(app(node, metrics=CollectorRegistry()))
    async with httpx.AsyncClient(transport=transport, base_url="http://copy") as client:
        assert (await client.get(ROW)).json()["row"] == {"n": 2}
        assert (await client.get(ROW, params={"at": "1"})).json()["row"] == {"n": 1}
        assert (await client.get("/readyz")).json()["read_only"] is True
        listed = (await client.get("/v1/groups")).json()["groups"]
        assert [(one["group"], one["version"], one["committed_at"]) for one in listed] == [("UA", 2, last)]
        assert len((await client.get("/v1/groups/UA/log")).json()["commits"]) == 2
        assert (await client.get("/v1/digest")).json()["groups"] == 1
        for method, path, status, code in (
            ("PUT", ROW, 403, "read-only"),
            ("POST", "/v1/groups/UA/rollbacks", 403, "read-only"),
            ("GET", "/v1/groups/UA/verify", 403, "no-log"),
            ("GET", f"/v1/groups/{ELSEWHERE}", 404, "unknown-group"),
            ("GET", f"{ROW}?at=2999-01-01T00:00:00Z", 422, "time-to-come"),
            ("GET", "/registry/subjects", 404, "unknown-path"),
        ):
            refused = await client.request(method, path, json={"to": 1})
            assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    for partition in (*partitions.values(), *others):
        partition.close()
