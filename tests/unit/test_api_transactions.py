"""Transactions over HTTP: decided once, refused with a reason, sent in streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster import eventually
from tests.inprocess import PARTITIONS, House, Served, house
from versolog.projections.http import answer
from versolog.schemas.codec import frame, schema
from versolog.schemas.errors import Unavailable, Undecided
from versolog.schemas.topics import partition_of
from versolog.streams.transaction import Transaction

pytestmark = pytest.mark.anyio

SEND = "/v1/transactions"


def put(group: str = "UA", key: str = "k1", **more: Any) -> dict[str, Any]:
    return {"group": group, "changes": [{"op": "put", "table": "flights", "key": key, "row": {"x": 1}}], **more}


async def batch(client: httpx.AsyncClient, *lines: bytes | dict[str, Any]) -> list[dict[str, Any]]:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    answer = await client.post(f"{SEND}:batch", content=b"\n".join(texts))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.content.splitlines()]


async def test_all_kinds_of_change_in_one_transaction(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.post(SEND, json=put(key="gone"))
        asked = {
            "id": "t-1",
            "author": "ops",
            "message": "Gate closed",
            "type": "FlightDeparted",
            "occurred_at": "2013-06-01T12:00:00.123456Z",
            "group": "UA",
            "expect_head": 1,
            "expect": [
                {"table": "flights", "key": "gone", "version": 1},
                {"table": "flights", "key": "k1", "version": 0},
            ],
            "changes": [
                {"op": "put", "table": "flights", "key": "k1", "row": {"status": "departed", "delay": 2}},
                {"op": "patch", "table": "flights", "key": "k1", "row": {"delay": 7}},
                {"op": "add", "table": "carriers", "key": "UA", "row": {"departures": 1, "fuel": "12.50"}},
                {"op": "delete", "table": "flights", "key": "gone"},
            ],
        }
        answer = await client.post(SEND, json=asked)
        assert answer.status_code == 201, answer.text
        assert answer.json()["id"] == "t-1"
        commit = (await client.get("/v1/groups/UA/commits/2")).json()
        assert commit["occurred_at"] == "2013-06-01T12:00:00.123456Z"
        assert {(change["table"], change["key"]): change["row"] for change in commit["changes"]} == {
            ("flights", "k1"): {"status": "departed", "delay": 7},
            ("carriers", "UA"): {"departures": 1, "fuel": "12.50"},
            ("flights", "gone"): None,
        }


async def test_a_retry_has_the_first_status_and_body(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        first = await client.post(SEND, json=put(id="t-1"))
        refused = await client.post(SEND, json=put(id="t-2", expect_head=9))
        await client.post(SEND, json=put(id="t-3"))
        for once, asked in ((first, put(id="t-1")), (refused, put(id="t-2", expect_head=9))):
            again = await client.post(SEND, json=asked)
            assert (again.status_code, again.content) == (once.status_code, once.content)
        assert built.log.taken == 3


async def test_the_same_id_a_hundred_times_at_once_is_one_commit(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        answers = await asyncio.gather(*(client.post(SEND, json=put(id="t-1")) for _ in range(100)))
        assert {answer.content for answer in answers} == {answers[0].content}
        assert answers[0].status_code == 201
        assert (await client.get("/v1/groups/UA")).json()["version"] == 1


async def test_an_id_with_another_content_is_a_conflict(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        both = await asyncio.gather(
            client.post(SEND, json=put(id="t-1")), client.post(SEND, json=put(id="t-1", key="other"))
        )
        assert sorted(answer.status_code for answer in both) == [201, 409]
        later = await client.post(SEND, json=put(id="t-1", author="another"))
        assert (later.status_code, later.json()["code"], later.json()["decided"]) == (409, "id-reused", "committed")


async def test_the_id_and_the_head_may_stand_in_headers(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        headers = {"idempotency-key": '"t-1"', "if-match": '"0"'}
        assert (await client.post(SEND, json=put(), headers=headers)).json()["id"] == "t-1"
        refused = await client.post(SEND, json=put(), headers={"if-match": '"7"'})
        assert (refused.status_code, refused.json()["found"]) == (412, 1)
        for asked, header in ((put(id="a"), {"idempotency-key": "b"}), (put(expect_head=1), {"if-match": '"2"'})):
            unlike = await client.post(SEND, json=asked, headers=header)
            assert (unlike.status_code, unlike.json()["code"]) == (422, "invalid")
        bad = await client.post(SEND, json=put(), headers={"idempotency-key": '""'})
        assert (bad.status_code, bad.json()["field"]) == (400, "idempotency-key")


def over(*groups: str, **more: Any) -> dict[str, Any]:
    change = {"op": "add", "table": "t", "key": "k", "row": {"n": 1}}
    return {"parts": [{"group": group, "changes": [change]} for group in groups], **more}


ONE, OTHER = (
    next(name for name in map("g{}".format, range(99)) if partition_of(name, PARTITIONS) == number) for number in (0, 1)
)


@pytest.mark.parametrize("known_by", [ONE, OTHER])
async def test_an_id_that_any_participant_knows_with_another_content_is_a_conflict(
    tmp_path: Path, known_by: str
) -> None:
    async with house(tmp_path) as (_, client):
        assert (await client.post(SEND, json=put(known_by, id="t-1"))).status_code == 201
        for _ in range(2):
            refused = await client.post(SEND, json=over(ONE, OTHER, id="t-1"))
            assert (refused.status_code, refused.json()["code"]) == (409, "id-reused")
        assert (await client.get(f"/v1/groups/{known_by}")).json()["version"] == 1


async def test_a_refusal_that_only_the_home_knows_is_told(tmp_path: Path) -> None:
    """Somebody wrote it to the home's partition, which is not where a transaction over partitions goes."""
    asked = over(ONE, OTHER, id="t-1")
    tx = Transaction.from_json(asked)
    home = partition_of(tx.home, PARTITIONS)
    async with house(tmp_path) as (built, client):
        value = frame(built.codec.id_of(schema("Transaction")), tx.intent())
        built.log.append(home, None, value, lambda error: None)
        await built.partitions[home].until(lambda: built.partitions[home].store.outcome("t-1") is not None, 10)
        refused = await client.post(SEND, json=asked)
        assert (refused.status_code, refused.json()["code"]) == (422, "wrong-partition")
        (told,) = await batch(client, asked)
        assert told["code"] == "wrong-partition"


