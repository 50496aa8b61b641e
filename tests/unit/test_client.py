"""The HTTP clients against a real server: the same calls, the same errors, tried again where that is safe."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inprocess import House, Served
from versolog import AsyncClient, Client, Transaction
from versolog.client import Conflict
from versolog.schemas.errors import Conflict as Contradiction
from versolog.schemas.errors import (
    Invalid,
    MergeConflict,
    Misconfigured,
    NotFound,
    PreconditionFailed,
    TooLarge,
    TooMany,
    Unavailable,
    Undecided,
    VersologError,
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def db(served: Served) -> Iterator[Client]:
    with Client(served.url, author="tests", timeout_s=5, retry_for_s=5) as client:
        yield client


@contextmanager
def answering(*answers: httpx.Response | Exception, **options: Any) -> Iterator[tuple[Client, list[httpx.Request]]]:
    """A client whose server gives these answers, the last one again and again."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = answers[min(len(asked), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    with Client("http://node", transport=httpx.MockTransport(answer), **options) as client:
        yield client, asked


def problem(status: int, code: str, retry_after: str | None = None, **facts: Any) -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(status, headers=headers, json={"code": code, "detail": "why", "status": status, **facts})


COMMITTED = httpx.Response(
    201,
    json={
        "id": "t-1", "outcome": "committed", "committed_at": "2013-06-01T00:00:00.000Z", "group": "g",
        "branch": "main", "version": 7, "hash": "00" * 32, "token": "g:7",
    },
)  # fmt: skip


def test_a_service_writes_reads_looks_back_and_rolls_back(db: Client) -> None:
    first = db.transaction("UA", type="Boarding").put("flights", "k/1", {"status": "boarding", "delay": 0}).send()
    tx = db.transaction("UA", author="ops", message="late crew").patch("flights", "k/1", {"delay": 25})
    second = tx.expect("flights", "k/1", first.version).send()
    row = db.row("UA", "flights", "k/1")
    assert (row.row, row.version, row.key) == ({"status": "boarding", "delay": 25}, second.version, "k/1")
    assert row.committed_at.tzinfo is not None
    assert db.row("UA", "flights", "k/1", at=first.version).row["delay"] == 0
    assert db.row("UA", "flights", "k/1", at=row.committed_at).version == second.version
    rehearsal = db.rehearse_rollback("UA", first.version)
    assert (rehearsal.counts.changed, rehearsal.rows[0].after) == (1, {"status": "boarding", "delay": 0})
    with pytest.raises(PreconditionFailed):
        db.rollback("UA", first.version, expect_head=first.version)
    db.rollback("UA", first.version, message="wrong flight", expect_head=second.version)
    assert db.row("UA", "flights", "k/1").row["delay"] == 0
    assert [(past.version, past.author) for past in db.history("UA", "flights", "k/1")] == [
        (3, "tests"), (2, "ops"), (1, "tests"),
    ]  # fmt: skip
    assert {field.path: field.version for field in db.blame("UA", "flights", "k/1")} == {
        ("delay",): 3, ("status",): 1,
    }  # fmt: skip
    diff = db.diff("UA", 1, 2)
    assert (diff.counts.rows, diff.rows[0].fields[0].before, diff.rows[0].fields[0].after) == (1, 0, 25)
    assert [(table.table, table.changed) for table in diff.counts.tables] == [("flights", 1)]
    assert [change.key for change in db.differences("UA", 1, 2)] == ["k/1"]
    assert db.diff("UA", 2, 1, merge_base=True).counts.rows == 0
    changed = db.changes("UA", 2)
    assert (changed.commit.author, changed.before and changed.before.version, changed.rows) == ("ops", 1, diff.rows)
    assert list(db.every_change("UA", 2)) == list(diff.rows)
    assert db.changes("UA", 1).before is None
    assert [commit.operation for commit in db.log("UA")] == ["rollback", "write", "write"]
    assert [commit.version for commit in db.log("UA", author="tests", message="wrong", all=True)] == [3]
    assert [commit.version for commit in db.log("UA", until=row.committed_at, graph=True, page=1)] == [2, 1]
    assert [commit.graph and commit.graph.branches for commit in db.log("UA", graph=True)] == [("main",), (), ()]
    assert db.commit("UA", 1).changes == (("flights", "k/1", {"status": "boarding", "delay": 0}),)
    assert db.outcome(first.transaction_id, "UA") == db.outcome(first.transaction_id)


