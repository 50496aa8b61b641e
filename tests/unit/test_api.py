"""The application around its endpoints: one kind of error, limits, waiting, other nodes, health, documents."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from tests.inprocess import PARTITIONS, House, house
from versolog.projections.http import answer, cursor, transactions
from versolog.projections.http.request import BODY_BYTES_MAX
from versolog.projections.lag import _Known
from versolog.schemas import codec as avro
from versolog.schemas.errors import BrokenLog, Invalid, Malformed
from versolog.schemas.topics import partition_of
from versolog.streams.runtime import HttpServer
from versolog.streams.transaction import Transaction

pytestmark = pytest.mark.anyio

ROW = "/v1/groups/UA/tables/flights/rows/k1"
ENDPOINTS = [
    ("GET", "/v1/groups"),
    ("GET", "/v1/groups/UA"),
    ("GET", "/v1/groups/UA/log"),
    ("GET", "/v1/groups/UA/diff?from=1"),
    ("GET", "/v1/groups/UA/commits/1"),
    ("GET", "/v1/groups/UA/branches"),
    ("GET", "/v1/groups/UA/tags"),
    ("GET", "/v1/groups/UA/digest"),
    ("GET", "/v1/groups/UA/verify"),
    ("GET", "/v1/groups/UA/tables/flights/rows"),
    ("GET", ROW),
    ("PUT", ROW),
    ("PATCH", ROW),
    ("DELETE", ROW),
    ("GET", "/v1/groups/UA/tables/flights/history?key=k1"),
    ("GET", "/v1/groups/UA/tables/flights/blame?key=k1"),
    ("GET", "/v1/groups/UA/tables/flights/schema"),
    ("GET", "/v1/groups/UA/tables/flights/checks"),
    ("DELETE", "/v1/groups/UA/tables/flights/checks"),
    ("POST", "/v1/transactions"),
    ("POST", "/v1/transactions:batch"),
    ("GET", "/v1/transactions/t-1"),
    ("POST", "/v1/groups/UA/rollbacks"),
    ("PUT", "/v1/groups/UA/tags/x"),
    ("DELETE", "/v1/groups/UA/tags/x"),
    ("DELETE", "/v1/groups/UA"),
]


def is_problem(response: httpx.Response, status: int, code: str) -> bool:
    problem = response.json()
    told = (response.status_code, problem["status"], problem["code"])
    assert told == (status, status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"https://versolog.dev/problems/{code}"
    return True


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_an_unknown_parameter_is_refused_and_named(tmp_path: Path, method: str, path: str) -> None:
    async with house(tmp_path) as (built, client):
        joint = "&" if "?" in path else "?"
        refused = await client.request(method, f"{path}{joint}colour=red")
        assert is_problem(refused, 422, "invalid")
        assert refused.json()["field"] == "colour"
        twice = await client.request(method, f"{path}{joint}wait=1&wait=2")
        assert is_problem(twice, 400, "malformed")
        assert built.log.taken == 0


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("limit=ten", 400, "limit"),
        ("limit=1_0", 400, "limit"),
        ("limit=+5", 400, "limit"),
        ("limit=1.0", 400, "limit"),
        ("limit=", 400, "limit"),
        ("limit=0", 422, "limit"),
        ("limit=10001", 422, "limit"),
        ("limit=-1", 400, "limit"),
        ("wait=inf", 400, "wait"),
        ("wait=31", 422, "wait"),
        ("stale=nan", 400, "stale"),
        ("at=", 400, "at"),
        ("at=a~b", 400, "at"),
        ("at=%ff", 400, None),
        ("where=delay>", 400, "where"),
    ],
)
async def test_a_parameter_that_can_not_be_meant_is_refused_and_named(
    tmp_path: Path, query: str, status: int, field: str | None
) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(ROW, json={})
        refused = await client.get(f"/v1/groups/UA/tables/flights/rows?{query}")
        assert (refused.status_code, refused.json().get("field")) == (status, field), refused.text


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("versolog-wait", "soon", 400), ("versolog-wait", "99", 422), ("versolog-token", "x", 400)],
)
async def test_a_header_that_can_not_be_read_is_refused(tmp_path: Path, header: str, value: str, status: int) -> None:
    async with house(tmp_path) as (_, client):
        refused = await client.get(ROW, headers={header: value, "versolog-token": "UA:1"} | {header: value})
        assert refused.status_code == status, refused.text


async def test_unknown_paths_and_methods_are_problems_that_help(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for path in ("/", "/v1", "/v1/groups/", "/v1/groups/UA/tables/t", "/v1/groups//log", "/v2/groups", "/docs/"):
            assert is_problem(await client.get(path), 404, "unknown-path")
        wrong = await client.post(ROW)
        assert is_problem(wrong, 405, "method-not-allowed")
        assert wrong.headers["allow"] == "DELETE, GET, PATCH, PUT"
        assert (await client.delete("/v1/transactions")).headers["allow"] == "POST"
        assert is_problem(await client.get("/v1/groups/%FF/log"), 400, "malformed")


async def test_what_breaks_inside_is_500_without_its_reason_and_logged_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={})
        for partition in built.partitions.values():
            monkeypatch.setattr(partition.view, "row", None)
            monkeypatch.setattr(partition.view, "diff", None)
        for path in (ROW, "/v1/groups/UA/diff?from=1"):
            with capture_logs() as logs:
                broken = await client.get(path)
            assert is_problem(broken, 500, "internal")
            assert "NoneType" not in broken.text
            failed = next(entry for entry in logs if entry["log_level"] == "error")
            assert "not callable" in repr(failed["exc_info"])
            assert broken.json()["incident"] in "".join(failed["exc_info"].__notes__)


async def test_the_log_holds_neither_bodies_nor_queries(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        with capture_logs() as logs:
            await client.put(ROW, json={"x": "hunter2"}, params={"message": "hunter2"})
            await client.post("/v1/transactions", content=b"hunter2")
        assert "hunter2" not in repr(logs)
        assert [(entry["method"], entry["status"], entry["log_level"]) for entry in logs] == [
            ("PUT", 201, "debug"), ("POST", 400, "info"),
        ]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/transactions", ROW, "/v1/groups/UA/rollbacks"])
async def test_a_body_over_the_limit_is_cut_off_early(tmp_path: Path, path: str) -> None:
    async with house(tmp_path) as (_, client):
        method = "PUT" if path == ROW else "POST"
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while read < 50_000_000:
                read += 65_536
                yield b" " * 65_536

        assert is_problem(await client.request(method, path, content=endless()), 413, "too-large")
        assert read < BODY_BYTES_MAX + 200_000
        declared = await client.request(method, path, content=b"", headers={"content-length": "50000000"})
        assert is_problem(declared, 413, "too-large")


async def test_a_row_or_a_key_over_its_limit_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        large = await client.put(ROW, json={"x": "x" * 600_000})
        assert is_problem(large, 413, "too-large")
        assert large.json()["limit"] == 512 * 1024
        assert is_problem(await client.put(f"{ROW}{'x' * 1_100}", json={}), 413, "too-large")
        assert is_problem(await client.put(ROW, json=[1]), 422, "invalid")
        assert is_problem(await client.put(ROW, content=b"{"), 400, "malformed")
        assert is_problem(await client.put(ROW, content=b'{"x": 1e400}'), 400, "malformed")


async def test_a_page_of_another_site_can_not_write(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        foreign = await client.put(ROW, json={}, headers={"origin": "https://example.org"})
        assert is_problem(foreign, 403, "foreign-origin")
        assert built.log.taken == 0
        assert (await client.put(ROW, json={}, headers={"origin": "http://node"})).status_code == 201
        assert (await client.get(ROW, headers={"origin": "https://example.org"})).status_code == 200


async def test_a_read_with_a_token_waits_for_its_write(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        other = next(f"g{n}" for n in range(99) if partition_of(f"g{n}", PARTITIONS) != partition_of("UA", PARTITIONS))
        await client.put(ROW, json={"n": 1})
        built.log.held = True
        writing = asyncio.create_task(client.put(ROW, json={"n": 2}))
        reading = asyncio.create_task(client.get(ROW, headers={"versolog-token": f"UA:2,{other}:9"}))
        late = await client.get(ROW, headers={"versolog-token": "UA:2", "versolog-wait": "0.02"})
        assert is_problem(late, 503, "not-yet-visible")
        assert late.headers["retry-after"] == "1"
        assert not reading.done()
        built.log.release()
        assert (await reading).json()["row"] == {"n": 2}
        assert (await writing).status_code == 201


async def test_a_read_waits_for_the_batch_that_changes_its_group_just_now(tmp_path: Path) -> None:
    """Another worker may have told of it: it reads the log, and can be faster than the owner's store."""
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={"n": 1})
        partition = built.partitions[partition_of("UA", PARTITIONS)]
        batches: dict[str, object] = {"UA": object()}
        partition.committing = batches.get
        late = await client.get(ROW, headers={"versolog-wait": "0.02"})
        assert is_problem(late, 503, "not-yet-visible")
        reading = asyncio.create_task(client.get(ROW))
        await asyncio.sleep(0.02)
        assert not reading.done()
        batches["UA"] = object()  # the next one is not waited for: nobody was told of it when the read came
        partition.applied(())
        assert (await reading).json()["row"] == {"n": 1}