async def test_what_was_answered_is_not_waited_for(tmp_path: Path) -> None:
    """Whether it was decided before, is decided, or took too long: a batch asks after its answer too."""
    tx = Transaction.from_json(over(ONE, OTHER, id="t-1"))
    async with house(tmp_path) as (built, _):
        first = built.node.send(tx)
        assert not first.is_decided
        await first.outcome(10)
        again = built.node.send(tx)
        await again.outcome(10)
        built.log.held = True
        late = built.node.send(Transaction.from_json(over(ONE, OTHER, id="t-2")))
        with pytest.raises(Undecided):
            await late.outcome(0.01)
        assert [sent.is_decided for sent in (first, again, late)] == [True] * 3


async def test_a_store_that_fails_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as (built, client):
        for partition in built.partitions.values():
            monkeypatch.setattr(partition.store, "outcome", _fails)
        for asked in (put(id="t-1"), over(ONE, OTHER, id="t-2")):
            answer = await client.post(SEND, json=asked)
            assert (answer.status_code, answer.json()["code"]) == (503, "store-failed")
        assert built.node.under_way == 0
        assert not any(partition._waiting for partition in built.partitions.values())


def _fails(transaction_id: str) -> bytes | None:
    raise Unavailable("the store failed on purpose", code="store-failed")