def test_groups_refs_and_schemas(db: Client) -> None:
    for number in range(3):
        db.put(f"g/{number}", "t", "k", {"n": number})
    assert [group.group for group in db.groups("g/")] == ["g/0", "g/1", "g/2"]
    db.tag("g/0", "one")
    db.tag("g/0", "two", 1)
    db.delete_tag("g/0", "two")
    assert [(tag.name, tag.version) for tag in db.tags("g/0")] == [("one", 1)]
    assert [branch.name for branch in db.branches("g/0")] == ["main"]
    schema = {"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]}
    db.set_schema("g/0", "t", schema)
    assert db.schema("g/0", "t").schema == schema
    with pytest.raises(Invalid) as misfit:
        db.put("g/0", "t", "k", {"n": "x"})
    assert misfit.value.code == "schema-mismatch"
    db.set_schema("g/0", "t", None)
    db.set_checks("g/0", "t", {"few": {"sum": "n", "max": 5}})
    assert db.checks("g/0", "t").checks == {"few": {"sum": "n", "max": 5}}
    with pytest.raises(Contradiction) as broken:
        db.put("g/0", "t", "l", {"n": 6})
    assert (broken.value.code, broken.value.facts["key"]) == ("check-failed", "l")
    db.set_checks("g/0", "t", None)
    with pytest.raises(NotFound):
        db.checks("g/0", "t")
    group = db.group("g/0", count=True)
    assert (group.tags, group.tables) == ({"one": 1}, {"t": 1})
    assert db.digest("g/0", at=1) != db.digest("g/0")
    assert len(db.digest()) == 64
    db.drop_group("g/2")
    assert [group.group for group in db.groups()] == ["g/0", "g/1"]


def test_a_branch_is_merged_its_conflict_resolved_and_all_of_it_undone(db: Client) -> None:
    db.put("g", "t", "k", {"gate": "A1", "delay": 0})
    db.branch("g", "plan")
    picked = db.patch("g", "t", "k", {"gate": "C3"}, branch="plan").version
    db.put("g", "t", "new", {"gate": "Z9"}, branch="plan")
    db.patch("g", "t", "k", {"gate": "B2", "delay": 5})
    apart = db.compare("g", "plan")
    assert (apart.ahead, apart.behind, apart.bases, apart.branch.parent) == (2, 1, (1,), "main")
    with pytest.raises(MergeConflict) as rehearsed:
        db.rehearse_merge("g", "plan")
    with pytest.raises(MergeConflict) as refused:
        db.merge("g", "plan", message="as planned")
    (conflict,) = refused.value.conflicts
    assert conflict == Conflict("t", "k", ("gate",), "both-changed", "A1", "B2", "C3")
    assert (rehearsed.value.conflicts, refused.value.total) == ((conflict,), 1)
    assert rehearsed.value.facts["conflicts"] == [conflict.to_json()]
    assert rehearsed.value.detail == refused.value.detail

    ends = [conflict.take_value("D4")]
    assert db.rehearse_merge("g", "plan", resolutions=ends).counts.changed == 1
    merged = db.merge("g", "plan", resolutions=ends, author="ops")
    assert db.row("g", "t", "k").row == {"gate": "D4", "delay": 5}
    assert (db.commit("g", merged.version).parents, db.commit("g", merged.version).author) == ((5, 4), "ops")
    with pytest.raises(Contradiction, match="all that led to") as nothing:
        db.merge("g", "plan")
    assert nothing.value.code == "nothing-to-merge"
    with pytest.raises(Invalid) as merge:
        db.revert("g", merged.version)
    assert merge.value.code == "parent-needed"
    assert db.rehearse(db.transaction("g").operation("revert", versions=[merged.version], parent=1)).counts.rows == 2
    db.revert("g", merged.version, parent=1)
    assert db.row("g", "t", "k").row == {"gate": "B2", "delay": 5}
    with pytest.raises(MergeConflict) as unpicked:
        db.cherry_pick("g", picked)
    db.cherry_pick("g", [picked], resolutions=[conflict.take_theirs() for conflict in db.conflicts(unpicked.value)])
    assert db.row("g", "t", "k").row == {"gate": "C3", "delay": 5}
    db.revert("g", from_="main~1")
    assert db.row("g", "t", "k").row["gate"] == "B2"
    with pytest.raises(Invalid, match="a write can't be rehearsed"):
        db.rehearse(db.transaction("g").put("t", "k", {}))
    db.put("g", "t", "other", {}, branch="plan")
    with pytest.raises(Contradiction) as unmerged:
        db.delete_branch("g", "plan")
    assert unmerged.value.code == "not-merged"
    db.delete_branch("g", "plan", force=True)
    assert [branch.name for branch in db.branches("g")] == ["main"]


def test_all_conflicts_of_a_refusal_are_listed_whatever_is_written_since(db: Client) -> None:
    keys = [f"k{number:04}" for number in range(2_300)]

    def put(value: int, branch: str = "main") -> None:
        tx = db.transaction("g", branch=branch)
        for key in keys:
            tx.put("t", key, {"n": value})
        tx.send()

    put(1)
    db.branch("g", "plan")
    put(2, "plan")
    put(3)
    with pytest.raises(MergeConflict) as refused:
        db.merge("g", "plan", policy="fail")
    listing = db.conflicts(refused.value)
    first = next(listing)
    put(2)
    listed = [first, *listing]
    assert [conflict.key for conflict in listed] == keys
    assert {(conflict.base, conflict.ours, conflict.theirs) for conflict in listed} == {(1, 3, 2)}
    assert (len(refused.value.conflicts), refused.value.total) == (100, len(keys))
    with pytest.raises(MergeConflict) as rehearsed:
        db.rehearse_merge("g", "plan", resolutions=[listed[0].take_ours()])
    assert "no conflict" in rehearsed.value.detail


def test_a_stale_resolution_comes_back_as_such(db: Client) -> None:
    db.put("g", "t", "k", {"n": 1, "sum": 0})
    db.branch("g", "plan")
    db.put("g", "t", "k", {"n": 2, "sum": 1}, branch="plan")
    db.put("g", "t", "k", {"n": 3, "sum": 1})
    db.set_merge("g", "t", fields={"sum": "sum"})
    assert db.merge_functions("g", "t").fields == {"sum": "sum"}
    with pytest.raises(MergeConflict) as refused:
        db.merge("g", "plan")
    ends = [conflict.take_ours() for conflict in refused.value.conflicts]
    db.patch("g", "t", "k", {"n": 4})
    with pytest.raises(MergeConflict, match="changed since") as stale:
        db.merge("g", "plan", resolutions=ends, policy="theirs")
    (conflict,) = stale.value.conflicts
    assert (conflict.stale, conflict.ours) == (True, 4)
    db.merge("g", "plan", resolutions=[conflict.delete()])
    assert db.row("g", "t", "k").row == {"sum": 2}
    db.set_merge("g", "t")
    with pytest.raises(NotFound):
        db.merge_functions("g", "t")


def test_rows_come_in_pages_of_one_version(db: Client) -> None:
    for number in range(25):
        db.put("g", "t", f"k{number:02}", {"n": number})
    rows = db.rows("g", "t", page=10)
    first = next(rows)
    db.put("g", "t", "k99", {})
    assert [first.key, *(row.key for row in rows)] == [f"k{number:02}" for number in range(25)]
    assert [row.key for row in db.rows("g", "t", where="n >= 23")] == ["k23", "k24"]
    assert [row.key for row in db.rows("g", "t", prefix="k1", start="k15", end="k17")] == ["k15", "k16"]


@pytest.mark.parametrize("key", ["..", ".", "a/../b", "%2F", "ü?#&", " ", "\n"])
def test_any_key_is_its_own_path(db: Client, key: str) -> None:
    db.put("..", ".", key, {"key": key})
    assert db.row("..", ".", key).key == key


def test_refusals_are_raised_by_their_type(db: Client) -> None:
    db.put("g", "t", "k", {"n": 1}, id="t-1")
    with pytest.raises(PreconditionFailed) as mismatch:
        db.transaction("g").put("t", "k", {}).expect_absent("t", "k").send()
    assert (mismatch.value.code, mismatch.value.facts["found"]) == ("version-mismatch", 1)
    with pytest.raises(Contradiction, match="another content"):
        db.put("g", "t", "k", {"n": 2}, id="t-1")
    unknown: list[tuple[str, str, int | None]] = [("g", "no", None), ("no", "k", None), ("g", "k", 9)]
    for group, key, at in unknown:
        with pytest.raises(NotFound):
            db.row(group, "t", key, at=at)
    with pytest.raises(Invalid) as ahead:
        db.row("g", "t", "k", at=datetime(2999, 1, 1, tzinfo=UTC))
    assert ahead.value.code == "time-to-come"
    with pytest.raises(TooLarge):
        db.put("g", "t", "k", {"x": "x" * 600_000})


def test_many_are_sent_at_once_and_answered_in_order(db: Client) -> None:
    def asked() -> Iterator[Transaction]:
        for number in range(4_500):
            tx = Transaction(f"g{number % 3}", id=f"t-{number}").add("t", "sum", {"n": 1})
            yield tx.expect_head(0) if number == 3_000 else tx

    outcomes = list(db.send_many(asked()))
    assert [outcome.transaction_id for outcome in outcomes] == [f"t-{number}" for number in range(4_500)]
    assert [outcome.transaction_id for outcome in outcomes if not outcome.committed] == ["t-3000"]
    assert db.row("g1", "t", "sum").row == {"n": 1_500}


def test_what_ends_a_batch_names_the_ids_whose_outcomes_it_did_not_tell(db: Client) -> None:
    large = Transaction("g", id="large").put("t", "a", {"x": "x" * 510_000}).put("t", "b", {"x": "x" * 510_000})
    sents = db.send_many(
        [Transaction("g", id="first").put("t", "k", {}), large, Transaction("g", id="last").put("t", "k", {})]
    )
    assert next(sents).transaction_id == "first"
    with pytest.raises(TooLarge, match="may be decided") as broken:
        next(sents)
    assert broken.value.facts["ids"] == ["large", "last"]
    with (
        answering(httpx.ConnectError("nobody there"), retry_for_s=0.1) as (away, _),
        pytest.raises(Unavailable) as lost,
    ):
        next(away.send_many([Transaction("g", id="a").put("t", "k", {}), Transaction("g", id="b").put("t", "k", {})]))
    assert lost.value.facts["ids"] == ["a", "b"]


def test_a_transaction_undecided_at_first_is_sent_again_until_it_is(served: Served) -> None:
    served.house.log.held = True
    with Client(served.url, timeout_s=0.2, retry_for_s=10) as db:
        releasing = threading.Timer(0.5, lambda: served.loop.call_soon_threadsafe(served.house.log.release))
        releasing.start()
        assert db.put("g", "t", "k", {"n": 1}).version == 1
        releasing.join()
        assert db.group("g").version == 1


def test_what_can_pass_is_tried_again_when_the_server_says_so() -> None:
    for passing in (problem(503, "recovering", "1"), problem(429, "too-many-requests", "1")):
        with answering(passing, COMMITTED) as (db, asked):
            begun = time.monotonic()
            db.send(Transaction("g", id="t-1").put("t", "k", {}))
            assert 0.9 < time.monotonic() - begun < 5
            assert asked[0].content == asked[1].content


def test_a_broken_connection_is_tried_again_with_the_same_id() -> None:
    with answering(httpx.ConnectError("refused"), httpx.ReadError("reset"), COMMITTED) as (db, asked):
        db.put("g", "t", "k", {})
        assert len({request.content for request in asked}) == 1
        assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ConnectError("refused"), Unavailable),
        (problem(503, "owner-away"), Unavailable),
        (problem(429, "too-many-requests"), TooMany),
        (problem(202, "undecided", id="t-1", outcome="undecided"), Undecided),
    ],
)
def test_trying_again_ends_in_the_typed_error(answer: httpx.Response | Exception, kind: type[VersologError]) -> None:
    with answering(answer, retry_for_s=0.3) as (db, asked):
        with pytest.raises(kind):
            db.put("g", "t", "k", {})
        assert len(asked) > 1


