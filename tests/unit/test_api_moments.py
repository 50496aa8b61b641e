"""Reads of many groups at one moment, and store-wide tags, over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inprocess import PARTITIONS, House, house
from versolog.schemas.errors import Unavailable
from versolog.schemas.topics import partition_of
from versolog.streams.state import STORE_GROUP

pytestmark = pytest.mark.anyio

ONE = next(name for name in map("bank-{}".format, range(100)) if partition_of(name, PARTITIONS) == 0)
OTHER = next(name for name in map("bank-{}".format, range(100)) if partition_of(name, PARTITIONS) == 1)


async def eventually(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not ready():  # noqa: ASYNC110 - a count has nothing to wait for
            await asyncio.sleep(0.001)


class Teller:
    """Two banks on two partitions, in short words."""

    def __init__(self, built: House, client: httpx.AsyncClient) -> None:
        self.house, self.client = built, client

    async def send(self, amounts: dict[str, int], *, key: str = "ann", op: str = "add") -> dict[str, Any]:
        parts = [
            {"group": group, "changes": [{"op": op, "table": "accounts", "key": key, "row": {"balance": amount}}]}
            for group, amount in amounts.items()
        ]
        answer = await self.client.post("/v1/transactions", json={"parts": parts})
        assert answer.status_code == 201, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def read(self, *reads: dict[str, Any], status: int = 200, **about: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/read", json={"reads": list(reads), **about})
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def balances(self, at: str | None = None) -> list[int | None]:
        told = await self.read(account(ONE), account(OTHER), at=at)
        return [None if row is None else row["row"]["balance"] for row in told["results"]]


def account(group: str, key: str = "ann") -> dict[str, Any]:
    return {"group": group, "table": "accounts", "key": key}


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Teller]:
    async with house(tmp_path) as (built, client):
        yield Teller(built, client)


async def test_a_transaction_over_groups_is_seen_whole_at_every_moment(bank: Teller) -> None:
    await bank.send({ONE: 100, OTHER: 0}, op="put")
    moments = [(await bank.read(account(ONE)))["at"]]
    for _ in range(5):
        await bank.send({ONE: -10, OTHER: 10})
        moments.append((await bank.read(account(OTHER)))["at"])
    assert await bank.balances() == [50, 50]
    assert [await bank.balances(at) for at in moments] == [[100 - 10 * step, 10 * step] for step in range(6)]


async def test_a_range_goes_on_at_the_moment_that_the_answer_named(bank: Teller) -> None:
    for key in "abcde":
        await bank.send({ONE: ord(key)}, key=key, op="put")
    ask = {"group": ONE, "table": "accounts", "start": "b", "limit": 2}
    told = await bank.read(ask, account(ONE, "a"))
    (page, single) = told["results"]
    assert single["row"] == {"balance": ord("a")}
    assert [row["key"] for row in page["rows"]] == ["b", "c"]
    assert page["version"] == 5
    await bank.send({ONE: 0}, key="d", op="put")
    (rest,) = (await bank.read({**ask, "after": page["after"]}, at=told["at"]))["results"]
    assert [(row["key"], row["row"]["balance"]) for row in rest["rows"]] == [("d", ord("d")), ("e", ord("e"))]
    assert rest["after"] is None
    (few,) = (await bank.read({**ask, "where": "balance > 100", "limit": 9}))["results"]
    assert [row["key"] for row in few["rows"]] == ["e"]


async def test_what_is_not_there_is_null_and_what_was_not_there_yet_too(bank: Teller) -> None:
    begun = (await bank.read(account(ONE), {"group": "nobody", "table": "t"}))["results"]
    assert begun == [None, {"rows": [], "version": 0, "after": None}]
    first = await bank.send({ONE: 1}, op="put")
    await bank.send({OTHER: 1}, op="put")
    assert await bank.balances(first["committed_at"]) == [1, None]
    refused = await bank.read({**account(ONE), "branch": "plan"}, status=404)
    assert refused["code"] == "unknown-branch"


async def test_a_store_wide_tag_names_a_moment(bank: Teller) -> None:
    await bank.send({ONE: 100, OTHER: 0}, op="put")
    made = await bank.client.put("/v1/tags/before", json={"author": "ann"}, headers={"idempotency-key": "once"})
    assert made.status_code == 201, made.text
    tag = (await bank.client.get("/v1/tags/before")).json()
    await bank.send({ONE: -60, OTHER: 60})
    again = await bank.client.put("/v1/tags/before", json={"author": "ann"}, headers={"idempotency-key": "once"})
    assert again.json() == made.json()
    assert await bank.balances("before") == [100, 0]
    assert (await bank.read(account(ONE), at="before"))["at"] == tag["at"]
    later = await bank.client.put("/v1/tags/as-said", json={"at": tag["at"]})
    assert later.status_code == 201
    assert [one["at"] for one in (await bank.client.get("/v1/tags")).json()["tags"]] == [tag["at"]] * 2
    taken = await bank.client.put("/v1/tags/before", json={})
    assert (taken.status_code, taken.json()["code"]) == (412, "version-mismatch")
    assert (await bank.client.delete("/v1/tags/before")).status_code == 201
    assert (await bank.read(account(ONE), at="before", status=404))["code"] == "unknown-ref"


async def test_a_store_wide_tag_takes_its_author_from_the_body_alone(bank: Teller) -> None:
    refused = await bank.client.put("/v1/tags/before", params={"author": "ops"}, json={})
    assert (refused.status_code, refused.json()["field"]) == (422, "author")


async def test_a_store_wide_tag_that_was_told_is_waited_for(bank: Teller) -> None:
    """As every read of a group: another worker may have told of it before its owner has stored it."""
    assert (await bank.client.put("/v1/tags/before", json={})).status_code == 201
    partition = bank.house.partitions[partition_of(STORE_GROUP, PARTITIONS)]
    batches: dict[str, object] = {STORE_GROUP: object()}
    partition.committing = batches.get
    for path in ("/v1/tags", "/v1/tags/before"):
        late = await bank.client.get(path, headers={"versolog-wait": "0.02"})
        assert (late.status_code, late.json()["code"]) == (503, "not-yet-visible")
    reading = asyncio.create_task(bank.client.get("/v1/tags/before"))
    await asyncio.sleep(0.02)
    assert not reading.done()
    del batches[STORE_GROUP]
    partition.applied(())
    assert (await reading).status_code == 200
    batches[STORE_GROUP] = object()
    reading = asyncio.create_task(bank.client.get("/v1/tags/before"))
    await asyncio.sleep(0.02)
    partition.role = "recovering"
    del batches[STORE_GROUP]
    partition.applied(())
    assert (await reading).status_code == 503, "it has let go of the batch, and has not read it from the log yet"


async def test_a_read_waits_for_what_its_groups_have_begun_and_for_nothing_else(bank: Teller) -> None:
    await bank.send({ONE: 100, OTHER: 0}, op="put")
    bank.house.log.held = True
    sending = asyncio.create_task(bank.send({ONE: -1, OTHER: 1}))
    reading = asyncio.create_task(bank.balances())
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert not reading.done()
    bank.house.log.release()
    await sending
    assert sum(balance or 0 for balance in await reading) == 100


async def test_a_read_shows_what_the_log_held_before_it(bank: Teller) -> None:
    """It is not decided yet, so nobody was told; but of two such reads the later one must not show less."""
    bank.house.log.held = True
    sending = asyncio.create_task(bank.send({ONE: 100}, op="put"))
    await eventually(lambda: bank.house.log.taken == 1)
    reading = asyncio.create_task(bank.read(account(ONE)))
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert not reading.done()
    bank.house.log.release()
    await sending
    assert (await reading)["results"][0]["row"] == {"balance": 100}


async def test_a_read_shows_what_was_told_although_the_clock_went_back(bank: Teller) -> None:
    began_ms = time.time_ns() // 1_000_000
    await bank.send({ONE: 0, OTHER: 0}, op="put")
    bank.house.now_ms = lambda: began_ms + 400
    await bank.send({ONE: -1, OTHER: 1})
    bank.house.now_ms = lambda: time.time_ns() // 1_000_000
    assert await bank.balances() == [-1, 1]


async def test_a_moment_that_was_told_can_be_asked_for_although_the_log_s_clock_is_ahead(bank: Teller) -> None:
    bank.house.now_ms = lambda: time.time_ns() // 1_000_000 + 60_000
    await bank.send({ONE: 1, OTHER: 2}, op="put")
    told = await bank.read(account(ONE), account(OTHER))
    assert (await bank.read(account(ONE), account(OTHER), at=told["at"]))["results"] == told["results"]


async def test_a_fresh_read_needs_the_log(bank: Teller) -> None:
    await bank.send({ONE: 1}, op="put")
    bank.house.log.failure = Unavailable("the log is away")
    answer = await bank.client.post("/v1/read", json={"reads": [account(ONE)]}, headers={"versolog-wait": "0.2"})
    assert (answer.status_code, answer.json()["detail"]) == (503, "the log is away")


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"reads": []}, 422, "invalid"),
        ({"reads": [{"group": "g", "table": "t", "key": "k", "limit": 3}]}, 400, "malformed"),
        ({"reads": [{"group": "g", "table": "t", "limit": 10_000}, account("h")]}, 422, "invalid"),
        ({"reads": [account("g")], "at": "2999-01-01T00:00:00Z"}, 422, "time-to-come"),
        ({"reads": [account("g")], "at": "nothing"}, 404, "unknown-ref"),
        ({"reads": [{"group": "g", "table": "t", "where": "x >"}]}, 400, "malformed"),
        ({"reads": [{"group": "", "table": "t", "key": "k"}]}, 422, "invalid"),
        ({"read": []}, 422, "invalid"),
    ],
)
async def test_what_can_not_be_meant_is_refused(bank: Teller, asked: dict[str, Any], status: int, code: str) -> None:
    answer = await bank.client.post("/v1/read", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