async def test_a_list_of_groups_waits_for_the_batches_of_just_now(tmp_path: Path) -> None:
    """Whoever was told elsewhere of a new group finds it in the list."""
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={"n": 1})
        partition = built.partitions[partition_of("UA", PARTITIONS)]
        batches: dict[str | None, object] = {None: object()}
        partition.committing = batches.get
        late = await client.get("/v1/groups", headers={"versolog-wait": "0.02"})
        assert is_problem(late, 503, "not-yet-visible")
        listing = asyncio.create_task(client.get("/v1/groups"))
        await asyncio.sleep(0.02)
        assert not listing.done()
        del batches[None]
        partition.applied(())
        assert [group["group"] for group in (await listing).json()["groups"]] == ["UA"]


@pytest.mark.parametrize(
    "path", ["/v1/groups", "/v1/tags", "/v1/tags/t", "/v1/transactions:waiting", "/v1/verify", "/v1/digest"]
)
async def test_where_owners_alone_answer_nobody_is_promised_a_stale_answer(tmp_path: Path, path: str) -> None:
    async with house(tmp_path) as (_, client):
        refused = await client.get(path, params={"stale": "1"})
        assert is_problem(refused, 422, "invalid")
        assert refused.json()["field"] == "stale"


@pytest.mark.parametrize("query", ["", "?group=UA"])
async def test_an_outcome_that_was_told_elsewhere_is_waited_for(tmp_path: Path, query: str) -> None:
    """A worker that follows the log may have told of a refusal before the owner has it in its store."""
    async with house(tmp_path) as (built, client):
        partition = built.partitions[partition_of("UA", PARTITIONS)]
        ending: dict[str, object] = {"t-1": object()}
        partition.deciding = ending.get
        asked = f"/v1/transactions/t-1{query}"
        late = await client.get(asked, headers={"versolog-wait": "0.02"})
        assert is_problem(late, 503, "not-yet-visible")
        asking = asyncio.create_task(client.get(asked))
        await asyncio.sleep(0.02)
        assert not asking.done()
        sent = {"group": "UA", "id": "t-1", "expect_head": 7}
        assert (await client.post("/v1/transactions", json=sent)).status_code == 412
        del ending["t-1"]
        partition.applied(())
        assert (await asking).json()["outcome"] == "refused"
        assert is_problem(await client.get(f"/v1/transactions/t-2{query}"), 404, "unknown-transaction")
        partition.role = "recovering"
        assert is_problem(await client.get(f"/v1/transactions/t-2{query}"), 503, "recovering")