@pytest.mark.parametrize("status", [400, 404, 409, 412, 413, 422, 500])
def test_what_can_not_pass_is_not_tried_again(status: int) -> None:
    with answering(problem(status, "some-code", fact=1)) as (db, asked):
        with pytest.raises(VersologError) as error:
            db.row("g", "t", "k")
        assert (error.value.code, error.value.detail, error.value.facts) == ("some-code", "why", {"fact": 1})
        assert (error.value.status, len(asked)) == (status, 1)


def test_an_answer_of_something_else_is_an_error_that_says_so() -> None:
    with answering(httpx.Response(404, text="<html>nginx</html>")) as (db, _), pytest.raises(NotFound, match="nginx"):
        db.row("g", "t", "k")


def test_reads_carry_the_token_of_this_clients_writes_to_the_group() -> None:
    row = httpx.Response(200, json={
        "group": "g", "table": "t", "key": "k", "version": 7, "committed_at": "2013-06-01T00:00:00.000Z", "row": {}
    })  # fmt: skip
    with answering(COMMITTED, row) as (db, asked):
        db.put("g", "t", "k", {})
        db.row("g", "t", "k")
        db.row("other", "t", "k")
        assert [request.headers.get("versolog-token") for request in asked] == [None, "g:7", None]
    with answering(COMMITTED, row, read_own_writes=False) as (db, asked):
        db.put("g", "t", "k", {})
        db.row("g", "t", "k")
        assert "versolog-token" not in asked[1].headers


