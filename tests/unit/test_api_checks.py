"""Checks of tables over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.inprocess import house

pytestmark = pytest.mark.anyio

CHECKS = "/v1/groups/UA/tables/bookings/checks"
ROWS = "/v1/groups/UA/tables/bookings/rows"
UNIQUE = {"one a seat": {"unique": "seat"}}
TERMS = {"paid": {"sum": "owed", "constant": True}}


async def test_checks_are_set_shown_at_any_version_and_taken_away(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(f"{ROWS}/b1", json={"seat": "12A", "owed": "7.50"})
        absent = await client.get(CHECKS)
        assert (absent.status_code, absent.json()["code"]) == (404, "unknown-checks")
        done = await client.put(CHECKS, json=UNIQUE | TERMS, params={"author": "ops", "message": "no double bookings"})
        assert (done.status_code, done.json()["version"]) == (201, 2)
        shown = await client.get(CHECKS)
        assert shown.headers["etag"] == '"2"'
        assert shown.json()["checks"] == UNIQUE | {"paid": {"sum": "owed", "equals": "7.5"}}
        gone = await client.delete(CHECKS)
        assert (gone.status_code, gone.json()["version"]) == (201, 3)
        assert (await client.get(CHECKS)).status_code == 404
        assert (await client.get(CHECKS, params={"at": "2"})).json() == shown.json()
        commit = (await client.get("/v1/groups/UA/commits/2")).json()
        assert (commit["operation"], commit["author"], commit["message"]) == ("set-checks", "ops", "no double bookings")


async def test_what_breaks_a_check_is_refused_with_the_row_on_every_way_to_it(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(f"{ROWS}/b1", json={"seat": "12A"})
        await client.put(CHECKS, json=UNIQUE)
        await client.put(f"{ROWS}/b1", json={"seat": "12B"})
        await client.put(f"{ROWS}/b2", json={"seat": "12A"})
        change = {"op": "patch", "table": "bookings", "key": "b3", "row": {"seat": "12A"}}
        refused = [
            await client.put(f"{ROWS}/b3", json={"seat": "12A"}),
            await client.post("/v1/transactions", json={"group": "UA", "changes": [change]}),
            await client.post("/v1/groups/UA/rollbacks", json={"to": "1", "key": "b1"}),
            await client.post("/v1/groups/UA/rollbacks", json={"to": "1", "key": "b1", "dry_run": True}),
        ]
        for answer in refused:
            problem = answer.json()
            assert (answer.status_code, problem["status"], problem["code"]) == (409, 409, "check-failed")
            assert (problem["table"], problem["check"], problem["other"]) == ("bookings", "one a seat", "b2")
        assert [answer.json()["key"] for answer in refused] == ["b3", "b3", "b1", "b1"]
        assert (await client.get("/v1/groups/UA")).json()["version"] == 4


async def test_a_check_that_rows_break_already_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for key in ("b1", "b2"):
            await client.put(f"{ROWS}/{key}", json={"seat": "12A"})
        refused = await client.put(CHECKS, json=UNIQUE)
        assert (refused.status_code, refused.json()["code"]) == (409, "check-failed")
        assert {refused.json()["key"], refused.json()["other"]} == {"b1", "b2"}
        assert (await client.get(CHECKS)).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [([], 400, "malformed"), ({"x": {"unique": []}}, 422, "invalid"), ({"x": {"most": 1}}, 422, "invalid")],
)
async def test_what_is_no_check_is_refused(tmp_path: Path, body: Any, status: int, code: str) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(f"{ROWS}/b1", json={})
        refused = await client.put(CHECKS, json=body)
        assert (refused.status_code, refused.json()["code"]) == (status, code)


async def test_a_dry_run_and_a_difference_show_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await client.put(f"{ROWS}/b1", json={"seat": "12A", "owed": 1})
        await client.put(CHECKS, json=UNIQUE | {"owed": {"sum": "owed", "min": 0}})
        await client.put(f"{ROWS}/b1", json={"seat": "12B", "owed": 2})
        rehearsed = (await client.post("/v1/groups/UA/rollbacks", json={"to": "2", "dry_run": True})).json()
        assert rehearsed["counts"]["rows"] == 1
        difference = (await client.get("/v1/groups/UA/diff", params={"from": "2"})).json()
        assert [row["key"] for row in difference["rows"]] == ["b1"]
        assert (await client.get("/v1/groups/UA")).json()["tables"] == [{"table": "bookings", "rows": None}]
        verified = (await client.get("/v1/groups/UA/digest")).json()
        assert len(verified["digest"]) == 64