async def test_a_partition_being_taken_over_or_stopped_is_503(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={})
        partition = built.partitions[partition_of("UA", PARTITIONS)]
        partition.role = "recovering"
        assert is_problem(await client.get(ROW), 503, "recovering")
        partition.stop(BrokenLog("version 3 is missing"))
        stopped = await client.get(ROW)
        assert is_problem(stopped, 503, "broken-log")
        assert "version 3 is missing" in stopped.text
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        told = ready.json()["partitions"][partition.number]
        assert (told["role"], told["error"]) == ("stopped", "version 3 is missing")
        assert (await client.get("/livez")).json() == {"status": "live"}


async def test_ready_tells_roles_and_metrics_count_answers(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(ROW, json={})
        await client.get(ROW)
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert [one["role"] for one in ready.json()["partitions"]] == ["owner"] * PARTITIONS
        text = (await client.get("/metrics")).text
        route = "/v1/groups/{group}/tables/{table}/rows/{key}"
        assert f'versolog_http_requests_total{{method="GET",route="{route}",status="200"}} 1.0' in text
        assert 'versolog_http_transactions_total{outcome="committed"} 1.0' in text
        assert 'versolog_partition_role{partition="0",role="owner"} 1.0' in text
        await client.get("/v1/nothing/here")
        assert 'route="unmatched"' in (await client.get("/metrics")).text


@asynccontextmanager
async def two_nodes(
    directory: Path, built_of: list[House] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of two nodes on real ports, each owning half of the partitions and seeing none of the other's. `built_of`
    takes what is behind them."""
    apps: list[Any] = []

    def served(number: int) -> Any:
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            await apps[number](scope, receive, send)

        return serve

    servers = [HttpServer(served(number), "127.0.0.1", 0) for number in range(2)]
    urls = [f"http://127.0.0.1:{server.port}" for server in servers]
    houses = [
        House(
            directory / str(which),
            roles={number: "owner" if number % 2 == which else "idle" for number in range(PARTITIONS)},
            url=urls[which],
        )
        for which in range(2)
    ]
    for built in houses:
        built.owners = {number: urls[number % 2] for number in range(PARTITIONS)}
        apps.append(built.app)
    if built_of is not None:
        built_of += houses
    serving = [asyncio.create_task(server.serve()) for server in servers]
    try:
        async with httpx.AsyncClient(base_url=urls[0]) as even, httpx.AsyncClient(base_url=urls[1]) as odd:
            yield even, odd
    finally:
        for server in servers:
            server.stop()
        await asyncio.gather(*serving)
        for built in houses:
            built.close()


async def test_a_node_passes_reads_and_writes_on_to_the_owner(tmp_path: Path) -> None:
    names = [f"g/{number}%" for number in range(8)]
    async with two_nodes(tmp_path) as (even, odd):
        for index, name in enumerate(names):
            path = f"/v1/groups/{name.replace('%', '%25').replace('/', '%2F')}/tables/t%2Fu/rows/a%2Fb//c"
            asker, other = (odd, even) if index % 2 else (even, odd)
            written = await asker.put(path, json={"n": index}, headers={"if-none-match": "*"})
            assert written.status_code == 201, written.text
            token = {"versolog-token": written.headers["versolog-token"]}
            for client in (asker, other):
                read = await client.get(path, headers=token)
                assert (read.json()["row"], read.json()["key"]) == ({"n": index}, "a/b//c")
                assert read.headers["etag"] == '"1"'
                assert (await client.get(path, headers={"if-none-match": '"1"'})).status_code == 304
            refused = await other.put(path, json={}, headers={"if-none-match": "*"})
            assert (refused.status_code, refused.json()["found"]) == (412, 1)
            tx_id = written.json()["id"]
            for query in ({}, {"group": name}):
                assert (await other.get(f"/v1/transactions/{tx_id}", params=query)).json()["id"] == tx_id
        for client in (odd, even):
            listed = (await client.get("/v1/groups", params={"limit": "5"})).json()
            rest = (await client.get("/v1/groups", params={"limit": "5", "cursor": listed["cursor"]})).json()
            assert [one["group"] for one in listed["groups"] + rest["groups"]] == names
        for client in (odd, even):
            for query in ({}, {"group": names[0]}):
                unknown = await client.get("/v1/transactions/never", params=query)
                assert is_problem(unknown, 404, "unknown-transaction")
        digests = [(await client.get("/v1/digest")).json() for client in (odd, even)]
        assert digests[0] == digests[1]
        assert digests[0]["groups"] == len(names)


async def test_a_batch_and_a_rehearsal_are_passed_on_too(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, odd):
        lines = [
                {"id": f"t-{number}", "group": f"g{number}", "changes": [
                    {"op": "put", "table": "t", "key": "k", "row": {}}], "expect_head": number // 6}
                for number in range(8)
            ]  # fmt: skip
        text = b"\n".join(orjson.dumps(line) for line in lines)
        told = [json.loads(line) for line in (await odd.post("/v1/transactions:batch", content=text)).iter_lines()]
        assert [one["id"] for one in told] == [f"t-{number}" for number in range(8)]
        assert [one["outcome"] for one in told] == ["committed"] * 6 + ["refused"] * 2
        for number in range(6):
            asked = {"to": 1, "dry_run": True}
            rehearsal = await odd.post(f"/v1/groups/g{number}/rollbacks", json=asked)
            assert (rehearsal.status_code, rehearsal.json()["counts"]["rows"]) == (200, 0)


async def test_lines_that_another_node_decides_keep_their_order(tmp_path: Path) -> None:
    """Whoever they are passed on to."""
    groups = [f"g{number}" for number in range(8)]
    lines = [
        {"id": f"{group}-{number}", "group": group, "expect_head": number, "changes": [
            {"op": "put", "table": "t", "key": "k", "row": {"n": number}}]}
        for number in range(40) for group in groups
    ]  # fmt: skip
    async with two_nodes(tmp_path) as clients:
        for client in clients:
            content = b"\n".join(map(orjson.dumps, lines))
            told = [
                json.loads(line) for line in (await client.post("/v1/transactions:batch", content=content)).iter_lines()
            ]
            assert [(one["id"], one["outcome"]) for one in told] == [(line["id"], "committed") for line in lines]


async def test_what_is_not_taken_holds_back_the_lines_behind_it_on_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again, it would come behind them."""
    monkeypatch.setattr("versolog.projections.node.UNDER_WAY_MAX", 1)
    async with house(tmp_path) as (built, client):
        send = built.node.send

        def once_full(tx: Transaction) -> Any:
            try:
                return send(tx)
            finally:
                if tx.id == "b-1":
                    monkeypatch.setattr("versolog.projections.node.UNDER_WAY_MAX", 9)

        monkeypatch.setattr(built.node, "send", once_full)
        lines = [Transaction(name[0], id=name).put("t", "k", {}).to_json() for name in ("a-1", "b-1", "b-2", "a-2")]
        told = await client.post("/v1/transactions:batch", content=b"\n".join(map(orjson.dumps, lines)))
        outcomes = {one["id"]: (one["outcome"], one.get("code")) for one in map(json.loads, told.iter_lines())}
        late = ("undecided", "too-many-requests")
        assert (outcomes["b-1"], outcomes["b-2"]) == (late, late)
        assert (outcomes["a-1"][0], outcomes["a-2"][0]) == ("committed", "committed")
        assert (await client.get("/v1/groups/b")).status_code == 404


async def test_the_longest_page_of_groups_is_asked_of_all_nodes(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (even, odd):
        names = sorted(f"g{number}" for number in range(6))
        for name in names:
            assert (await even.put(f"/v1/groups/{name}/tables/t/rows/k", json={})).status_code == 201
        for client in (even, odd):
            told = await client.get("/v1/groups", params={"limit": "10000"})
            assert (told.status_code, told.json()["cursor"]) == (200, None)
            assert [group["group"] for group in told.json()["groups"]] == names


async def test_less_of_a_batch_is_under_way_where_single_writes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(transactions._UnderWay):
        async def room(self) -> None:
            seen.append(self._waits_max_s())
            await super().room()

    monkeypatch.setattr(transactions, "_UnderWay", Watched)
    async with house(tmp_path) as (_, client):

        async def waits_max_s(batch: str) -> float:
            lines = [Transaction("UA", id=f"{batch}-{n}").put("flights", "k", {"n": n}).to_json() for n in range(30)]
            told = await client.post("/v1/transactions:batch", content=b"\n".join(map(orjson.dumps, lines)))
            assert [json.loads(line)["outcome"] for line in told.iter_lines()] == ["committed"] * 30
            return seen.pop()

        assert await waits_max_s("alone") == transactions.BATCH_WAITS_ALONE_MAX_S
        assert (await client.put(ROW, json={"n": 1})).status_code == 201
        assert await waits_max_s("beside") == transactions.BATCH_WAITS_MAX_S
        monkeypatch.setattr(transactions, "SINGLE_WRITES_EXPECTED_S", 0.0)
        assert await waits_max_s("alone again") == transactions.BATCH_WAITS_ALONE_MAX_S


async def test_an_owner_that_is_away_or_not_known_is_503(tmp_path: Path) -> None:
    idle = dict.fromkeys(range(PARTITIONS), "idle")
    async with house(tmp_path, roles=idle) as (built, client):
        assert is_problem(await client.get(ROW), 503, "owner-away")
        built.owners = dict.fromkeys(range(PARTITIONS), "http://127.0.0.1:1")
        assert is_problem(await client.get(ROW), 503, "owner-away")
        assert is_problem(await client.put(ROW, json={}), 503, "owner-away")
        assert is_problem(await client.get("/v1/groups"), 503, "owner-away")
        assert is_problem(await client.get("/v1/transactions/t-1"), 503, "owner-away")
        once = {"versolog-forwarded": "1"}
        assert is_problem(await client.get(ROW, headers=once), 503, "not-owner")
        assert is_problem(await client.put(ROW, json={}, headers=once), 503, "not-owner")


async def test_a_follower_answers_who_allows_staleness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={"n": 1})
        for partition in built.partitions.values():
            partition.role = "follower"
        assert is_problem(await client.get(ROW), 503, "owner-away")
        monkeypatch.setattr(built.lag, "staleness_s", lambda partition: 0.5)
        read = await client.get(ROW, params={"stale": "1"})
        assert (read.json()["row"], read.headers["versolog-staleness-bound"]) == ({"n": 1}, "0.500")
        assert is_problem(await client.get(ROW, headers={"versolog-staleness": "0.4"}), 503, "owner-away")
        assert (await client.put(ROW, json={"n": 2})).status_code == 201


async def test_a_store_that_is_made_anew_is_not_as_near_as_the_one_before(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, _):
        partition = built.partitions[0]
        built.lag._ends[0] = _Known(commits=0, outcomes=0, transactions=0, open=0, asked_at_s=time.monotonic())
        assert built.lag.staleness_s(0) is not None
        built.lag._ends[0] = built.lag._ends[0]._replace(commits=9)
        assert built.lag.staleness_s(0) is not None
        partition._make_anew(BrokenLog("it is of another log"))
        assert built.lag.staleness_s(0) is None


async def test_the_registry_speaks_as_confluents_does(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        start = "/registry"
        client.headers["accept"] = "application/vnd.schemaregistry.v1+json"
        found = await client.get(f"{start}/schemas/ids/3")
        assert found.headers["content-type"] == "application/vnd.schemaregistry.v1+json"
        assert found.json() == {"schema": avro.schema("Commit").text}
        subjects = (await client.get(f"{start}/subjects")).json()
        assert subjects == sorted(subjects)
        versions = f"{start}/subjects/versolog.commits-value/versions"
        assert (await client.get(versions)).json() == [1]
        latest = (await client.get(f"{versions}/latest")).json()
        assert (latest["subject"], latest["version"], latest["id"]) == ("versolog.commits-value", 1, 3)
        lookup = await client.post(f"{start}/subjects/versolog.commits-value", json={"schema": latest["schema"]})
        assert lookup.json()["id"] == 3
        for path, code in (
            ("/schemas/ids/99", 40403),
            ("/schemas/ids/x", 40403),
            ("/subjects/none/versions", 40401),
            ("/subjects/versolog.commits-value/versions/2", 40402),
            ("/subjects/versolog.commits-value/versions/0", 42202),
        ):
            missing = await client.get(start + path)
            assert (missing.status_code, missing.json()["error_code"]) == (code // 100, code)
        other = await client.post(f"{start}/subjects/versolog.commits-value", json={"schema": '"string"'})
        assert other.json()["error_code"] == 40403


async def test_the_reference_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        page = (await client.get("/docs")).text
        document = (await client.get("/openapi.json")).json()
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)
        assert "<script" not in page
        for path in document["paths"]:
            assert f"<code>{path}</code>" in page
        assert document["openapi"].startswith("3.1")


async def test_every_operation_is_documented_with_a_summary_and_its_errors(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        document = (await client.get("/openapi.json")).json()
        ids = []
        for path, item in document["paths"].items():
            for operation in item.values():
                ids.append(operation["operationId"])
                assert operation["summary"]
                named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
                assert named == set(re.findall(r"\{(\w+)\}", path))
                assert all(one["description"] for one in operation["parameters"])
                if not path.startswith("/registry"):
                    assert "application/problem+json" in operation["responses"]["default"]["content"]
        assert len(set(ids)) == len(ids)


def test_a_cursor_is_sealed_to_its_listing() -> None:
    of = cursor.listing("rows", "g", None)
    sealed = cursor.seal(of, ["main", 1, 7, "ключ"])
    assert cursor.unseal(of, sealed) == ["main", 1, 7, "ключ"]
    with pytest.raises(Invalid, match="another query"):
        cursor.unseal(cursor.listing("rows", "g", ""), sealed)
    for index in range(len(sealed)):
        changed = sealed[:index] + ("A" if sealed[index] != "A" else "B") + sealed[index + 1 :]
        with pytest.raises(Malformed):
            cursor.unseal(of, changed)


def test_a_problem_that_can_pass_says_when_to_ask_again() -> None:
    assert "retry-after" not in answer.problem(Malformed("no")).headers
    assert answer.problem(BrokenLog("gap")).headers["retry-after"] == "1"


async def test_an_outcome_that_another_participant_knows_first_is_found_by_the_home_group(tmp_path: Path) -> None:
    groups = [f"g{number}" for number in range(8)]
    built: list[House] = []
    async with two_nodes(tmp_path, built) as nodes:
        for decided, home in itertools.permutations(groups, 2):
            if partition_of(decided, PARTITIONS) == partition_of(home, PARTITIONS):
                continue
            uninvolved = next(
                one for one in groups
                if one != home and partition_of(one, PARTITIONS) == partition_of(home, PARTITIONS)
            )  # fmt: skip
            tx = Transaction(None, id=f"{decided}-{home}")
            for group in (decided, home):
                tx.group(group).put("t", "k", {})
            number = partition_of(decided, PARTITIONS)
            owner = built[number % 2]
            value = avro.frame(owner.codec.id_of(avro.schema("Transaction")), tx.intent())
            owner.log.append(number, None, value, lambda error: None)  # where it is refused: it belongs into `sequence`
            await asyncio.sleep(0)
            for client in nodes:
                asked = f"/v1/transactions/{tx.id}"
                told = await client.get(asked, params={"group": home})
                assert (told.status_code, told.json()["outcome"]) == (200, "refused"), (decided, home)
                other = await client.get(asked, params={"group": uninvolved})
                assert is_problem(other, 404, "unknown-transaction"), "that group may have an id of its own like this"


@pytest.mark.parametrize(
    ("role", "code"), [("recovering", "recovering"), ("follower", "not-owner"), ("stopped", "not-owner")]
)
async def test_what_is_told_of_all_partitions_is_whole_or_refused(tmp_path: Path, role: Any, code: str) -> None:
    """Who is asked knows for himself whether he owns them: that he is thought to is not enough."""
    built: list[House] = []
    async with two_nodes(tmp_path, built) as nodes:
        for number in range(8):
            assert (await nodes[0].put(f"/v1/groups/g{number}/tables/t/rows/k", json={})).status_code == 201
        for client in nodes:
            assert len((await client.get("/v1/groups")).json()["groups"]) == 8
            assert is_problem(await client.get("/v1/transactions/t-1"), 404, "unknown-transaction")
        built[1].partitions[1].role = role
        for path in ("/v1/groups", "/v1/transactions/t-1", "/v1/digest"):
            assert is_problem(await nodes[0].get(path), 503, code), path
        garbled = await nodes[0].get("/v1/groups", headers={"versolog-forwarded": "1", "versolog-partitions": "one"})
        assert is_problem(garbled, 400, "malformed")


async def test_what_the_group_has_taken_away_is_not_read_here_any_more(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        await client.put(ROW, json={})
        read = {"reads": [{"group": "UA", "table": "flights", "key": "UA1"}]}
        built.kept.remove(partition_of("UA", PARTITIONS))
        assert [partition.role for partition in built.partitions.values()] == ["owner"] * PARTITIONS
        assert is_problem(await client.get(ROW), 503, "owner-away")
        assert is_problem(await client.post("/v1/read", json=read), 503, "owner-away")


async def test_an_owner_that_dies_as_it_is_connected_to_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What anyio meets on uvloop then."""

    async def send(*arguments: Any, **named: Any) -> httpx.Response:
        raise AttributeError("'NoneType' object has no attribute 'getpeername'")

    built: list[House] = []
    async with two_nodes(tmp_path, built) as nodes:
        elsewhere = next(name for name in map("g{}".format, range(99)) if partition_of(name, PARTITIONS) == 1)
        answers = []
        with monkeypatch.context() as broken:
            asking = httpx.AsyncClient.send
            theirs = {id(client) for client in nodes}

            async def some(self: httpx.AsyncClient, *arguments: Any, **named: Any) -> httpx.Response:
                return await (asking(self, *arguments, **named) if id(self) in theirs else send())

            broken.setattr(httpx.AsyncClient, "send", some)
            for path in (f"/v1/groups/{elsewhere}", "/v1/groups", "/v1/transactions/t-1"):
                answers.append(await nodes[0].get(path))
        assert all(is_problem(answer, 503, "owner-away") for answer in answers)


async def test_an_owner_that_dies_while_it_answers_is_away(tmp_path: Path) -> None:
    asked = 0

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    async with server, house(tmp_path, roles=dict.fromkeys(range(PARTITIONS), "idle")) as (built, client):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        built.owners = dict.fromkeys(range(PARTITIONS), url)
        read = {"reads": [{"group": "UA", "table": "flights", "key": "UA1"}]}
        assert is_problem(await client.post("/v1/read", json=read), 503, "owner-away")
        assert is_problem(
            await client.post("/v1/transactions", json={"group": "UA", "expect_head": 0}), 503, "owner-away"
        )
        assert asked == 4, "each was asked for once more"