def test_both_clients_have_the_same_calls() -> None:
    def public(kind: type) -> dict[str, Any]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(call).parameters for name, call in found if not name.startswith("_")}

    one, other = public(Client), public(AsyncClient)
    assert one.keys() == other.keys()
    for name, parameters in one.items():
        assert list(parameters) == list(other[name]), name
        assert [p.default for p in parameters.values()] == [p.default for p in other[name].values()], name


@pytest.mark.anyio
async def test_the_asyncio_client_does_the_same(tmp_path: Path) -> None:
    house = House(tmp_path)
    transport = httpx.ASGITransport(house.app)

    async def three() -> AsyncIterator[Transaction]:
        for number in range(3):
            yield Transaction("g", id=f"t-{number}").put("t", f"k{number}", {"n": number})

    async with AsyncClient("http://node", author="tests", transport=transport) as db:
        first = await db.transaction("g").put("t", "k", {"n": 1}).send()
        await db.patch("g", "t", "k", {"n": 2})
        assert (await db.row("g", "t", "k")).row == {"n": 2}
        assert (await db.row("g", "t", "k", at=first.version)).row == {"n": 1}
        sent = [tx async for tx in three()]
        assert [outcome.version async for outcome in db.send_many(sent)] == [3, 4, 5]
        assert [row.key async for row in db.rows("g", "t", page=2)] == ["k", "k0", "k1", "k2"]
        assert [past.version async for past in db.history("g", "t", "k")] == [2, 1]
        with pytest.raises(NotFound):
            await db.row("g", "t", "none")
        await db.branch("g", "plan")
        await db.put("g", "t", "k", {"n": 7}, branch="plan")
        await db.put("g", "t", "k", {"n": 8})
        with pytest.raises(MergeConflict) as refused:
            await db.merge("g", "plan")
        ends = [conflict.take_theirs() async for conflict in db.conflicts(refused.value)]
        assert (await db.rehearse_merge("g", "plan", resolutions=ends)).counts.changed == 1
        with pytest.raises(PreconditionFailed):
            await db.merge("g", "plan", resolutions=ends, expect_head=1)
        await db.merge("g", "plan", resolutions=ends)
        assert (await db.compare("g", "plan")).ahead == 0
        await db.rollback("g", 1)
        assert (await db.diff("g", 1)).counts.rows == 0
    house.close()


