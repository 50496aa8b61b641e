"""Rows over HTTP: written, read at any version, listed in pages that hold together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inprocess import house

pytestmark = pytest.mark.anyio

FLIGHTS = "/v1/groups/UA/tables/flights/rows"


async def put(client: httpx.AsyncClient, key: str, row: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.put(f"{FLIGHTS}/{key}", json=row, headers=headers)


async def test_a_row_is_written_and_read_back(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        written = await put(client, "k1", {"b": 1, "a": {"x": None}})
        assert written.status_code == 201
        outcome = written.json()
        assert (outcome["outcome"], outcome["group"], outcome["version"]) == ("committed", "UA", 1)
        assert written.headers["versolog-token"] == outcome["token"] == "UA:1"
        assert written.headers["etag"] == '"1"'
        assert written.headers["location"] == f"/v1/transactions/{outcome['id']}?group=UA"
        read = await client.get(f"{FLIGHTS}/k1")
        assert read.status_code == 200
        assert read.json() == {
            "group": "UA",
            "table": "flights",
            "key": "k1",
            "version": 1,
            "committed_at": outcome["committed_at"],
            "row": {"a": {"x": None}, "b": 1},
        }
        assert read.headers["etag"] == '"1"'
        assert read.headers["versolog-version"] == "1"


@pytest.mark.parametrize(
    ("group", "table", "key"),
    [
        ("a/b", "t/u", "k/l"),
        ("%2F", "100%", "%252F"),
        ("ü ☃", "?&#", "a+b c"),
        ("rows", "rows", "rows"),
        ("\x00\x7f", "\n", "\t/\r"),
        ("g", "t", "a//b/"),
        ("g", "t", "../x/./y"),
    ],
)
async def test_any_name_and_key_comes_back_as_it_was_sent(tmp_path: Path, group: str, table: str, key: str) -> None:
    def quoted(name: str) -> str:
        return "".join(f"%{byte:02X}" for byte in name.encode())

    path = f"/v1/groups/{quoted(group)}/tables/{quoted(table)}/rows/{quoted(key)}"
    async with house(tmp_path) as (_, client):
        assert (await client.put(path, json={"x": 1})).status_code == 201
        row = (await client.get(path)).json()
        assert (row["group"], row["table"], row["key"]) == (group, table, key)


async def test_a_slash_in_a_key_may_stand_as_it_is(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "2013/06/01", {"x": 1})
        assert (await client.get(f"{FLIGHTS}/2013%2F06/01")).json()["key"] == "2013/06/01"


async def test_a_row_is_read_at_every_version_it_had(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for delay in (1, 2, 3):
            await put(client, "k1", {"delay": delay})
        await client.delete(f"{FLIGHTS}/k1")
        for version in (1, 2, 3):
            read = await client.get(f"{FLIGHTS}/k1", params={"at": str(version)})
            assert read.json()["row"] == {"delay": version}
            assert read.headers["versolog-version"] == str(version)
            assert "immutable" in read.headers["cache-control"]
        gone = await client.get(f"{FLIGHTS}/k1")
        assert gone.status_code == 404
        assert gone.json()["code"] == "unknown-row"
        assert (await client.get(f"{FLIGHTS}/k1", params={"at": "main~1"})).json()["row"] == {"delay": 3}


async def test_a_patch_changes_fields_and_an_unknown_row_is_made(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"a": 1, "b": {"c": 1, "d": 2}})
        assert (await client.patch(f"{FLIGHTS}/k1", json={"b": {"c": None}, "e": 5})).status_code == 201
        assert (await client.get(f"{FLIGHTS}/k1")).json()["row"] == {"a": 1, "b": {"d": 2}, "e": 5}


async def test_if_match_lets_through_only_the_version_that_last_changed_the_row(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"x": 1})
        await put(client, "other", {"x": 1})
        assert (await put(client, "k1", {"x": 2}, **{"if-match": '"1"'})).status_code == 201
        refused = await put(client, "k1", {"x": 3}, **{"if-match": '"1"'})
        assert refused.status_code == 412
        problem = refused.json()
        assert (problem["code"], problem["expected"], problem["found"]) == ("version-mismatch", 1, 3)
        assert problem["outcome"] == "refused"
        assert refused.headers["content-type"] == "application/problem+json"


async def test_if_none_match_star_writes_only_where_nothing_is(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        assert (await put(client, "k1", {"x": 1}, **{"if-none-match": "*"})).status_code == 201
        refused = await put(client, "k1", {"x": 2}, **{"if-none-match": "*"})
        assert (refused.status_code, refused.json()["found"]) == (412, 1)


async def test_an_unchanged_row_is_not_sent_again(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"x": 1})
        for tag in ('"1"', 'W/"1"', '"7", "1"', "*"):
            again = await client.get(f"{FLIGHTS}/k1", headers={"if-none-match": tag})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == '"1"'
        assert (await client.get(f"{FLIGHTS}/k1", headers={"if-none-match": '"2"'})).status_code == 200


@pytest.mark.parametrize("tag", ["1", '"x"', '""', '"1", "2"', 'W/"1"', "*"])
async def test_an_if_match_that_names_no_single_version_is_refused(tmp_path: Path, tag: str) -> None:
    async with house(tmp_path) as (_, client):
        refused = await put(client, "k1", {"x": 1}, **{"if-match": tag})
        assert (refused.status_code, refused.json()["field"]) == (400, "if-match")


async def test_a_range_is_listed_in_key_order_by_prefix_and_bounds(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for key in ("b", "a", "aa", "ab", "c", "☃"):
            await put(client, key, {"k": key})

        async def keys(**query: str) -> list[str]:
            return [row["key"] for row in (await client.get(FLIGHTS, params=query)).json()["rows"]]

        assert await keys() == ["a", "aa", "ab", "b", "c", "☃"]
        assert await keys(prefix="a") == ["a", "aa", "ab"]
        assert await keys(start="aa", end="c") == ["aa", "ab", "b"]
        assert await keys(prefix="a", start="aa", end="ab") == ["aa"]
        assert await keys(at="2") == ["a", "b"]
        assert await keys(where='k = "b" or k = "c"') == ["b", "c"]


async def test_a_row_in_a_list_is_the_row_by_itself(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, 'a"\\☃', {"x": [1, {"y": None}], "z": "é"})
        listed = (await client.get(FLIGHTS)).json()
        assert listed["rows"] == [(await client.get(f"{FLIGHTS}/a%22%5C%E2%98%83")).json()]
        assert listed["at"]["version"] == 1
        assert listed["cursor"] is None


async def test_pages_hold_together_while_others_write(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for number in range(10):
            await put(client, f"k{number}", {"n": number})
        keys: list[str] = []
        query = {"limit": "3"}
        while True:
            page = (await client.get(FLIGHTS, params=query)).json()
            keys += [row["key"] for row in page["rows"]]
            assert page["at"]["version"] == 10
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
            await put(client, "k0", {"n": -1})
            await put(client, f"k{len(keys)}-new", {"n": -1})
            await client.delete(f"{FLIGHTS}/k9")
        assert keys == [f"k{number}" for number in range(10)]


async def test_a_cursor_is_taken_only_as_it_came_and_for_its_own_query(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for key in ("a", "b", "c"):
            await put(client, key, {})
        cursor = (await client.get(FLIGHTS, params={"limit": "1"})).json()["cursor"]
        assert (await client.get(FLIGHTS, params={"limit": "2", "cursor": cursor})).status_code == 200
        for broken in ("", "x", cursor[:-1], cursor + "A", "A" + cursor[1:], "ü", cursor.swapcase()):
            refused = await client.get(FLIGHTS, params={"cursor": broken})
            assert (refused.status_code, refused.json()["code"]) == (400, "bad-cursor")
        for query in ({"prefix": "a"}, {"where": "x = 1"}, {"at": "3"}, {"branch": "main"}):
            refused = await client.get(FLIGHTS, params={**query, "cursor": cursor})
            assert (refused.status_code, refused.json()["code"]) == (422, "foreign-cursor")
        other = await client.get("/v1/groups/UA/tables/other/rows", params={"cursor": cursor})
        assert other.json()["code"] == "foreign-cursor"


async def test_a_page_of_large_rows_ends_early_and_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for number in range(20):
            await put(client, f"k{number:02}", {"x": "x" * 500_000})
        first = (await client.get(FLIGHTS, params={"limit": "20"})).json()
        assert 0 < len(first["rows"]) < 20
        rest = (await client.get(FLIGHTS, params={"limit": "20", "cursor": first["cursor"]})).json()
        assert len(first["rows"]) + len(rest["rows"]) == 20


async def test_a_search_for_few_among_many_goes_on_by_its_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("versolog.projections.http.ranges.SCANNED_MAX", 10)
    monkeypatch.setattr("versolog.projections.views.SCANNED_MAX", 4)
    async with house(tmp_path) as (_, client):
        for number in range(60):
            await put(client, f"k{number:02}", {"n": number})
        found: list[str] = []
        query, pages = {"where": "n = 3 or n = 59"}, 0
        while True:
            page = (await client.get(FLIGHTS, params=query)).json()
            found += [row["key"] for row in page["rows"]]
            pages += 1
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert found == ["k03", "k59"]
        assert pages > 2


async def test_an_unknown_table_is_empty_and_an_unknown_group_is_not_found(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {})
        assert (await client.get("/v1/groups/UA/tables/none/rows")).json()["rows"] == []
        unknown = await client.get("/v1/groups/XX/tables/flights/rows")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-group")
        ahead = await client.get(FLIGHTS, params={"at": "99"})
        assert (ahead.status_code, ahead.json()["newest"]) == (404, 1)
        assert (await client.get(FLIGHTS, params={"at": "nowhere"})).json()["code"] == "unknown-ref"
        assert (await client.get(FLIGHTS, params={"at": "a/b"})).status_code == 400


async def test_head_answers_as_get_does_without_the_body(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        await put(client, "k1", {"x": 1})
        client.event_hooks["response"].clear()
        head = await client.head(f"{FLIGHTS}/k1")
        assert (head.status_code, head.headers["etag"], head.content) == (200, '"1"', b"")
