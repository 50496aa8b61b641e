"""History over HTTP: what happened to a row, to a group, between two versions, and going back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inprocess import house

pytestmark = pytest.mark.anyio

GROUP = "/v1/groups/UA"
FLIGHTS = f"{GROUP}/tables/flights"
START_MS = 1_370_000_000_000


async def put(client: httpx.AsyncClient, key: str, row: dict[str, Any], **about: str) -> int:
    answer = await client.put(f"{FLIGHTS}/rows/{key}", json=row, params=about)
    assert answer.status_code == 201, answer.text
    version: int = answer.json()["version"]
    return version


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def pages(client: httpx.AsyncClient, path: str, what: str, **query: Any) -> list[Any]:
    """All that a listing lists."""
    listed: list[Any] = []
    while True:
        told = await get(client, path, **query)
        listed += told[what]
        if told["cursor"] is None:
            return listed
        query["cursor"] = told["cursor"]


async def test_the_history_of_a_row_names_each_change_and_its_author(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1}, author="ann", message="first", type="Made")
        await put(client, "other", {})
        await put(client, "k1", {"n": 2}, author="bob")
        await client.delete(f"{FLIGHTS}/rows/k1", params={"author": "eve"})
        changes = await pages(client, f"{FLIGHTS}/history", "changes", key="k1", limit=1)
        assert [(one["version"], one["author"], one["row"]) for one in changes] == [
            (4, "eve", None), (3, "bob", {"n": 2}), (1, "ann", {"n": 1}),
        ]  # fmt: skip
        assert (changes[2]["message"], changes[2]["type"]) == ("first", "Made")
        then = await get(client, f"{FLIGHTS}/history", key="k1", at="2")
        assert [one["version"] for one in then["changes"]] == [1]
        unknown = await client.get(f"{FLIGHTS}/history", params={"key": "never"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-row")
        assert (await client.get(f"{FLIGHTS}/history")).json()["field"] == "key"


async def test_blame_says_who_set_each_field(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"gate": "A1", "crew": {"pilot": "x", "mate": "y"}}, author="ann")
        await client.patch(f"{FLIGHTS}/rows/k1", json={"crew": {"mate": "z"}}, params={"author": "bob"})
        told = await get(client, f"{FLIGHTS}/blame", key="k1")
        assert [(one["path"], one["value"], one["version"], one["author"]) for one in told["fields"]] == [
            (["crew", "mate"], "z", 2, "bob"),
            (["crew", "pilot"], "x", 1, "ann"),
            (["gate"], "A1", 1, "ann"),
        ]
        assert (await client.get(f"{FLIGHTS}/blame", params={"key": "no"})).status_code == 404


async def test_the_log_lists_commits_whose_hashes_chain(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for number in range(5):
            await put(client, f"k{number}", {"n": number})
        await client.put(f"{GROUP}/tags/five", json={})
        listed = await pages(client, f"{GROUP}/log", "commits", limit=2)
        assert [commit["version"] for commit in listed] == [5, 4, 3, 2, 1]
        for newer, older in pairwise(listed):
            assert newer["previous_hash"] == older["hash"]
            assert newer["parents"] == [older["version"]]
        whole = await pages(client, f"{GROUP}/log", "commits", all="true", limit=4)
        assert [(commit["version"], commit["operation"]) for commit in whole][:2] == [(6, "tag"), (5, "write")]
        assert [one["version"] for one in await pages(client, f"{GROUP}/log", "commits", at="3")] == [3, 2, 1]
        one = await pages(client, f"{GROUP}/log", "commits", table="flights", key="k2")
        assert [commit["version"] for commit in one] == [3]
        refused = await client.get(f"{GROUP}/log", params={"key": "k2"})
        assert (refused.status_code, refused.json()["field"]) == (422, "table")


async def test_a_log_is_searched_page_by_page(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        ticks = iter(range(START_MS, START_MS + 100_000, 1_000))
        built.now_ms = lambda: next(ticks)
        for number in range(8):
            about = {
                "author": ("ann", "bob")[number % 2],
                "message": f"Change {number}",
                "type": ("A", "B")[number // 4],
            }
            await put(client, f"k{number % 3}", {"n": number}, **about)
        start = datetime.fromtimestamp(START_MS / 1000, UTC)

        async def found(**sought: Any) -> list[int]:
            listed = await pages(client, f"{GROUP}/log", "commits", limit=2, **sought)
            assert await pages(client, f"{GROUP}/log", "commits", limit=3, all="true", **sought) == listed
            return [commit["version"] for commit in listed]

        assert await found(author="ann") == [7, 5, 3, 1]
        assert await found(author="ann", type="B") == [7, 5]
        assert await found(message="cHANGE 3") == [4]
        assert await found(table="flights", key="k0", author="bob") == [4]
        assert await found(table="other") == []
        assert await found(operation="merge") == []
        since, until = (start + timedelta(seconds=number) for number in (2, 4))
        assert await found(since=since.isoformat(), until=until.isoformat()) == [5, 4, 3]
        refused = await client.get(f"{GROUP}/log", params={"since": "noon"})
        assert (refused.status_code, refused.json()["field"]) == (422, "since")
        first = await get(client, f"{GROUP}/log", author="ann", limit=1)
        answer = await client.get(f"{GROUP}/log", params={"author": "bob", "cursor": first["cursor"]})
        assert answer.json()["code"] == "foreign-cursor"


async def operate(client: httpx.AsyncClient, kind: str, branch: str = "main", **arguments: Any) -> int:
    operation = {"kind": kind, "arguments": arguments}
    answer = await client.post("/v1/transactions", json={"group": "UA", "branch": branch, "operation": operation})
    assert answer.status_code == 201, answer.text
    version: int = answer.json()["version"]
    return version


async def test_a_graph_has_what_merges_brought_and_the_names_there_now(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        await operate(client, "create-branch", name="plan", **{"from": "main"})
        await put(client, "k2", {"n": 2}, branch="plan")
        await put(client, "k1", {"n": 3})
        await operate(client, "merge", source="plan")
        await client.put(f"{GROUP}/tags/done", json={})
        drawn = await pages(client, f"{GROUP}/log", "commits", graph="true", limit=2)
        assert [(commit["version"], commit["graph"]) for commit in drawn] == [
            (5, {"parents": [4, 3], "branches": ["main"], "tags": ["done"]}),
            (4, {"parents": [1], "branches": [], "tags": []}),
            (3, {"parents": [1], "branches": ["plan"], "tags": []}),
            (1, {"parents": [], "branches": [], "tags": []}),
        ]
        assert await pages(client, f"{GROUP}/log", "commits", graph="true", all="true", limit=3) == drawn
        answer = await client.get(f"{GROUP}/log", params={"graph": "true", "at": "5"})
        assert answer.headers["cache-control"] == "no-cache"


async def test_a_commit_shows_what_it_changed(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"b": 1, "a": 2})
        answer = await client.get(f"{GROUP}/commits/1")
        assert "immutable" in answer.headers["cache-control"]
        commit = answer.json()
        assert commit["changes"] == [{"table": "flights", "key": "k1", "row": {"a": 2, "b": 1}}]
        assert (commit["previous_hash"], commit["parents"]) == ("0" * 64, [])
        assert (await client.get(f"{GROUP}/commits/2")).json()["code"] == "unknown-version"
        assert (await client.get(f"{GROUP}/commits/head")).status_code == 422


async def test_a_commit_s_changes_are_told_by_field_against_what_it_found(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"gate": {"name": "A1", "hall": 1}})
        await operate(client, "create-branch", name="plan", **{"from": "main"})
        await put(client, "k2", {"n": 2}, branch="plan")
        forward = await operate(client, "merge", source="plan")
        changes = [
            {"op": "patch", "table": "flights", "key": "k1", "row": {"gate": {"name": "B2"}}},
            {"op": "delete", "table": "flights", "key": "k2"}, {"op": "put", "table": "crews", "key": "c", "row": {}},
        ]  # fmt: skip
        sent = await client.post("/v1/transactions", json={"group": "UA", "changes": changes})
        path = f"{GROUP}/commits/{sent.json()['version']}/changes"
        told = await get(client, path)
        assert (told["commit"]["version"], told["from"]["version"]) == (forward + 1, forward)
        assert told["counts"]["tables"] == [
            {"table": "crews", "rows": 1, "added": 1, "changed": 0, "removed": 0},
            {"table": "flights", "rows": 2, "added": 0, "changed": 1, "removed": 1},
        ]
        assert [(row["key"], row["change"]) for row in told["rows"]] == [
            ("c", "added"), ("k1", "changed"), ("k2", "removed"),
        ]  # fmt: skip
        assert told["rows"][1]["fields"] == [{"path": ["gate", "name"], "before": "A1", "after": "B2"}]
        assert await pages(client, path, "rows", limit=1) == told["rows"]
        assert [row["key"] for row in await pages(client, path, "rows", table="flights", prefix="k2")] == ["k2"]
        assert "immutable" in (await client.get(path)).headers["cache-control"]
        (forwarded,) = (await get(client, f"{GROUP}/commits/{forward}/changes"))["rows"]
        assert (forwarded["key"], forwarded["change"]) == ("k2", "added")
        first = await get(client, f"{GROUP}/commits/1/changes")
        assert (first["from"], [row["change"] for row in first["rows"]]) == (None, ["added"])
        assert (await get(client, f"{GROUP}/commits/2/changes"))["counts"]["rows"] == 0
        assert (await client.get(f"{GROUP}/commits/9/changes")).json()["code"] == "unknown-version"
        schema = {"type": "record", "name": "F", "fields": []}
        version = (await client.put(f"{GROUP}/tables/crews/schema", json=schema)).json()["version"]
        settings = await get(client, f"{GROUP}/commits/{version}/changes")
        assert [(row["table"], row["key"]) for row in settings["rows"]] == [("$tables", "crews")]


async def test_a_diff_since_the_merge_base_leaves_out_what_the_other_side_has(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        await operate(client, "create-branch", name="plan", **{"from": "main"})
        await put(client, "k2", {"n": 2}, branch="plan")
        await put(client, "k1", {"n": 3})
        both = await get(client, f"{GROUP}/diff", **{"from": "main", "to": "plan"})
        assert [row["key"] for row in both["rows"]] == ["k1", "k2"]
        since = await get(client, f"{GROUP}/diff", **{"from": "main", "to": "plan", "merge_base": "true"})
        assert (since["from"]["version"], [row["key"] for row in since["rows"]]) == (1, ["k2"])
        await client.delete(GROUP)
        await put(client, "k1", {})
        query = {"from": "1", "to": "main", "merge_base": "true"}
        apart = await client.get(f"{GROUP}/diff", params=query)
        assert (apart.status_code, apart.json()["field"]) == (422, "merge_base")


async def test_a_diff_counts_first_and_shows_rows_and_fields(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for key in ("a", "b", "c"):
            await put(client, key, {"n": 1, "m": {"x": 1, "y": [1]}})
        await put(client, "b", {"n": 1.0, "m": {"x": 2, "y": [1]}, "new": None})
        await client.delete(f"{FLIGHTS}/rows/c")
        await put(client, "d", {"n": 4})
        first = await get(client, f"{GROUP}/diff", **{"from": "3", "limit": "2"})
        kinds = {"rows": 3, "added": 1, "changed": 1, "removed": 1}
        assert first["counts"] == {**kinds, "complete": True, "tables": [{"table": "flights", **kinds}]}
        assert (first["from"]["version"], first["to"]["version"]) == (3, 6)
        await put(client, "a", {"n": 9})
        second = await get(client, f"{GROUP}/diff", **{"from": "3", "limit": "2", "cursor": first["cursor"]})
        assert second["counts"] is None
        assert second["to"]["version"] == 6
        rows = first["rows"] + second["rows"]
        assert [(row["key"], row["change"]) for row in rows] == [("b", "changed"), ("c", "removed"), ("d", "added")]
        assert rows[0]["fields"] == [
            {"path": ["m", "x"], "before": 1, "after": 2},
            {"path": ["n"], "before": 1, "after": 1.0},
            {"path": ["new"], "after": None},
        ]
        assert rows[0]["before"]["version"] == 2
        assert (rows[1]["after"], rows[2]["before"]) == (None, None)
        back = await get(client, f"{GROUP}/diff", **{"from": "6", "to": "3"})
        assert [(row["key"], row["change"]) for row in back["rows"]] == [
            ("b", "changed"), ("c", "added"), ("d", "removed"),
        ]  # fmt: skip
        assert (await client.get(f"{GROUP}/diff")).json()["field"] == "from"


async def test_a_rollback_makes_a_past_version_new_and_can_be_rehearsed(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "a", {"n": 1})
        await put(client, "b", {"n": 1})
        await put(client, "a", {"n": 2})
        await put(client, "c", {"n": 3})
        asked = {"to": 2, "message": "bad load", "author": "ops", "dry_run": True}
        rehearsal = (await client.post(f"{GROUP}/rollbacks", json=asked)).json()
        assert rehearsal["counts"] == {"rows": 2, "added": 0, "changed": 1, "removed": 1, "complete": True}
        assert [(row["key"], row["after"]) for row in rehearsal["rows"]] == [("a", {"n": 1}), ("c", None)]
        assert (await get(client, GROUP))["version"] == 4
        done = await client.post(f"{GROUP}/rollbacks", json=asked | {"dry_run": False})
        assert (done.status_code, done.json()["version"]) == (201, 5)
        rows = (await get(client, f"{FLIGHTS}/rows"))["rows"]
        assert [(row["key"], row["row"]["n"]) for row in rows] == [("a", 1), ("b", 1)]
        commit = await get(client, f"{GROUP}/commits/5")
        assert (commit["operation"], commit["arguments"]["to"], commit["author"]) == ("rollback", "2", "ops")


async def test_a_rollback_may_concern_one_key_and_be_refused(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for key in ("a1", "a2", "b1"):
            await put(client, key, {"n": 1})
        for key in ("a1", "a2", "b1"):
            await put(client, key, {"n": 2})
        await client.post(f"{GROUP}/rollbacks", json={"to": "3", "table": "flights", "key": "a1"})
        await client.post(f"{GROUP}/rollbacks", json={"to": "3", "prefix": "b"})
        rows = (await get(client, f"{FLIGHTS}/rows"))["rows"]
        assert [row["row"]["n"] for row in rows] == [1, 2, 1]
        unknown = await client.post(f"{GROUP}/rollbacks", json={"to": "99", "dry_run": True})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-version")
        ahead = await client.post(f"{GROUP}/rollbacks", json={"to": "2999-01-01T00:00:00Z"})
        assert (ahead.status_code, ahead.json()["code"]) == (422, "time-to-come")
        unmet = await client.post(f"{GROUP}/rollbacks", json={"to": 3, "expect_head": 1})
        assert (unmet.status_code, unmet.json()["code"]) == (412, "head-mismatch")
        for asked, field in (({}, "to"), ({"to": 1, "dryrun": True}, "dryrun"), ({"to": True}, "to")):
            refused = await client.post(f"{GROUP}/rollbacks", json=asked)
            assert (refused.status_code in (400, 422), refused.json()["field"]) == (True, field)


async def test_tags_name_versions_and_can_be_read_by(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        await put(client, "k1", {"n": 2})
        made = await client.put(f"{GROUP}/tags/before", json={"at": 1, "author": "ann"})
        assert made.status_code == 201
        await client.put(f"{GROUP}/tags/now", json={})
        assert (await get(client, f"{FLIGHTS}/rows/k1", at="before"))["row"] == {"n": 1}
        listed = await get(client, f"{GROUP}/tags")
        assert [(tag["name"], tag["version"]) for tag in listed["tags"]] == [("before", 1), ("now", 2)]
        assert (await get(client, f"{GROUP}/tags/now"))["version"] == 2
        again = await client.put(f"{GROUP}/tags/now", json={"at": "1"})
        assert (again.status_code, again.json()["code"], again.json()["found"]) == (409, "ref-exists", 2)
        assert (await client.put(f"{GROUP}/tags/now", json={"at": "1", "move": True})).status_code == 201
        assert (await client.delete(f"{GROUP}/tags/before")).status_code == 201
        assert (await client.get(f"{GROUP}/tags/before")).json()["code"] == "unknown-ref"
        then = await get(client, f"{GROUP}/tags", at="4")
        assert [(tag["name"], tag["version"]) for tag in then["tags"]] == [("before", 1), ("now", 2)]
        for name in ("a~1", "12", "2013-06-01T12:00:00Z", "main"):
            refused = await client.put(f"{GROUP}/tags/{name}", json={})
            assert refused.status_code in (409, 422), refused.text


async def test_branches_are_listed_with_their_heads(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        await put(client, "k1", {"n": 2})
        listed = await get(client, f"{GROUP}/branches")
        assert [(one["name"], one["head"], one["parent"]) for one in listed["branches"]] == [("main", 2, None)]
        assert (await get(client, f"{GROUP}/branches", at="1"))["branches"][0]["head"] == 1


async def test_a_time_is_read_once_nothing_can_come_before_it(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        moment = START_MS

        def now_ms() -> int:
            return moment

        built.now_ms = now_ms
        for number in (1, 2, 3):
            moment += 1_000
            await put(client, "k1", {"n": number})
        start = datetime.fromtimestamp(START_MS / 1000, UTC)

        def at(seconds: float) -> str:
            return (start + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")

        assert (await get(client, f"{FLIGHTS}/rows/k1", at=at(1)))["row"] == {"n": 1}
        assert (await get(client, f"{FLIGHTS}/rows/k1", at=at(2.999)))["row"] == {"n": 2}
        taken = built.log.taken
        moment += 60_000
        answer = await client.get(f"{FLIGHTS}/rows/k1", params={"at": at(30)})
        assert answer.json()["row"] == {"n": 3}
        assert answer.headers["versolog-version"] == "3"
        assert "immutable" in answer.headers["cache-control"]
        assert built.log.taken == taken + 1, "an idle partition is moved on by a tick"
        before = await client.get(f"{FLIGHTS}/rows/k1", params={"at": at(0)})
        assert before.status_code == 404
        ahead = await client.get(f"{FLIGHTS}/rows/k1", params={"at": "2999-01-01T00:00:00Z"})
        assert (ahead.status_code, ahead.json()["code"]) == (422, "time-to-come")
        built.log.held = True
        late = await client.get(f"{FLIGHTS}/rows/k1", params={"at": at(3_600), "wait": "0.05"})
        assert (late.status_code, late.json()["code"]) == (503, "time-not-closed")


async def test_a_table_gets_a_schema_that_its_rows_must_fit(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        schema = {"type": "record", "name": "Flight", "fields": [{"name": "delay", "type": "long"}]}
        path = f"{FLIGHTS}/schema"
        await put(client, "k0", {"anything": True})
        assert (await client.get(path)).json()["code"] == "unknown-schema"
        assert (await client.put(path, json=schema)).json()["version"] == 2
        told = await get(client, path)
        assert (told["schema"], told["version"]) == (schema, 2)
        assert (await client.get(path, params={"at": "1"})).status_code == 404
        misfit = await client.put(f"{FLIGHTS}/rows/k1", json={"delay": "late"})
        assert (misfit.status_code, misfit.json()["code"]) == (422, "schema-mismatch")
        narrower = schema | {"fields": [{"name": "delay", "type": "int"}]}
        refused = await client.put(path, json=narrower)
        assert (refused.status_code, refused.json()["code"]) == (422, "schema-incompatible")
        assert (await client.put(path, json=[1])).status_code == 400
        assert (await client.put(path, json={"type": "nonsense"})).status_code == 422
        assert (await client.delete(path)).status_code == 201
        await put(client, "k1", {"delay": "late"})
        assert (await get(client, f"{GROUP}/diff", **{"from": "1", "table": "$tables"}))["counts"]["rows"] == 0


async def test_groups_are_listed_by_name_in_pages_and_described(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        names = [*sorted(f"guild/{number}" for number in range(7)), "über"]
        for name in names:
            await client.post(
                "/v1/transactions",
                json={"group": name, "changes": [{"op": "put", "table": "t", "key": "k", "row": {}}]},
            )
        listed = await pages(client, "/v1/groups", "groups", limit=3)
        assert [one["group"] for one in listed] == names
        assert [one["group"] for one in await pages(client, "/v1/groups", "groups", prefix="ü")] == ["über"]
        assert [one["group"] for one in await pages(client, "/v1/groups", "groups", start="guild/5")] == names[5:]
        told = await get(client, "/v1/groups/guild%2F3", count="true")
        assert told["tables"] == [{"table": "t", "rows": 1}]
        assert told["branches"] == [{"name": "main", "head": 1}]
        assert told["counts"] == {"commits": 1, "branches": 1, "tags": 0, "tables": 1}


async def test_a_dropped_group_is_gone_and_its_past_is_not(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        assert (await client.delete(GROUP, params={"author": "ann"})).json()["version"] == 2
        gone = await client.get(GROUP)
        assert (gone.status_code, gone.json()["code"], gone.json()["dropped_at"]) == (404, "unknown-group", 2)
        assert (await get(client, "/v1/groups"))["groups"] == []
        assert (await get(client, f"{FLIGHTS}/rows/k1", at="1"))["row"] == {"n": 1}
        assert [one["operation"] for one in await pages(client, f"{GROUP}/log", "commits", all="true")] == [
            "drop-group", "write",
        ]  # fmt: skip
        assert await put(client, "k2", {}) == 3


async def test_a_group_has_one_digest_whenever_it_is_asked(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"n": 1})
        first = await get(client, f"{GROUP}/digest")
        await put(client, "k1", {"n": 2})
        assert await get(client, f"{GROUP}/digest", at="1") == first
        assert (await get(client, f"{GROUP}/digest"))["digest"] != first["digest"]
        assert (await get(client, "/v1/digest"))["groups"] == 1