@pytest.mark.parametrize("later", ["0", "1", "3600", "9" * 400])
def test_a_server_can_not_make_a_client_wait_longer_than_it_would(later: str) -> None:
    with answering(problem(503, "unavailable", later), retry_for_s=0.5) as (db, asked):
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            db.row("g", "t", "k")
        assert time.monotonic() - begun < 2.0
        assert 1 <= len(asked) < 20


@pytest.mark.parametrize("answer", [httpx.ConnectError("refused"), problem(503, "owner-away")])
def test_a_write_that_got_no_answer_is_told_by_its_id(answer: httpx.Response | Exception) -> None:
    """So that it can be asked for, or sent again, and is not done twice."""
    with answering(answer, retry_for_s=0.1) as (db, asked):
        with pytest.raises(Unavailable) as lost:
            db.cherry_pick("g", 7)
        sent = json.loads(asked[0].content)
        assert lost.value.facts["id"] == sent["id"]
        assert lost.value.facts["group"] == "g"
        assert sent["id"] in str(lost.value)
        with pytest.raises(Unavailable) as read:
            db.row("g", "t", "k")
        assert "id" not in read.value.facts


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "localhost:8080", "ftp://host", "http://", "http://[::1", "", 8080])
def test_what_can_be_no_address_is_refused_at_once(url: Any) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(Misconfigured, match="no address of a versolog"):
            kind(url)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b"7"])
def test_another_program_is_told_as_such(body: bytes) -> None:
    with (
        answering(httpx.Response(200, content=body)) as (db, _),
        pytest.raises(Misconfigured, match="no versolog does"),
    ):
        db.row("g", "t", "k")
