"""The builder: what a service may ask, the same bytes for the same content, and what is refused before it is sent."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import codec, limits
from versolog.schemas.errors import Invalid, Malformed, TooLarge, VersologError
from versolog.streams.transaction import Transaction, new_id

TRANSACTION = codec.schema("Transaction")

FULL: dict[str, Any] = {
    "id": "t-1",
    "author": "ops",
    "message": "gate change",
    "type": "FlightDeparted",
    "occurred_at": "2013-06-01T12:00:00.000001Z",
    "group": "UA",
    "branch": "plan",
    "expect_head": 41,
    "expect": [{"table": "flights", "key": "k1", "version": 40}, {"table": "flights", "key": "k9", "version": 0}],
    "changes": [
        {"op": "put", "table": "flights", "key": "k1", "row": {"delay": 2, "status": "departed"}},
        {"op": "patch", "table": "flights", "key": "k2", "row": {"delay": 7, "gate": None}},
        {"op": "add", "table": "carriers", "key": "UA", "row": {"departures": 1, "fees": "12.50"}},
        {"op": "delete", "table": "flights", "key": "k3"},
    ],
}


def full() -> Transaction:
    tx = Transaction(
        "UA", id="t-1", author="ops", message="gate change", type="FlightDeparted", branch="plan",
        occurred_at=datetime(2013, 6, 1, 14, 0, 0, 1, tzinfo=timezone(timedelta(hours=2))),
    )  # fmt: skip
    return (
        tx.expect_head(41)
        .expect("flights", "k1", 40)
        .expect_absent("flights", "k9")
        .put("flights", "k1", {"status": "departed", "delay": 2})
        .patch("flights", "k2", {"gate": None, "delay": 7})
        .add("carriers", "UA", {"fees": "12.50", "departures": 1})
        .delete("flights", "k3")
    )


def test_the_record_says_what_was_asked() -> None:
    record = full().record()
    assert codec.decode(TRANSACTION, full().intent()) == record
    assert record["occurred_at"] == 1_370_088_000_000_001
    (part,) = record.pop("parts")
    assert record == {
        "id": "t-1", "author": "ops", "message": "gate change", "type": "FlightDeparted",
        "occurred_at": 1_370_088_000_000_001,
    }  # fmt: skip
    assert (part["group"], part["branch"], part["expect_head"], part["operation"]) == ("UA", "plan", 41, None)
    assert [(change["op"], change["row"]) for change in part["changes"]] == [
        ("put", '{"delay":2,"status":"departed"}'),
        ("patch", '{"delay":7,"gate":null}'),
        ("add", '{"departures":1,"fees":"12.50"}'),
        ("delete", None),
    ]
    assert part["expect"] == FULL["expect"]


def test_json_and_builder_make_the_same_bytes() -> None:
    assert full().to_json() == FULL
    assert Transaction.from_json(FULL).intent() == full().intent()


def test_a_retry_has_the_same_bytes_whatever_the_order_of_fields() -> None:
    one = Transaction("UA", id="t").put("t", "k", {"a": 1, "b": {"c": 1, "d": 2}})
    two = Transaction("UA", id="t").put("t", "k", {"b": {"d": 2, "c": 1}, "a": 1})
    assert one.intent() == two.intent()


def test_groups_are_in_byte_order_whatever_the_order_they_were_named_in() -> None:
    one, two = Transaction("b", id="t"), Transaction(None, id="t")
    for tx in (one, two):
        tx.group("é").put("t", "k", {})
        tx.group("a").delete("t", "k")
        tx.group("b").expect("t", "k", 3)
    assert one.intent() == two.intent()
    assert one.groups == ["a", "b", "é"]
    assert one.home == "a"
    assert Transaction.from_json(one.to_json()).intent() == one.intent()


def test_a_group_named_again_is_the_same_part() -> None:
    tx = Transaction("UA")
    assert tx.group("UA") is tx
    assert tx.group("AA", branch="plan") is tx.group("AA", branch="plan")
    with pytest.raises(Invalid, match="branch 'plan' already"):
        tx.group("AA")


def test_a_group_that_nothing_is_asked_of_is_left_out_beside_others() -> None:
    tx = Transaction("UA")
    tx.group("AA").put("t", "k", {})
    assert tx.groups == ["AA"]


def test_a_row_is_written_down_when_it_is_given() -> None:
    row = {"a": 1}
    tx = Transaction("UA", id="t").put("t", "k", row)
    row["a"] = 2
    assert tx.record()["parts"][0]["changes"][0]["row"] == '{"a":1}'


def test_any_mapping_is_a_row() -> None:
    assert Transaction("UA", id="t").put("t", "k", MappingProxyType({"a": 1})).to_json()["changes"][0]["row"] == {
        "a": 1
    }


def test_an_operation_keeps_its_arguments() -> None:
    tx = Transaction("UA", id="t").operation("tag", name="eve", at="41", move=False)
    assert tx.record()["parts"][0]["operation"] == {"kind": "tag", "arguments": '{"at":"41","move":false,"name":"eve"}'}
    assert Transaction.from_json(tx.to_json()).intent() == tx.intent()


def test_an_operation_may_have_an_argument_of_any_name() -> None:
    assert Transaction("UA").operation("x", kind=1, self=2).to_json()["operation"]["arguments"] == {
        "kind": 1,
        "self": 2,
    }


def test_ids_are_unlike_and_sort_by_time() -> None:
    drawn: list[str] = []
    for _ in range(5):
        drawn.append(new_id())
        start = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == start:
            pass
    assert drawn == sorted(drawn)
    assert len({new_id() for _ in range(10_000)}) == 10_000
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id_) for id_ in drawn
    )


def test_a_transaction_without_an_id_gets_one_and_keeps_it() -> None:
    tx = Transaction("UA").put("t", "k", {})
    assert len(tx.id) >= 26
    assert tx.to_json()["id"] == tx.id
    assert tx.intent() == tx.intent()
    assert Transaction.from_json({"group": "UA", "changes": tx.to_json()["changes"]}).id != tx.id


@pytest.mark.parametrize(
    ("ask", "error", "field"),
    [
        (lambda tx: tx.put("", "k", {}), Invalid, "table"),
        (lambda tx: tx.put("t", "", {}), Invalid, "key"),
        (lambda tx: tx.put("t", 7, {}), Invalid, "key"),
        (lambda tx: tx.put("t", "\ud800", {}), Invalid, "key"),
        (lambda tx: tx.put("t" * 129, "k", {}), TooLarge, "table"),
        (lambda tx: tx.put("t", "é" * 513, {}), TooLarge, "key"),
        (lambda tx: tx.put("$tables", "k", {}), Invalid, "table"),
        (lambda tx: tx.delete("$tables", "k"), Invalid, "table"),
        (lambda tx: tx.expect("$tables", "k", 1), Invalid, "table"),
        (lambda tx: tx.put("t", "k", [1]), Invalid, "row"),
        (lambda tx: tx.put("t", "k", None), Invalid, "row"),
        (lambda tx: tx.put("t", "k", {"a": "x" * limits.ROW_BYTES_MAX}), TooLarge, "row"),
        (lambda tx: tx.patch("t", "k", "x"), Invalid, "row"),
        (lambda tx: tx.add("t", "k", {}), Invalid, "row"),
        (lambda tx: tx.add("t", "k", {"a": 1.5}), Invalid, "row"),
        (lambda tx: tx.expect("t", "k", -1), Invalid, "version"),
        (lambda tx: tx.expect("t", "k", True), Invalid, "version"),
        (lambda tx: tx.expect("t", "k", 2**63), Invalid, "version"),
        (lambda tx: tx.expect("t", "k", 1).expect("t", "k", 2), Invalid, "version"),
        (lambda tx: tx.expect_head("41"), Invalid, "expect_head"),
        (lambda tx: tx.expect_head(1).expect_head(2), Invalid, "expect_head"),
        (lambda tx: tx.operation(""), Invalid, "kind"),
        (lambda tx: tx.operation("x").operation("x"), Invalid, "operation"),
        (lambda tx: tx.put("t", "k", {}).operation("x"), Invalid, "operation"),
        (lambda tx: tx.operation("x").put("t", "k", {}), Invalid, "changes"),
        (lambda tx: tx.group(""), Invalid, "group"),
        (lambda tx: tx.group("g" * 257), TooLarge, "group"),
        (lambda tx: tx.group("g", branch=""), Invalid, "branch"),
    ],
)
def test_a_mistake_is_refused_where_it_is_made(
    ask: Callable[[Any], object], error: type[VersologError], field: str
) -> None:
    with pytest.raises(error) as refused:
        ask(Transaction("UA"))
    assert refused.value.facts["field"] == field


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"id": ""}, Invalid), ({"id": "i" * 129}, TooLarge), ({"id": 7}, Invalid), ({"author": "a" * 257}, TooLarge),
        ({"author": "é" * 129}, TooLarge), ({"message": "m" * 4_097}, TooLarge), ({"type": "t" * 257}, TooLarge),
        ({"author": None}, Invalid), ({"branch": ""}, Invalid), ({"occurred_at": datetime(2013, 1, 1)}, Invalid),  # noqa: DTZ001
    ],
)  # fmt: skip
def test_what_stands_around_the_changes_has_limits(arguments: dict[str, Any], error: type[VersologError]) -> None:
    with pytest.raises(error):
        Transaction("UA", **arguments)


def test_what_is_just_within_the_limits_is_taken() -> None:
    tx = Transaction("g" * 256, id="i" * 128, author="é" * 128, message="m" * 4_096, type="t" * 256)
    assert tx.put("t" * 128, "é" * 512, {"a": "x" * (limits.ROW_BYTES_MAX - len('{"a":""}'))}).intent()


@pytest.mark.parametrize("group", [None, "UA"])
def test_a_transaction_asks_for_something(group: str | None) -> None:
    with pytest.raises(Invalid):
        Transaction(group).record()
    tx = Transaction(group)
    tx.group("AA")
    with pytest.raises(Invalid, match="nothing is asked of group 'AA'"):
        tx.intent()


def test_without_a_group_of_its_own_a_transaction_takes_no_changes() -> None:
    with pytest.raises(Invalid, match="without a group"):
        Transaction(None).put("t", "k", {})


def test_only_preconditions_are_something() -> None:
    assert Transaction("UA").expect("t", "k", 3).intent()
    assert Transaction("UA").expect_head(3).intent()


def test_there_is_a_limit_to_changes_over_all_parts() -> None:
    tx = Transaction("UA")
    for number in range(limits.CHANGES_MAX):
        tx.delete("t", str(number))
    with pytest.raises(TooLarge, match="10,000 changes"):
        tx.delete("t", "one more")
    tx.group("AA").delete("t", "one more")
    with pytest.raises(TooLarge, match="10,000 changes"):
        tx.record()


def test_there_is_a_limit_to_groups() -> None:
    tx = Transaction("UA").put("t", "k", {})
    for number in range(limits.GROUPS_MAX - 1):
        tx.group(str(number)).put("t", "k", {})
    with pytest.raises(TooLarge, match="500 groups"):
        tx.group("one more")
    assert tx.group("0") is tx.group("0")
    assert len(tx.groups) == limits.GROUPS_MAX


def test_there_is_a_limit_to_the_whole() -> None:
    tx = Transaction("UA")
    for number in range(3):
        tx.put("t", str(number), {"a": "x" * 400_000})
    with pytest.raises(TooLarge, match="the limit is 1,000,000"):
        tx.intent()


def _with(path: str, value: Any) -> dict[str, Any]:
    """FULL with the place of the JSON pointer `path` changed."""
    whole: Any = copy.deepcopy(FULL)
    *steps, last = path.strip("/").split("/")
    place = whole
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[int(last) if isinstance(place, list) else last] = value
    return whole  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("/colour", "red", Invalid), ("/changes/1/colour", "red", Invalid), ("/expect/0/colour", "red", Invalid),
        ("/id", 7, Malformed), ("/id", "", Invalid), ("/author", {}, Malformed), ("/occurred_at", 7, Malformed),
        ("/occurred_at", "yesterday", Invalid), ("/occurred_at", "2013-06-01T12:00:00", Invalid),
        ("/group", None, Invalid), ("/group", 7, Malformed), ("/group", "", Invalid), ("/branch", "", Invalid),
        ("/branch", [], Malformed), ("/expect_head", "41", Malformed), ("/expect_head", True, Malformed),
        ("/expect_head", -1, Invalid), ("/expect", {}, Malformed), ("/expect/0", 7, Malformed),
        ("/expect/0/version", 1.5, Malformed), ("/expect/0/version", None, Invalid), ("/expect/1/key", "", Invalid),
        ("/changes", 7, Malformed), ("/changes/0", None, Malformed), ("/changes/0/op", "upsert", Invalid),
        ("/changes/0/op", None, Invalid), ("/changes/0/table", "$tables", Invalid), ("/changes/0/row", [], Malformed),
        ("/changes/0/row", None, Invalid), ("/changes/2/row", {"a": 1.5}, Invalid), ("/changes/3/row", {}, Invalid),
        ("/changes/0/key", "k" * 2_000, TooLarge), ("/changes/0/row", {"a": "x" * 600_000}, TooLarge),
        ("/parts", [], Invalid), ("/operation", {"kind": "tag"}, Invalid), ("/operation", "tag", Malformed),
        ("/operation", {"kind": 7}, Malformed), ("/operation", {"kind": "tag", "name": "eve"}, Invalid),
    ],
)  # fmt: skip
def test_json_is_taken_strictly_and_the_place_is_named(path: str, value: Any, error: type[VersologError]) -> None:
    with pytest.raises(error) as refused:
        Transaction.from_json(_with(path, value))
    assert type(refused.value) is error
    assert str(refused.value.facts["field"]).startswith(("/group", "/branch") if path == "/parts" else path)


@pytest.mark.parametrize("obj", [None, [], "text", 7, {}, {"group": "UA"}, {"group": "UA", "changes": []}])
def test_json_that_asks_for_nothing_is_refused(obj: Any) -> None:
    with pytest.raises((Malformed, Invalid)):
        Transaction.from_json(obj)


@pytest.mark.parametrize(
    ("parts", "error", "field"),
    [
        ([], Invalid, "/parts"),
        ("AA", Malformed, "/parts"),
        ([7], Malformed, "/parts/0"),
        ([{"group": "AA", "expect_head": 1}, {"group": "AA", "expect_head": 1}], Invalid, "/parts/1/group"),
        ([{"group": "AA", "expect_head": 1}, {"expect_head": 1}], Invalid, "/parts/1/group"),
        ([{"group": "AA", "changes": [{"op": "put", "table": "t", "key": ""}]}], Invalid, "/parts/0/changes/0/row"),
        ([{"group": "AA", "changes": [{"op": "delete", "table": "t", "key": ""}]}], Invalid, "/parts/0/changes/0/key"),
        ([{"group": "AA", "parts": []}], Invalid, "/parts/0/parts"),
        ([{"group": "AA", "branch": ""}], Invalid, "/parts/0/branch"),
    ],
)  # fmt: skip
def test_parts_are_taken_strictly(parts: Any, error: type[VersologError], field: str) -> None:
    with pytest.raises(error) as refused:
        Transaction.from_json({"id": "t", "parts": parts})
    assert refused.value.facts["field"] == field


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda name: name[0] != "$")
ROWS = st.dictionaries(NAMES, st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.none(), max_size=3)
CHANGES = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["put", "patch"]), "table": NAMES, "key": NAMES, "row": ROWS}),
    st.fixed_dictionaries({"op": st.just("delete"), "table": NAMES, "key": NAMES}),
)
PARTS = st.fixed_dictionaries({"group": NAMES, "changes": st.lists(CHANGES, min_size=1, max_size=4)})


@given(st.lists(PARTS, min_size=2, max_size=4, unique_by=lambda part: part["group"]))
def test_any_transaction_survives_json_and_avro(parts: list[dict[str, Any]]) -> None:
    tx = Transaction.from_json({"id": "t", "parts": parts})
    assert Transaction.from_json(tx.to_json()).intent() == tx.intent()
    assert codec.decode(TRANSACTION, tx.intent()) == tx.record()
    assert tx.to_json()["parts"] == sorted(parts, key=lambda part: part["group"].encode())


def test_the_time_of_the_event_is_kept_in_utc() -> None:
    tx = Transaction("UA", occurred_at=datetime(2013, 6, 1, 12, tzinfo=UTC)).put("t", "k", {})
    assert tx.to_json()["occurred_at"] == "2013-06-01T12:00:00.000000Z"