async def test_several_groups_of_a_partition_are_committed_whole_or_refused_whole(tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(20)]
    one, other = [name for name in names if partition_of(name, PARTITIONS) == 0][:2]
    change = {"op": "add", "table": "t", "key": "k", "row": {"n": 1}}
    async with house(tmp_path) as (_, client):
        parts = [{"group": other, "changes": [change]}, {"group": one, "changes": [change], "expect_head": 0}]
        answer = await client.post(SEND, json={"id": "t-1", "parts": parts})
        assert answer.status_code == 201, answer.text
        assert [(part["group"], part["version"]) for part in answer.json()["parts"]] == [(one, 1), (other, 1)]
        assert answer.headers["versolog-token"] == f"{one}:1,{other}:1"
        assert (await client.get(answer.headers["location"])).json() == answer.json()
        commit = (await client.get(f"/v1/groups/{one}/commits/1")).json()
        assert commit["others"] == [{"group": other, "version": 1}]
        refused = await client.post(SEND, json={"parts": parts})
        assert (refused.status_code, refused.json()["group"]) == (412, one)
        assert (await client.get(f"/v1/groups/{other}")).json()["version"] == 1
        ambiguous = await client.post(SEND, json={"parts": parts}, headers={"if-match": '"1"'})
        assert (ambiguous.status_code, ambiguous.json()["field"]) == (422, "if-match")


