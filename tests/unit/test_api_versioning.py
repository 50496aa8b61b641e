"""Version control over HTTP: branches, merges and their conflicts, reverts, cherry-picks, rollbacks, dry runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inprocess import House, house
from versolog.projections.http.rehearsals import KEPT_MAX

pytestmark = pytest.mark.anyio

GROUP = "/v1/groups/UA"
FLIGHTS = f"{GROUP}/tables/flights"
GATE = {
    "table": "flights", "key": "k1", "path": ["gate"], "code": "both-changed",
    "base": "A1", "ours": "B2", "theirs": "C3",
}  # fmt: skip


class Desk:
    """The group UA, in short words."""

    def __init__(self, built: House, client: httpx.AsyncClient) -> None:
        self.house, self.client = built, client

    async def put(self, key: str, row: dict[str, Any], branch: str = "main") -> int:
        answer = await self.client.put(f"{FLIGHTS}/rows/{key}", json=row, params={"branch": branch})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["version"])

    async def put_many(self, keys: list[str], row: dict[str, Any], branch: str = "main") -> int:
        changes = [{"op": "put", "table": "flights", "key": key, "row": row} for key in keys]
        return int((await self.post("/v1/transactions", group="UA", branch=branch, changes=changes))["version"])

    async def row(self, key: str, at: str = "main") -> dict[str, Any] | None:
        answer = await self.client.get(f"{FLIGHTS}/rows/{key}", params={"at": at})
        found: dict[str, Any] | None = answer.json().get("row")
        return found

    async def post(self, path: str, status: int = 201, /, **body: Any) -> dict[str, Any]:
        path = path if path.startswith("/v1") else f"{GROUP}/{path}"
        answer = await self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def get(self, path: str, status: int = 200, /, **query: Any) -> dict[str, Any]:
        answer = await self.client.get(f"{GROUP}/{path}", params=query)
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with house(tmp_path) as (built, client):
        yield Desk(built, client)


@pytest.fixture
async def apart(desk: Desk) -> Desk:
    """main and plan gave k1 different gates."""
    await desk.put("k1", {"gate": "A1", "delay": 0})
    await desk.post("branches", name="plan")
    await desk.put("k1", {"gate": "C3", "delay": 0}, "plan")
    await desk.put("k2", {"gate": "Z9"}, "plan")
    await desk.put("k1", {"gate": "B2", "delay": 5})
    return desk


@pytest.mark.parametrize("at", ["9" * 20, f"{2**63}", f"{2**64}~1", "9" * 250])
async def test_a_version_that_no_number_holds_is_unknown_like_any_other(apart: Desk, at: str) -> None:
    reads = [
        await apart.get(path, 404, at=at) for path in ("tables/flights/rows", "tables/flights/rows/k1", "log", "tags")
    ]
    reads += [await apart.get("diff", 404, **{"from": at}), await apart.get("branches/plan", 404, against=at)]
    asked = [("merges", {"source": at}), ("rollbacks", {"to": at}), ("branches", {"name": "x", "from": at})]
    asked += [("reverts", {"from": at}), ("merges", {"source": at, "dry_run": True})]
    writes = [await apart.post(path, 404, **body) for path, body in asked]
    assert {told["code"] for told in reads + writes} == {"unknown-version"}
    assert {told["newest"] for told in reads + writes} == {5}


def without_outcome(told: dict[str, Any]) -> dict[str, Any]:
    """A refusal without what only a transaction that was decided has."""
    return {name: value for name, value in told.items() if name not in ("id", "outcome", "committed_at")}


# Branches


async def test_a_branch_is_made_looked_at_compared_and_deleted(desk: Desk) -> None:
    await desk.put("k1", {"n": 1})
    assert (await desk.post("branches", name="plan", **{"from": 1}))["version"] == 2
    await desk.put("k1", {"n": 2}, "plan")
    await desk.put("k2", {"n": 2}, "plan")
    await desk.put("k3", {"n": 3})
    told = await desk.get("branches/plan", against="main")
    assert told.items() >= {"name": "plan", "head": 4, "id": 2, "parent": "main", "fork": 1}.items()
    assert told["against"] == {"ref": "main", "version": 5, "ahead": 2, "behind": 1, "bases": [1]}
    assert (await desk.get("branches/plan"))["against"] is None
    then = await desk.get("branches/plan", at="3", against="main")
    assert (then["head"], then["against"]["ahead"], then["against"]["behind"]) == (3, 1, 0)
    assert (await desk.get("branches/none", 404))["code"] == "unknown-branch"
    assert (await desk.get("branches/plan", 404, at="1"))["code"] == "unknown-branch"
    assert (await desk.get("branches/plan", 404, against="none"))["code"] == "unknown-ref"

    taken = await desk.post("branches", 409, name="plan")
    assert (taken["code"], "another name" in taken["detail"]) == ("ref-exists", True)
    assert (await desk.post("branches", 422, name="a~1"))["code"] == "invalid"
    assert (await desk.post("branches", 404, name="b", **{"from": "none"}))["code"] == "unknown-ref"
    kept = await desk.client.delete(f"{GROUP}/branches/plan")
    assert (kept.status_code, kept.json()["code"]) == (409, "not-merged")
    assert "say `force`" in kept.json()["detail"]
    assert (await desk.client.delete(f"{GROUP}/branches/plan", params={"force": "true"})).status_code == 201
    assert (await desk.client.delete(f"{GROUP}/branches/main")).json()["code"] == "invalid"
    assert await desk.row("k1", "4") == {"n": 2}, "its commits stay readable by version"


async def test_a_head_is_the_newest_commit_of_a_branch_whatever_was_tagged_since(desk: Desk) -> None:
    version = await desk.put("k1", {"n": 1})
    await desk.client.put(f"{GROUP}/tags/before", json={})
    await desk.post("branches", name="plan")
    listed = (await desk.get("branches"))["branches"]
    assert [(one["name"], one["head"]) for one in listed] == [("main", version), ("plan", version)]
    assert (await desk.get("branches/main"))["head"] == version
    await desk.post("/v1/transactions", group="UA", expect_head=version, changes=[
        {"op": "put", "table": "flights", "key": "k2", "row": {}},
    ])  # fmt: skip


# Merges and their conflicts


async def test_a_merge_brings_what_a_branch_did(desk: Desk) -> None:
    await desk.put("k1", {"n": 1})
    await desk.post("branches", name="plan")
    await desk.put("k1", {"n": 2}, "plan")
    rehearsed = await desk.post("merges", 200, source="plan", dry_run=True)
    assert rehearsed["counts"] == {"rows": 1, "added": 0, "changed": 1, "removed": 0, "complete": True}
    assert [(row["key"], row["after"]) for row in rehearsed["rows"]] == [("k1", {"n": 2})]
    assert await desk.row("k1") == {"n": 1}, "a dry run writes nothing"
    merged = await desk.post("merges", source="plan", no_ff=True, author="ops", message="as planned")
    assert (merged["branch"], await desk.row("k1")) == ("main", {"n": 2})
    commit = await desk.get(f"commits/{merged['version']}")
    assert (commit["parents"], commit["author"]) == ([1, 3], "ops")
    again = await desk.post("merges", 409, source="plan")
    assert again["code"] == "nothing-to-merge"
    assert (await desk.post("merges", 409, source="plan", dry_run=True))["code"] == "nothing-to-merge"
    assert (await desk.post("merges", 404, source="none"))["code"] == "unknown-ref"
    assert (await desk.post("merges", 404, source="plan", target="none"))["code"] == "unknown-branch"
    assert (await desk.post("merges", 412, source="plan", expect_head=1))["code"] == "head-mismatch"
    assert (await desk.post("merges", 422, source="plan", policy="mine"))["field"] == "policy"


async def test_a_refused_merge_names_its_conflicts_and_its_dry_run_the_same(apart: Desk) -> None:
    rehearsed = await apart.post("merges", 409, source="plan", dry_run=True)
    refused = await apart.post("merges", 409, source="plan", id="m-1")
    assert rehearsed == without_outcome(refused)
    assert rehearsed["conflicts"] == [GATE]
    assert (rehearsed["code"], rehearsed["total"], rehearsed["cursor"]) == ("merge-conflict", 1, None)
    assert rehearsed["at"] == {"version": 5, "ours": 5, "theirs": 4, "bases": [1]}
    assert "with a resolution for each or a policy" in rehearsed["detail"]
    assert await apart.post("merges", 409, source="plan", id="m-1") == refused, "a retry has the same answer"
    outcome = (await apart.client.get("/v1/transactions/m-1")).json()
    assert outcome["conflicts"] == [GATE]
    line = await apart.client.post("/v1/transactions:batch", content=(
        b'{"id": "m-2", "group": "UA", "operation": {"kind": "merge", "arguments": {"source": "plan"}}}'
    ))  # fmt: skip
    assert (line.json()["conflicts"], line.json()["cursor"]) == ([GATE], None)
    assert await apart.row("k2") is None, "nothing of a refused merge is there"


@pytest.mark.parametrize(
    ("take", "gate"), [("ours", "B2"), ("theirs", "C3"), ({"value": "D4"}, "D4"), ({"delete": True}, None)]
)
async def test_a_conflict_is_sent_back_with_its_end(apart: Desk, take: Any, gate: str | None) -> None:
    found = (await apart.post("merges", 409, source="plan"))["conflicts"]
    resolutions = [conflict | {"take": take} for conflict in found]
    rehearsed = await apart.post("merges", 200, source="plan", resolutions=resolutions, dry_run=True)
    assert rehearsed["counts"]["added"] == 1
    await apart.post("merges", source="plan", resolutions=resolutions)
    row = await apart.row("k1")
    assert row is not None
    assert (row.get("gate"), row["delay"], await apart.row("k2")) == (gate, 5, {"gate": "Z9"})


async def test_a_resolution_of_other_values_conflicts_again_and_says_so(apart: Desk) -> None:
    (found,) = (await apart.post("merges", 409, source="plan"))["conflicts"]
    await apart.put("k1", {"gate": "B4", "delay": 5})
    asked = {"source": "plan", "policy": "theirs", "resolutions": [found | {"take": "ours"}]}
    stale = await apart.post("merges", 409, **asked)
    assert stale["conflicts"] == [found | {"ours": "B4", "stale": True}]
    assert "changed since" in stale["detail"]
    assert await apart.post("merges", 409, **asked, dry_run=True) == without_outcome(stale)
    nowhere = found | {"key": "k2", "take": "ours"}
    idle = await apart.post("merges", 409, source="plan", policy="ours", resolutions=[nowhere])
    assert idle["conflicts"][0]["code"] == "no-conflict"
    assert "leave out" in idle["detail"]
    broken = await apart.post("merges", 422, source="plan", resolutions=[found | {"take": "mine"}])
    assert broken["field"] == "resolutions/0"


async def test_ten_thousand_conflicts_are_listed_page_by_page_as_they_were(desk: Desk) -> None:
    keys = [f"k{number:05}" for number in range(10_000)]
    await desk.put_many(keys, {"n": 1})
    await desk.post("branches", name="plan")
    await desk.put_many(keys, {"n": 2}, "plan")
    await desk.put_many(keys, {"n": 3})
    started = time.perf_counter()
    page = await desk.post("merges", 409, source="plan", limit=100)
    took_s = time.perf_counter() - started
    assert (page["total"], len(page["conflicts"])) == (10_000, 100)
    assert page["conflicts"] == (await desk.post("merges", 409, source="plan", dry_run=True))["conflicts"]
    await desk.put_many(keys[:5_000], {"n": 2})  # what comes later changes no page
    await desk.client.delete(f"{GROUP}/branches/plan", params={"force": "true"})
    listed = page["conflicts"]
    while page["cursor"] is not None:
        page = await desk.post("merges", 409, source="plan", cursor=page["cursor"], limit=3_000)
        assert page["total"] == 10_000
        listed += page["conflicts"]
    assert [conflict["key"] for conflict in listed] == keys
    assert {(one["base"], one["ours"], one["theirs"]) for one in listed} == {(1, 3, 2)}
    assert took_s < 5, "what the benchmark holds to half a second is at least not of another order"


async def test_a_cursor_belongs_to_what_it_came_from(desk: Desk) -> None:
    keys = [f"k{number}" for number in range(150)]
    await desk.put_many(keys, {"n": 1})
    for branch in ("plan", "other"):
        await desk.post("branches", name=branch)
        await desk.put_many(keys, {"n": branch}, branch)
    await desk.put_many(keys, {"n": 3})
    asked = {"group": "UA", "operation": {"kind": "merge", "arguments": {"source": "plan", "policy": "fail"}}}
    cursor = (await desk.post("/v1/transactions", 409, **asked))["cursor"]
    rest = await desk.post("merges", 409, source="plan", cursor=cursor)
    assert (len(rest["conflicts"]), rest["cursor"]) == (50, None)
    assert (await desk.post("merges", 422, source="other", cursor=cursor))["code"] == "foreign-cursor"
    assert (await desk.post("merges", 400, source="plan", cursor="x"))["code"] == "bad-cursor"
    for _ in range(KEPT_MAX + 2):
        again = await desk.post("merges", 409, source="other", dry_run=True)
        await desk.put("elsewhere", {})
        assert len((await desk.post("merges", 409, source="other", cursor=again["cursor"]))["conflicts"]) == 50
    assert await desk.post("merges", 409, source="plan", cursor=cursor) == rest


async def test_a_conflict_larger_than_an_outcome_is_on_the_next_page(desk: Desk) -> None:
    await desk.put("k", {"n": "b" * 300_000})
    await desk.post("branches", name="plan")
    await desk.put("k", {"n": "t" * 300_000}, "plan")
    await desk.put("k", {"n": "o" * 300_000})
    refused = await desk.post("merges", 409, source="plan")
    assert (refused["total"], refused["conflicts"]) == (1, [])
    assert (await desk.post("merges", 409, source="plan", dry_run=True))["cursor"] == refused["cursor"]
    page = await desk.post("merges", 409, source="plan", cursor=refused["cursor"])
    assert (page["cursor"], page["conflicts"][0]["theirs"]) == (None, "t" * 300_000)


async def test_a_dry_run_lists_its_rows_in_pages(desk: Desk) -> None:
    keys = [f"k{number:03}" for number in range(25)]
    await desk.put_many(keys, {"n": 1})
    await desk.post("branches", name="plan")
    await desk.put_many(keys, {"n": 2}, "plan")
    page = await desk.post("merges", 200, source="plan", dry_run=True, limit=10)
    assert page["counts"]["changed"] == 25
    listed = page["rows"]
    await desk.put_many(keys, {"n": 3})
    while page["cursor"] is not None:
        page = await desk.post("merges", 200, source="plan", cursor=page["cursor"], limit=10)
        assert page["counts"] is None
        listed += page["rows"]
    assert [(row["key"], row["before"]["row"], row["after"]) for row in listed] == [
        (key, {"n": 1}, {"n": 2}) for key in keys
    ]  # fmt: skip
    assert (await desk.get("branches/main"))["head"] == 4, "listing changed nothing"


async def test_merge_functions_are_set_shown_and_taken_away(apart: Desk) -> None:
    path = f"{FLIGHTS}/merge"
    assert (await apart.client.get(path)).json()["code"] == "unknown-merge"
    assert (await apart.client.put(path, json={})).status_code == 422
    assert (await apart.client.put(path, json={"fields": {"gate": "median"}})).json()["field"] == "fields"
    assert (await apart.client.put(path, json={"row": 7})).status_code == 400
    made = await apart.client.put(path, json={"fields": {"gate": "max", "*": "last"}}, params={"author": "ops"})
    assert made.status_code == 201
    told = (await apart.client.get(path)).json()
    assert (told["row"], told["fields"]) == (None, {"gate": "max", "*": "last"})
    assert told["version"] == made.json()["version"]
    await apart.post("merges", source="plan")
    assert await apart.row("k1") == {"gate": "C3", "delay": 5}
    assert (await apart.client.delete(path)).status_code == 201
    assert (await apart.client.get(path)).status_code == 404
    assert (await apart.client.get(path, params={"at": told["version"]})).status_code == 200


# Undoing, and doing again


async def test_commits_are_undone_and_done_again_with_conflicts_like_a_merge(apart: Desk) -> None:
    conflicting = await apart.post("cherry-picks", 409, versions=[3])
    assert (conflicting["version"], conflicting["conflicts"]) == (3, [GATE])
    assert await apart.post("cherry-picks", 409, versions=[3], dry_run=True) == without_outcome(conflicting)
    await apart.post("cherry-picks", versions=[4])
    assert await apart.row("k2") == {"gate": "Z9"}
    rehearsed = await apart.post("reverts", 200, versions=[5], dry_run=True)
    assert rehearsed["rows"][0]["after"] == {"gate": "A1", "delay": 0}
    await apart.post("reverts", versions=[5], message="wrong gate")
    assert await apart.row("k1") == {"gate": "A1", "delay": 0}
    await apart.post("cherry-picks", versions=[3], policy="theirs")
    await apart.put("k1", {"gate": "E5", "delay": 0})
    refused = await apart.post("reverts", 409, **{"from": "main~2", "to": "main~1"})
    assert refused["conflicts"][0]["ours"] == "E5"
    ends = [conflict | {"take": "theirs"} for conflict in refused["conflicts"]]
    await apart.post("reverts", **{"from": "main~2", "to": "main~1"}, resolutions=ends)
    assert await apart.row("k1") == {"gate": "A1", "delay": 0}
    assert (await apart.post("reverts", 422, versions=[]))["field"] == "versions"
    assert (await apart.post("reverts", 404, versions=[999]))["code"] == "unknown-version"
    assert (await apart.post("reverts", 422, versions=[2]))["code"] == "invalid"


async def test_undoing_a_merge_needs_its_parent_named(apart: Desk) -> None:
    merged = (await apart.post("merges", source="plan", policy="theirs"))["version"]
    asked = {"versions": [merged]}
    for dry_run in (False, True):
        refused = await apart.post("reverts", 422, **asked, dry_run=dry_run)
        assert (refused["code"], refused["parents"]) == ("parent-needed", [5, 4])
        assert "say which parent, 1 or 2" in refused["detail"]
    await apart.post("reverts", **asked, parent=1)
    assert (await apart.row("k1"), await apart.row("k2")) == ({"gate": "B2", "delay": 5}, None)


async def test_a_branch_a_table_a_key_and_a_prefix_go_back_to_a_version_or_a_time_on_any_branch(desk: Desk) -> None:
    moment = 1_370_000_000_000

    def now_ms() -> int:
        return moment

    desk.house.now_ms = now_ms
    await desk.put("a1", {"n": 1})
    await desk.post("branches", name="plan")
    times = {}
    for number in (1, 2, 3):
        moment += 10_000
        for key in ("a1", "a2", "b1"):
            await desk.put(key, {"n": number}, "plan")
        await desk.client.put(f"{GROUP}/tables/other/rows/a1", json={"n": number}, params={"branch": "plan"})
        version = (await desk.get("branches/plan"))["head"]
        times[number] = version, datetime.fromtimestamp((moment + 5_000) / 1_000, UTC).isoformat()
    moment += 10_000

    async def numbers() -> list[Any]:
        rows = [await desk.row(key, "plan") for key in ("a1", "a2", "b1")]
        other = await desk.client.get(f"{GROUP}/tables/other/rows/a1", params={"at": "plan"})
        return [row["n"] if row else None for row in [*rows, other.json().get("row")]]

    for to, part, expected in (
        (times[2][1], {"table": "flights", "key": "a1"}, [2, 3, 3, 3]),
        (times[1][1], {"prefix": "a"}, [1, 1, 3, 1]),
        (times[2][0], {"table": "flights"}, [2, 2, 2, 1]),
        (times[1][1], {}, [1, 1, 1, 1]),
        (1, {}, [1, None, None, None]),
        (times[3][0], {}, [3, 3, 3, 3]),
    ):
        asked = {"to": to, "branch": "plan", **part}
        rehearsed = await desk.post("rollbacks", 200, **asked, dry_run=True)
        before = await numbers()
        done = await desk.post("rollbacks", **asked)
        assert await numbers() == expected
        assert done["branch"] == "plan"
        changed = sum(one != other for one, other in zip(before, expected, strict=True))
        assert rehearsed["counts"]["rows"] == len(rehearsed["rows"]) == changed
    assert await desk.row("a1") == {"n": 1}, "main is as it was"


async def test_a_dry_run_refuses_what_the_commit_path_would(desk: Desk) -> None:
    await desk.put("k1", {"n": "text"})
    await desk.post("branches", name="plan")
    await desk.put("k1", {"n": "other"}, "plan")
    schema = {"type": "record", "name": "F", "fields": [{"name": "n", "type": "long"}]}
    assert (await desk.client.put(f"{FLIGHTS}/schema", json=schema)).status_code == 201
    for dry_run in (True, False):
        refused = await desk.post("merges", 422, source="plan", dry_run=dry_run)
        assert (refused["code"], refused["key"]) == ("schema-mismatch", "k1")
