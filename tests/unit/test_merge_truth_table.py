"""What merging makes of every combination of base, ours and theirs: the tables here are the rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versolog.schemas.conflicts import ABSENT, Conflict, Path
from versolog.schemas.documents import from_text, to_text
from versolog.streams.merge import UNKNOWN, Merge, Resolution, Rules, Settling, Spot, same

TABLE = """
            theirs:  -        A        B        C
base -
     ours -          -        A        B        C
     ours A          A        A        added    added
     ours B          B        added    B        added
     ours C          C        added    added    C
base A
     ours -          -        -        deleted  deleted
     ours A          -        A        B        C
     ours B          deleted  B        B        changed
     ours C          deleted  C        changed  C
base B
     ours -          -        deleted  -        deleted
     ours A          deleted  A        A        changed
     ours B          -        A        B        C
     ours C          deleted  changed  C        C
base C
     ours -          -        deleted  deleted  -
     ours A          deleted  A        changed  A
     ours B          deleted  changed  B        B
     ours C          -        A        B        C
"""
"""- is absent. A conflict is called by the last word of its code: both-added, both-changed, changed-deleted."""

CODES = {"added": "both-added", "deleted": "changed-deleted", "changed": "both-changed"}
Case = tuple[str, str, str, str]


def cases() -> Iterator[Case]:
    base, columns = "", [""]
    for words in map(str.split, TABLE.strip().splitlines()):
        match words:
            case ["theirs:", *columns]:
                pass
            case ["base", base]:
                pass
            case ["ours", ours, *cells]:
                yield from ((base, ours, theirs, cell) for theirs, cell in zip(columns, cells, strict=True))


CASES = list(cases())
WAYS: dict[str, tuple[Path, Any]] = {
    "row": ((), None),
    "field": (("v",), {"beside": 1}),
    "nested field": (("m", "n", "v"), {"m": {"n": {"beside": 1}, "beside": [1]}}),
}
"""Where the value stands, and what stands around it, which nobody changes."""


def document(way: str, value: str) -> Any:
    """The row with the value of that letter. As a row it's a whole one, that differs from others in a field."""
    path, around = WAYS[way]
    if way == "row":
        return ABSENT if value == "-" else {"v": value}
    row = copy.deepcopy(around)
    inner = row
    for name in path[:-1]:
        inner = inner[name]
    if value != "-":
        inner[path[-1]] = value
    return row


def test_the_table_has_every_combination_once() -> None:
    values = "-ABC"
    assert [case[:3] for case in CASES] == [(x, y, z) for x in values for y in values for z in values]


def test_the_table_is_the_same_from_both_sides() -> None:
    cells = {case[:3]: case[3] for case in CASES}
    assert all(cells[base, theirs, ours] == cell for (base, ours, theirs), cell in cells.items())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("base", "ours", "theirs", "cell"), CASES)
def test_every_combination(way: str, base: str, ours: str, theirs: str, cell: str) -> None:
    sides = [document(way, value) for value in (base, ours, theirs)]
    merge = Merge("t")
    merged = merge.row("k", *sides)
    if cell not in CODES:
        assert not merge.conflicts
        assert same(merged, document(way, cell))
        return
    (conflict,) = merge.conflicts
    path = WAYS[way][0]
    if way == "row" and cell == "changed":
        path, sides = ("v",), [base, ours, theirs]  # rows that both sides changed are taken apart
    elif way != "row":
        sides = [ABSENT if value == "-" else value for value in (base, ours, theirs)]
    assert conflict == Conflict("t", "k", path, CODES[cell], *sides)