async def test_a_transaction_may_only_ask(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.post(SEND, json=put())
        asked = await client.post(SEND, json={"group": "UA", "expect_head": 1})
        assert (asked.status_code, asked.json()["version"], asked.json()["hash"]) == (201, 0, None)
        assert "versolog-token" not in asked.headers
        assert (await client.post(SEND, json={"group": "UA", "expect_head": 2})).status_code == 412


async def test_an_outcome_is_found_by_id_with_and_without_the_group(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        sent = (await client.post(SEND, json=put("guild/7", id="t/1 ü"))).json()
        refused = (await client.post(SEND, json=put("guild/7", id="no", expect_head=9))).json()
        path = f"{SEND}/t%2F1%20%C3%BC"
        for query in ({}, {"group": "guild/7"}):
            found = await client.get(path, params=query)
            assert (found.status_code, found.json()) == (200, sent)
        told = (await client.get(f"{SEND}/no")).json()
        assert (told["outcome"], told["code"], told["found"]) == ("refused", refused["code"], refused["found"])
        unknown = await client.get(f"{SEND}/never")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-transaction")


async def test_undecided_in_time_is_202_and_decided_later(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        built.log.held = True
        answer = await client.post(SEND, json=put(id="t-1"), params={"wait": "0.02"})
        assert answer.status_code == 202
        assert (answer.json()["outcome"], answer.json()["id"]) == ("undecided", "t-1")
        assert answer.headers["retry-after"] == "1"
        where = answer.headers["location"]
        assert (await client.get(where)).status_code == 404
        built.log.release()
        assert (await client.get(where)).json()["version"] == 1
        assert built.node.under_way == 0


async def test_what_is_in_the_log_is_202_though_nobody_knows_the_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 in its place would not say that the log has it, nor under which id."""
    one, other = (
        "UA",
        next(f"g{n}" for n in range(99) if partition_of(f"g{n}", PARTITIONS) != partition_of("UA", PARTITIONS)),
    )
    asked = {"id": "t-1", "parts": [{"group": group, "changes": put()["changes"]} for group in (one, other)]}

    async def unknown(*, refresh: bool = False) -> dict[int, str]:
        raise Unavailable("the group's coordinator does not answer")

    async with house(tmp_path) as (built, client):
        built.log.held = True
        monkeypatch.setattr(built.node, "owned", list)
        monkeypatch.setattr(built.node, "owners", unknown)
        answer = await client.post(SEND, json=asked, params={"wait": "0.02"})
        assert (answer.status_code, answer.json()["id"]) == (202, "t-1")


async def test_a_log_that_is_away_is_503_with_retry_after(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        built.log.failure = Unavailable("no broker answers")
        answer = await client.post(SEND, json=put())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert built.node.under_way == 0


async def test_too_many_at_once_is_429(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("versolog.projections.node.UNDER_WAY_MAX", 3)
    async with house(tmp_path) as (built, client):
        built.log.held = True
        waiting = [asyncio.create_task(client.post(SEND, json=put())) for _ in range(3)]
        async with asyncio.timeout(5):
            while built.node.under_way < 3:  # noqa: ASYNC110 - a count has nothing to wait for
                await asyncio.sleep(0.001)
        answer = await client.post(SEND, json=put())
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        built.log.release()
        assert {(await task).status_code for task in waiting} == {201}


async def test_a_batch_is_answered_line_by_line_in_order(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        told = await batch(
            client,
            put(id="a"),
            b"{not json",
            put(id="b", expect_head=7),
            b"",
            put(id="c", unknown=1),
            b'"a string"',
            put("other", id="d"),
            put(id="a"),
        )
        assert [(one["id"], one["outcome"], one.get("code")) for one in told] == [
            ("a", "committed", None),
            (None, "refused", "malformed"),
            ("b", "refused", "head-mismatch"),
            ("c", "refused", "invalid"),
            (None, "refused", "malformed"),
            ("d", "committed", None),
            ("a", "committed", None),
        ]
        assert told[3]["field"] == "/unknown"
        assert told[0] == told[6]


async def test_a_line_over_the_limit_is_refused_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("versolog.projections.http.transactions.BODY_BYTES_MAX", 1_000)
    async with house(tmp_path) as (_, client):
        told = await batch(client, put(id="a"), b"x" * 5_000, put(id="b"), b"y" * 1_001)
        assert [(one["id"], one.get("code")) for one in told] == [
            ("a", None), (None, "too-large"), ("b", None), (None, "too-large"),
        ]  # fmt: skip


async def test_a_long_batch_in_odd_chunks_keeps_its_order(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        text = b"".join(json.dumps(put(f"g{n % 7}", key=f"k{n}", id=f"t-{n}")).encode() + b"\n" for n in range(3_000))

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(text), 777):
                yield text[start : start + 777]

        answer = await client.post(f"{SEND}:batch", content=chunks())
        told = [json.loads(line) for line in answer.content.splitlines()]
        assert [one["id"] for one in told] == [f"t-{n}" for n in range(3_000)]
        assert {one["outcome"] for one in told} == {"committed"}
        assert max(one["version"] for one in told) == 429


async def test_a_line_is_answered_before_the_next_is_sent(tmp_path: Path) -> None:
    built = House(tmp_path)
    try:
        async with asyncio.timeout(10):
            assert await _converse(built, [put(id="a"), put(id="b"), put(id="c")]) == ["a", "b", "c"]
    finally:
        built.close()


async def _converse(built: House, lines: list[dict[str, Any]]) -> list[str]:
    """Send each line only once the one before has been answered, as ASGI alone allows."""
    told: list[str] = []
    answered = asyncio.Event()
    answered.set()
    coming = iter(lines)

    async def receive() -> dict[str, Any]:
        await answered.wait()
        answered.clear()
        line = next(coming, None)
        body = b"" if line is None else json.dumps(line).encode() + b"\n"
        return {"type": "http.request", "body": body, "more_body": line is not None}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            told.extend(json.loads(line)["id"] for line in message["body"].splitlines())
            answered.set()

    await built.app(batch_scope(), receive, send)
    return told


def batch_scope() -> dict[str, Any]:
    """A request for a batch, as an ASGI server says it."""
    return {
        "type": "http", "method": "POST", "path": f"{SEND}:batch", "raw_path": f"{SEND}:batch".encode(),
        "query_string": b"", "headers": [], "client": None, "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip


async def test_who_is_gone_before_having_asked_is_no_failure_of_ours(tmp_path: Path) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async with house(tmp_path) as (built, client):
        for path in ("/v1/read", SEND):
            scope = batch_scope() | {"path": path, "raw_path": path.encode()}
            await built.app(scope, receive, send)
            text = (await client.get("/metrics")).text
            assert f'versolog_http_requests_total{{method="POST",route="{path}",status="499"}} 1.0' in text


async def test_a_batch_whose_sender_is_gone_waits_for_nothing_more(tmp_path: Path) -> None:
    built = House(tmp_path)
    built.log.held = True
    text = b"".join(json.dumps(put(id=f"t-{n}")).encode() + b"\n" for n in range(100))
    coming: list[dict[str, Any]] = [
        {"type": "http.request", "body": text, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Any) -> None:
        pass

    async def serve() -> None:
        await built.app(batch_scope(), receive, send)

    serving = asyncio.create_task(serve())
    try:
        async with asyncio.timeout(5):
            while built.node.under_way < 100:  # noqa: ASYNC110 - a count has nothing to wait for
                await asyncio.sleep(0.001)
            serving.cancel()
            await asyncio.wait({serving})
        assert built.node.under_way == 0
    finally:
        built.close()


async def test_lines_undecided_in_time_say_so_and_the_batch_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        built.log.held = True
        lines = b"\n".join(json.dumps(put(id=f"t-{n}")).encode() for n in range(3))
        answer = await client.post(f"{SEND}:batch", content=lines, params={"wait": "0.02"})
        told = [json.loads(line) for line in answer.content.splitlines()]
        assert [one["outcome"] for one in told] == ["undecided"] * 3
        assert built.node.under_way == 0


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        (b"", 400, None),
        (b"[", 400, None),
        (b"[]", 400, "/"),
        (b'{"group": 1, "changes": []}', 400, "/group"),
        (b'{"group": "g"}', 422, None),
        (b'{"group": "", "changes": []}', 422, "/group"),
        (b'{"group": "g", "colour": 1}', 422, "/colour"),
        (b'{"group": "g", "changes": [{"op": "delete", "table": "t", "key": "k", "x": 1}]}', 422, "/changes/0/x"),
        (b'{"group": "g", "changes": [{"op": "put", "table": "t", "key": "k", "row": 7}]}', 400, "/changes/0/row"),
        (b'{"group": "g", "changes": [{"op": "put", "table": "$t", "key": "k", "row": {}}]}', 422, "/changes/0/table"),
        (b'{"group": "g", "expect_head": true}', 400, "/expect_head"),
        (b'{"group": "g", "expect_head": 1.0}', 400, "/expect_head"),
        (b'{"group": "g", "expect_head": -1}', 422, "/expect_head"),
        (b'{"group": "g", "changes": [{"op": "put", "table": "t", "key": "k", "row": {"n": 123456789012345678901}}]}',
         400, None),
        (b"\xff\xfe", 400, None),
    ],
)  # fmt: skip
async def test_what_can_not_be_meant_is_refused_and_named(
    tmp_path: Path, asked: bytes, status: int, field: str | None
) -> None:
    async with house(tmp_path) as (built, client):
        answer = await client.post(SEND, content=asked)
        assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text
        assert built.log.taken == 0


def test_a_client_that_takes_no_answers_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines would count as under way for ever."""
    monkeypatch.setattr(answer, "TAKEN_WITHIN_S", 0.5)
    served = Served(tmp_path)
    line = json.dumps({"group": "UA", "expect_head": 7}).encode() + b"\n"  # refused, in many words
    head = b"POST /v1/transactions:batch HTTP/1.1\r\nhost: versolog\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(line) * 100, line * 100)
    try:
        with socket.socket() as client:
            client.settimeout(20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", httpx.URL(served.url).port))
            client.sendall(head)
            with contextlib.suppress(ConnectionError):
                for _ in range(2_000):  # far more than all buffers take
                    client.sendall(chunk)
                raise AssertionError("all was taken from a client that reads nothing")
        eventually(lambda: served.house.node.under_way == 0, 5, "nothing is under way")
    finally:
        served.stop()