@pytest.mark.parametrize("policy", ["ours", "theirs"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("base", "ours", "theirs", "cell"), CASES)
def test_a_policy_ends_conflicts_and_changes_nothing_else(
    way: str, policy: str, base: str, ours: str, theirs: str, cell: str
) -> None:
    merge = Merge("t", settling=Settling(policy))
    merged = merge.row("k", *(document(way, value) for value in (base, ours, theirs)))
    expected = cell if cell not in CODES else ours if policy == "ours" else theirs
    assert not merge.conflicts
    assert same(merged, document(way, expected))


@pytest.mark.parametrize("take", ["ours", "theirs", "value", "delete"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("base", "ours", "theirs", "cell"), [case for case in CASES if case[3] in CODES])
def test_a_resolution_ends_the_conflict_it_was_made_for(
    way: str, take: str, base: str, ours: str, theirs: str, cell: str
) -> None:
    sides = [document(way, value) for value in (base, ours, theirs)]
    told = Merge("t")
    told.row("k", *sides)
    (conflict,) = told.conflicts
    value = {"v": "D"} if conflict.path == () else "D"
    resolution = Resolution(conflict.base, conflict.ours, conflict.theirs, take, value)
    settling = Settling(resolutions={Spot("t", "k", conflict.path): [resolution]})
    merge = Merge("t", settling=settling)
    merged = merge.row("k", *sides)
    letter = {"ours": ours, "theirs": theirs, "value": "D", "delete": "-"}[take]
    expected = document(way, letter)
    if way == "row" and cell == "changed" and take == "delete":
        expected = {}  # the field went, and the row stays
    assert not merge.conflicts
    assert not list(settling.unused())
    assert same(merged, expected)


# Several conflicts, and resolutions that don't fit


def test_a_row_can_have_several_conflicts_and_each_its_own_end() -> None:
    base = {"gate": "A1", "delay": 0, "crew": {"captain": "x", "purser": "y"}, "tail": "N1"}
    ours = {"gate": "B2", "delay": 0, "crew": {"captain": "o", "purser": "y"}, "tail": "N2"}
    theirs = {"gate": "C3", "delay": 7, "crew": {"captain": "t"}}
    merge = Merge("flights")
    merge.row("k1", base, ours, theirs)
    assert [(conflict.path, conflict.code) for conflict in merge.conflicts] == [
        (("crew", "captain"), "both-changed"), (("gate",), "both-changed"), (("tail",), "changed-deleted"),
    ]  # fmt: skip
    settling = Settling("theirs", {
        Spot("flights", "k1", ("gate",)): [Resolution("A1", "B2", "C3", "value", "D4")],
        Spot("flights", "k1", ("crew", "captain")): [Resolution("x", "o", "t", "ours")],
    })  # fmt: skip
    merge = Merge("flights", settling=settling)
    assert merge.row("k1", base, ours, theirs) == {"gate": "D4", "delay": 7, "crew": {"captain": "o"}}
    assert not merge.conflicts, "the policy took the third"


@pytest.mark.parametrize(
    "made_on",
    [("A", "B", "X"), ("A", "X", "C"), ("X", "B", "C"), (ABSENT, "B", "C"), ("A", ABSENT, "C"), ("A", None, "C")],
)
@pytest.mark.parametrize("policy", ["fail", "ours", "theirs"])
def test_a_stale_resolution_conflicts_again_whatever_the_policy(policy: str, made_on: tuple[Any, Any, Any]) -> None:
    spot = Spot("t", "k", ("v",))
    settling = Settling(policy, {spot: [Resolution(*made_on, "theirs")]})
    merge = Merge("t", settling=settling)
    merge.row("k", {"v": "A"}, {"v": "B"}, {"v": "C"})
    assert merge.conflicts == [Conflict("t", "k", ("v",), "both-changed", "A", "B", "C", stale=True)]
    assert list(settling.unused()) == [spot]


def test_of_several_resolutions_of_one_spot_the_one_that_fits_is_taken() -> None:
    spot = Spot("t", "k", ("v",))
    several = [Resolution("A", "B", "D", "ours"), Resolution("A", "B", "C", "theirs")]
    settling = Settling(resolutions={spot: several})
    merge = Merge("t", settling=settling)
    assert merge.row("k", {"v": "A"}, {"v": "B"}, {"v": "C"}) == {"v": "C"}
    assert list(settling.unused()) == [spot], "the other one met nothing"


def test_a_resolution_says_nothing_about_what_is_in_no_conflict() -> None:
    settling = Settling(resolutions={Spot("t", "k", ("v",)): [Resolution("A", "A", "B", "value", "D")]})
    merge = Merge("t", settling=settling)
    assert merge.row("k", {"v": "A"}, {"v": "A"}, {"v": "B"}) == {"v": "B"}
    assert list(settling.unused()) == [Spot("t", "k", ("v",))]


# Objects, lists and kinds of values

DOCUMENTS = """
fields of both sides are joined  | {}                  | {"a":1}         | {"b":2}               | {"a":1,"b":2}
the same addition is no conflict | {}                  | {"a":1}         | {"a":1,"b":2}         | {"a":1,"b":2}
maps are joined                  | {"m":{}}            | {"m":{"a":1}}   | {"m":{"b":2}}         | {"m":{"a":1,"b":2}}
maps both added are joined       | {}                  | {"m":{"a":1}}   | {"m":{"b":2}}         | {"m":{"a":1,"b":2}}
so are maps in place of a value  | {"m":0}             | {"m":{"a":1}}   | {"m":{"b":2}}         | {"m":{"a":1,"b":2}}
a map both emptied stays a map   | {"m":{"a":1,"b":2}} | {"m":{"a":1}}   | {"m":{"b":2}}         | {"m":{}}
a map against a value            | {"m":{"a":1}}       | {"m":{"a":2}}   | {"m":3}               | both-changed m
a map deleted, changed within    | {"m":{"a":1}}       | {}              | {"m":{"a":1,"b":2}}   | changed-deleted m
a map deleted and emptied        | {"m":{"a":1}}       | {}              | {"m":{}}              | changed-deleted m
a map deleted by both            | {"m":{"a":1}}       | {}              | {}                    | {}
lists are whole                  | {"l":[1,2]}         | {"l":[1,2,3]}   | {"l":[0,1,2]}         | both-changed l
a list's objects too             | {"l":[{"a":1}]}     | {"l":[{"a":2}]} | {"l":[{"a":1,"b":1}]} | both-changed l
null is a value                  | {"a":1}             | {"a":null}      | {"a":1}               | {"a":null}
null is not absent               | {"a":1}             | {"a":null}      | {}                    | changed-deleted a
null added, and something else   | {}                  | {"a":null}      | {"a":0}               | both-added a
the number 1 is not true         | {"a":0}             | {"a":1}         | {"a":true}            | both-changed a
nor is 1 the same as 1.0         | {"a":0}             | {"a":1}         | {"a":1.0}             | both-changed a
1 made 1.0 is a change           | {"a":1}             | {"a":1.0}       | {"a":1}               | {"a":1.0}
0 made false is a change         | {"a":0}             | {"a":0}         | {"a":false}           | {"a":false}
0.0 is not -0.0                  | {"a":1}             | {"a":0.0}       | {"a":-0.0}            | both-changed a
also in lists                    | {"a":[0]}           | {"a":[1]}       | {"a":[true]}          | both-changed a
and in objects in lists          | {"a":[]}            | {"a":[{"x":1}]} | {"a":[{"x":1.0}]}     | both-changed a
"1" is not 1                     | {"a":0}             | {"a":"1"}       | {"a":1}               | both-changed a
field names may be anything      | {"":0,"a.b":0}      | {"":1,"a.b":0}  | {"":0,"a.b":1}        | {"":1,"a.b":1}
rows both added are one conflict | -                   | {"a":1}         | {"a":1,"b":2}         | both-added row
also where one is empty          | -                   | {}              | {"b":2}               | both-added row
a row emptied is not deleted     | {"a":1}             | {}              | -                     | changed-deleted row
"""
"""What | base | ours | theirs | merged, or the code and the path of the conflict. - is absent."""


def read_documents() -> Iterator[Any]:
    for line in DOCUMENTS.strip().splitlines():
        what, *sides, merged = (cell.strip() for cell in line.split("|"))
        rows = [ABSENT if side == "-" else from_text(side) for side in sides]
        yield pytest.param(*rows, merged, id=what)


@pytest.mark.parametrize(("base", "ours", "theirs", "merged"), list(read_documents()))
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
def test_documents(base: Any, ours: Any, theirs: Any, merged: str, swapped: bool) -> None:
    if swapped:
        ours, theirs = theirs, ours
    merge = Merge("t")
    found = merge.row("k", base, ours, theirs)
    if merged.startswith("{"):
        assert not merge.conflicts
        assert same(found, from_text(merged))
    else:
        (conflict,) = merge.conflicts
        assert f"{conflict.code} {'/'.join(conflict.path) or 'row'}" == merged


# Functions

_ = ABSENT
FUNCTIONS: list[tuple[str, Any, Any, Any, Any]] = [
    # function  base      ours      theirs    merged, or the conflict's code
    ("sum",     5,        7,        6,        8),
    ("sum",     5,        6,        6,        7),  # both added one
    ("sum",     5,        5,        6,        6),
    ("sum",     5,        0,        9,        4),
    ("sum",     _,        7,        6,        13),
    ("sum",     _,        7,        7,        14),
    ("sum",     5,        _,        6,        "changed-deleted"),
    ("sum",     5,        _,        _,        _),
    ("sum",     5,        6,        True,     "type"),
    ("sum",     5,        6,        6.5,      "type"),
    ("sum",     5.0,      6,        7,        "type"),
    ("sum",     None,     6,        7,        "type"),
    ("sum",     5,        "x",      "x",      "x"),  # not counters, and the same change
    ("sum",     0,        2**63 - 1, 1,       "type"),  # would not fit 64 bits
    ("sum",     "1.50",   "2.50",   "1.75",   "2.75"),
    ("sum",     "1.5",    "2",      3,        "3.5"),
    ("sum",     "0." + "0" * 59 + "1", "0." + "0" * 59 + "2", "1", "1." + "0" * 59 + "1"),  # exact
    ("sum",     "9" * 60, "9" * 60 + ".1", "9" * 60 + ".2", "9" * 60 + ".3"),
    ("sum",     "0",      "9" * 60, "1",      "type"),  # more digits than a decimal may have
    ("sum",     "1",      "1e3",    "2",      "type"),
    ("sum",     "1",      "1_0",    "2",      "type"),
    ("sum",     "1",      "٣",      "2",      "type"),
    ("sum",     {},       {"a": 1}, {"a": 2}, "type"),
    ("max",     5,        7,        6,        7),
    ("max",     5,        3,        2,        3),
    ("max",     _,        7,        6,        7),
    ("max",     5,        _,        6,        "changed-deleted"),
    ("max",     5,        7,        6.5,      7),
    ("max",     5,        7,        7.0,      7.0),  # either way the same one
    ("max",     5,        2**53,    2.0**53,  2.0**53),
    ("max",     5,        2**53 + 1, 2.0**53, 2**53 + 1),
    ("max",     5,        0.0,      -0.0,     0.0),
    ("max",     5,        7,        True,     "type"),
    ("max",     5,        7,        "8",      "8"),  # a decimal
    ("max",     "5",      "10",     "9.5",    "10"),
    ("max",     "5",      "1.0",    "1.00",   "1.00"),
    ("max",     "",       "b",      "a",      "b"),
    ("max",     "",       "é",      "z",      "é"),
    ("max",     "",       "2013-06-01", "2013-12-01", "2013-12-01"),
    ("max",     5,        6.5,      "7",      "type"),
    ("max",     5,        None,     7,        "type"),
    ("max",     [],       [1],      [2],      "type"),
    ("min",     5,        7,        6,        6),
    ("min",     5,        7,        7.0,      7),
    ("min",     "5",      "10",     "9.5",    "9.5"),
    ("min",     5,        _,        6,        "changed-deleted"),
    ("min",     5,        _,        5,        _),
    ("union",   ["a"],    ["a", "b"], ["a", "c"], ["a", "b", "c"]),
    ("union",   ["a"],    ["a", "c"], ["a", "b"], ["a", "b", "c"]),
    ("union",   ["b", "a"], ["b", "a", "z"], ["b", "a", "y"], ["b", "a", "y", "z"]),  # the base's order
    ("union",   ["a", "b"], ["a"],  ["b", "c"], ["c"]),  # both deletions hold
    ("union",   ["a", "b"], ["a", "d"], ["a", "b", "c"], ["a", "c", "d"]),
    ("union",   _,        ["b"],    ["a"],    ["a", "b"]),
    ("union",   ["a"],    _,        ["b"],    "changed-deleted"),
    ("union",   [],       [1],      [1.0, True, "1"], ["1", 1, 1.0, True]),
    ("union",   [],       [{"x": 1, "y": 2}], [{"y": 2, "x": 1}, []], [[], {"x": 1, "y": 2}]),
    ("union",   ["a"],    ["a", "b"], "b",    "type"),
    ("union",   "a",      ["a", "b"], ["b"],  "type"),
    ("last",    1,        2,        3,        3),  # theirs was changed later
    ("last",    1,        2,        _,        _),
    ("last",    1,        _,        3,        3),
    ("ours",    1,        2,        3,        2),
    ("ours",    1,        _,        3,        _),
    ("theirs",  1,        2,        3,        3),
    ("theirs",  1,        2,        _,        _),
]  # fmt: skip
FIXED = ("ours", "theirs")


def row_with(value: Any) -> Any:
    return {"beside": 1} | ({} if value is ABSENT else {"m": {"v": value}})


def inner(row: Any) -> Any:
    return row.get("m", {}).get("v", ABSENT) if row is not ABSENT else ABSENT


@pytest.mark.parametrize(("function", "base", "ours", "theirs", "merged"), FUNCTIONS)
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
def test_functions(function: str, base: Any, ours: Any, theirs: Any, merged: Any, swapped: bool) -> None:
    if swapped and function in FIXED:
        return  # which side is whose is all that these ask
    rows = [{"f": value} if value is not ABSENT else {} for value in (base, ours, theirs)]
    if swapped:
        rows = [rows[0], rows[2], rows[1]]
    for rules in (Rules(fields={("f",): function}), Rules(others=function)):
        if rules.others and isinstance(ours, dict):
            continue  # a map has no function of its own there: its fields have
        merge = Merge("t", rules)
        found = merge.row("k", *rows, newer=lambda: swapped)
        if isinstance(merged, str) and merged in ("type", "changed-deleted"):
            assert [(conflict.path, conflict.code) for conflict in merge.conflicts] == [(("f",), merged)]
        else:
            assert not merge.conflicts
            assert same(found.get("f", ABSENT), merged)


def test_rows_that_both_added_are_merged_by_field_where_fields_have_functions() -> None:
    rules = Rules(fields={("n",): "sum"})
    merge = Merge("t", rules)
    assert merge.row("k", ABSENT, {"n": 1}, {"n": 1}) == {"n": 2}
    assert merge.row("k", ABSENT, {"n": 1, "a": 1}, {"n": 4, "b": 1}) == {"n": 5, "a": 1, "b": 1}
    merge.row("k", ABSENT, {"n": 1, "a": 1}, {"n": 4, "a": 2})
    assert merge.conflicts == [Conflict("t", "k", ("a",), "both-added", ABSENT, 1, 2)]


def test_a_field_s_own_function_comes_before_that_of_all_others() -> None:
    rules = Rules(fields={("n",): "sum", ("m", "tags"): "union"}, others="last")
    base = {"n": 1, "x": 1, "m": {"tags": [], "y": 1}}
    ours = {"n": 2, "x": 2, "m": {"tags": ["o"], "y": 2}}
    theirs = {"n": 3, "x": 3, "m": {"tags": ["t"], "y": 3}}
    merged = Merge("t", rules).row("k", base, ours, theirs, newer=lambda: False)
    assert merged == {"n": 4, "x": 3, "m": {"tags": ["o", "t"], "y": 3}}


@pytest.mark.parametrize("function", ["last", "ours", "theirs"])
def test_a_function_of_rows_takes_one_side_s_row_whole(function: str) -> None:
    merge = Merge("t", Rules(row=function, fields={("a",): "sum"}))
    ours, theirs = {"a": 2, "b": 1}, {"a": 1, "b": 2}
    taken = ours if function == "ours" else theirs
    assert merge.row("k", {"a": 1, "b": 1}, ours, theirs, newer=lambda: False) == taken
    assert merge.row("k", ABSENT, ours, theirs, newer=lambda: False) == taken
    deleted = merge.row("k", {"a": 1, "b": 1}, ours, ABSENT, newer=lambda: False)
    assert deleted == (ours if function == "ours" else ABSENT)


def test_rows_do_not_say_which_is_newer_unless_it_matters() -> None:
    def newer() -> bool:
        raise AssertionError("nobody asked for the last")

    merge = Merge("t", Rules(fields={("n",): "sum", ("x",): "last"}))
    assert merge.row("k", {"n": 1, "x": 1}, {"n": 2, "x": 1}, {"n": 3, "x": 2}, newer=newer) == {"n": 4, "x": 2}


def test_what_a_function_can_t_take_can_be_resolved() -> None:
    resolution = Resolution(1, 2, "x", "value", 3)
    settling = Settling(resolutions={Spot("t", "k", ("n",)): [resolution]})
    merge = Merge("t", Rules(fields={("n",): "sum"}), settling)
    assert merge.row("k", {"n": 1}, {"n": 2}, {"n": "x"}) == {"n": 3}
    assert not merge.conflicts


# Schemas of tables, which are fields of the table's settings


def record(*fields: str, **types: str) -> dict[str, Any]:
    listed = [{"name": name, "type": "long", "default": 0} for name in fields]
    listed += [{"name": name, "type": kind} for name, kind in types.items()]
    return {"type": "record", "name": "r", "fields": listed}


A, AB, ABC, AC = record("a"), record("a", "b"), record("a", "b", "c"), record("a", "c")
INT, LONG, TEXT = record(a="int"), record(a="long"), record(a="string")
X, Y = AB | {"doc": "x"}, AB | {"doc": "y"}
SCHEMAS: list[tuple[str, Any, Any, Any, Any]] = [
    # what                               base  ours  theirs  merged, or the conflict's code
    ("one side changed it",              A,    A,    AB,     AB),
    ("both gave the same",               _,    A,    A,      A),
    ("the wider of two",                 A,    AB,   ABC,    ABC),
    ("the wider of two that both gave",  _,    INT,  LONG,   LONG),
    ("each takes the other's rows",      A,    X,    Y,      X),
    ("neither does",                     A,    AB,   AC,     "schema"),
    ("another type",                     _,    LONG, TEXT,   "schema"),
    ("taken away by one side",           A,    _,    AB,     "changed-deleted"),
]  # fmt: skip
SETTINGS = Rules(fields={("schema",): "schema"})


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"), [pytest.param(*case[1:], id=case[0]) for case in SCHEMAS]
)
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
def test_schemas(base: Any, ours: Any, theirs: Any, merged: Any, swapped: bool) -> None:
    rows = [{} if schema is ABSENT else {"schema": schema} for schema in (base, ours, theirs)]
    if swapped:
        rows = [rows[0], rows[2], rows[1]]
    merge = Merge("$tables", SETTINGS)
    found = merge.row("t", *rows)
    if isinstance(merged, str):
        assert [(conflict.path, conflict.code) for conflict in merge.conflicts] == [(("schema",), merged)]
    else:
        assert not merge.conflicts
        assert same(found, {"schema": merged})


@pytest.mark.parametrize(
    ("take", "value", "settled"),
    [
        ("ours", None, True),  # the rows that come from theirs are checked one by one
        ("theirs", None, False),  # the rows that stand would not fit
        ("value", record("a", "b", "c"), True),
        ("value", record("a", "c"), False),
        ("value", "no schema", False),
        ("delete", None, True),
    ],
)
def test_a_conflict_of_schemas_ends_in_one_that_takes_the_rows_that_stand(take: str, value: Any, settled: bool) -> None:
    base, ours, theirs = record("a"), record("a", "b"), record("a", "c")
    resolution = Resolution(base, ours, theirs, take, value)
    settling = Settling(resolutions={Spot("$tables", "t", ("schema",)): [resolution]})
    merge = Merge("$tables", SETTINGS, settling)
    merge.row("t", {"schema": base}, {"schema": ours}, {"schema": theirs})
    assert bool(merge.conflicts) is not settled


def test_a_policy_ends_a_conflict_of_schemas_only_where_the_rows_that_stand_fit() -> None:
    rows = [{"schema": schema} for schema in (record("a"), record("a", "b"), record("a", "c"))]
    for policy, conflicts in (("ours", 0), ("theirs", 1)):
        merge = Merge("$tables", SETTINGS, Settling(policy))
        assert merge.row("t", *rows) == rows[1]
        assert len(merge.conflicts) == conflicts


# Bases that crossed


def test_what_bases_do_not_agree_on_is_unknown_and_only_that() -> None:
    older = {"a": 1, "b": 1, "c": {"d": 1, "e": 1}}
    one, other = {"a": 2, "b": 1, "c": {"d": 2, "e": 1}}, {"a": 3, "b": 2, "c": {"d": 1}}
    base = Merge("t", settling=None).row("k", older, one, other)
    assert base["b"] == 2
    assert base["c"] == {"d": 2}
    assert base["a"] is UNKNOWN
    assert Merge("t", settling=None).row("k", older, one, ABSENT) is UNKNOWN


def test_against_an_unknown_base_both_sides_count_as_changed() -> None:
    merge = Merge("t")
    assert merge.row("k", {"a": UNKNOWN, "b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert not merge.conflicts
    merge.row("k", {"a": UNKNOWN, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 2})
    merge.row("l", UNKNOWN, {"a": 1, "b": 1}, {"a": 2, "b": 1})
    merge.row("m", {"a": UNKNOWN, "b": 1}, {"a": 1, "b": 1}, ABSENT)
    assert [conflict.to_json() for conflict in merge.conflicts] == [
        {"table": "t", "key": "k", "path": ["a"], "code": "both-changed", "ours": 1, "theirs": 2},
        {"table": "t", "key": "l", "path": ["a"], "code": "both-changed", "ours": 1, "theirs": 2},
        {"table": "t", "key": "m", "path": [], "code": "changed-deleted", "base": {"b": 1}, "ours": {"a": 1, "b": 1}},
    ]
    told = merge.conflicts[-1]
    assert Resolution({"b": 1}, {"a": 1, "b": 1}, ABSENT, "ours").fits(told), "what is told is what is sent back"


def test_bases_are_merged_by_the_table_s_functions() -> None:
    base = Merge("t", Rules(fields={("n",): "sum"}), settling=None).row("k", {"n": 3}, {"n": 5}, {"n": 7})
    assert base == {"n": 9}


# Any documents

names = st.sampled_from(["a", "b", "", "*"])
scalars = st.sampled_from([None, True, False, 0, 1, 2, -1, 0.0, -0.0, 1.0, 2.5, "", "1", "2.50", "a", 2**63 - 1])
values = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(names, inside, max_size=3), max_leaves=6
)
rows = st.just(ABSENT) | st.dictionaries(st.sampled_from(["a", "b", "c", "m"]), values, max_size=4)
paths = st.lists(st.sampled_from(["a", "b", "c", "m"]), min_size=1, max_size=2).map(tuple)
symmetric = st.sampled_from(["sum", "max", "min", "union", "last"])
rules = st.builds(
    Rules, row=st.none() | st.just("last"), fields=st.dictionaries(paths, symmetric, max_size=4),
    others=st.none() | symmetric,
)  # fmt: skip


@st.composite
def three_rows(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """A base and two sides that have something of it."""
    base = draw(rows)
    sides = []
    for _side in range(2):
        row = draw(rows | st.just(base))
        if row is not ABSENT and base is not ABSENT:
            row = {**base, **row}
            for name in draw(st.sets(st.sampled_from(["a", "b", "c", "m"]), max_size=2)):
                row.pop(name, None)
        sides.append(row)
    return base, sides[0], sides[1]


@settings(max_examples=1_500)
@given(three_rows(), rules, st.booleans())
def test_merging_a_into_b_and_b_into_a_gives_the_same(sides: tuple[Any, Any, Any], rules: Rules, newer: bool) -> None:
    base, one, other = sides
    first, second = Merge("t", rules), Merge("t", rules)
    merged = first.row("k", base, one, other, newer=lambda: newer)
    turned = second.row("k", base, other, one, newer=lambda: not newer)
    swapped = [Conflict(c.table, c.key, c.path, c.code, c.base, c.theirs, c.ours) for c in second.conflicts]
    assert [str(conflict) for conflict in first.conflicts] == [str(conflict) for conflict in swapped]
    if not first.conflicts:
        assert same(merged, turned)


@settings(max_examples=500)
@given(three_rows(), rules)
def test_what_only_one_side_changed_stays_as_it_was_changed(sides: tuple[Any, Any, Any], rules: Rules) -> None:
    base, one, _other = sides
    merge = Merge("t", rules)
    assert same(merge.row("k", base, one, base), one)
    assert same(merge.row("k", base, base, one), one)
    if not rules.counts:
        assert same(merge.row("k", base, one, one), one)
    assert not merge.conflicts


@settings(max_examples=500)
@given(three_rows())
def test_conflicts_resolved_as_told_leave_none(sides: tuple[Any, Any, Any]) -> None:
    told = Merge("t")
    told.row("k", *sides)
    resolutions = {}
    for conflict in told.conflicts:
        sent = from_text(to_text(conflict.to_json()))  # what a client is told, and sends back
        values = [sent.get(side, ABSENT) for side in ("base", "ours", "theirs")]
        resolutions[Spot("t", "k", tuple(sent["path"]))] = [Resolution(*values, "theirs")]
    settling = Settling(resolutions=resolutions)
    merge = Merge("t", settling=settling)
    merged = merge.row("k", *sides)
    assert not merge.conflicts
    assert not list(settling.unused())
    assert same(merged, Merge("t", settling=Settling("theirs")).row("k", *sides))
