"""What a service asks for, built step by step: the transaction of one or several groups, as Avro and as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Self, cast

import orjson

from versolog.schemas import documents, limits, times
from versolog.schemas.codec import Record
from versolog.schemas.conflicts import Resolution
from versolog.schemas.errors import Invalid, Malformed, TooLarge, VersologError
from versolog.schemas.written import transaction_body
from versolog.streams.state import MAIN

Json = dict[str, Any]

_SYSTEM = "$"
_ABOUT = {
    "author": limits.AUTHOR_BYTES_MAX,
    "message": limits.MESSAGE_BYTES_MAX,
    "type": limits.TYPE_BYTES_MAX,
}
_PART_FIELDS = frozenset({"group", "branch", "expect_head", "expect", "changes", "operation"})
_TRANSACTION_FIELDS = frozenset({"id", "author", "message", "type", "occurred_at", "parts"}) | _PART_FIELDS


class Part:
    """What a transaction asks of one group. Every method checks what it is given, and returns the part itself.

    A row is written down when it is given: changing the dict afterwards changes nothing here.
    """

    __slots__ = ("_branch", "_changes", "_expect", "_expect_head", "_group", "_operation")

    def __init__(self, group: str | None, branch: str = MAIN) -> None:
        self._group = None if group is None else _name("group", group)
        self._branch = branch if branch is MAIN else _name("branch", branch)
        self._changes: list[Record] = []
        self._expect: dict[tuple[str, str], int] = {}
        self._expect_head: int | None = None
        self._operation: Record | None = None

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> Self:
        """The row shall be `row`, whatever it was."""
        return self._change("put", table, key, _row_text(row, "row"))

    def patch(self, table: str, key: str, patch: Mapping[str, Any]) -> Self:
        """The row shall be changed by an RFC 7396 merge patch: null takes a field away; an absent row counts as {}."""
        return self._change("patch", table, key, _row_text(patch, "patch"))

    def add(self, table: str, key: str, amounts: Mapping[str, Any]) -> Self:
        """Each named field shall grow by its amount: a 64-bit integer, a decimal string, or an object of these."""
        return self._change("add", table, key, _amounts_text(amounts))

    def delete(self, table: str, key: str) -> Self:
        """The row shall be absent."""
        return self._change("delete", table, key, None)

    def expect(self, table: str, key: str, version: int) -> Self:
        """Refuse all of it unless the row was last changed by `version`; 0 means that the row is absent."""
        place = self._place(table, key)
        known = self._expect.setdefault(place, _version("version", version))
        if known != version:
            raise Invalid(f"row {key!r} of {table!r} can't be at version {known} and at {version}", field="version")
        return self

    def expect_absent(self, table: str, key: str) -> Self:
        """Refuse all of it unless the row is absent."""
        return self.expect(table, key, 0)

    def expect_head(self, version: int) -> Self:
        """Refuse all of it unless the branch's newest version is `version`; 0 for a branch that does not exist."""
        self._own_group()
        if self._expect_head not in (None, _version("expect_head", version)):
            raise Invalid(f"the head can't be {self._expect_head} and {version}", field="expect_head")
        self._expect_head = version
        return self

    def operation(self, kind: str, /, **arguments: Any) -> Self:
        """A version-control operation on the group, in place of changes: merge, revert, rollback, tag and others. What is
        not JSON among the arguments is a list of `Resolution`s."""
        self._own_group()
        if self._operation is not None or self._changes:
            raise Invalid(
                "a part holds changes or one operation; put the second into its own transaction", field="operation"
            )
        self._operation = {
            "kind": _about("type", kind) or _empty("kind"),
            "arguments": _row_text({name: _argument(value) for name, value in arguments.items()}, "set of arguments"),
        }
        return self

    def _change(self, op: str, table: str, key: str, row: str | None) -> Self:
        place = self._place(table, key)
        if self._operation is not None:
            raise Invalid(
                "a part holds changes or one operation; put the second into its own transaction", field="changes"
            )
        if len(self._changes) >= limits.CHANGES_MAX:
            raise _too_many_changes()
        self._changes.append({"op": op, "table": place[0], "key": place[1], "row": row})
        return self

    def _place(self, table: str, key: str) -> tuple[str, str]:
        self._own_group()
        if _name("table", table).startswith(_SYSTEM):
            raise Invalid(
                f"tables that begin with {_SYSTEM} are versolog's own; {table!r} can't be named here", field="table"
            )
        return table, _name("key", key)

    def _own_group(self) -> str:
        if self._group is None:
            raise Invalid(
                "the transaction was made without a group of its own; use what .group(name) returns", field="group"
            )
        return self._group

    def _is_empty(self) -> bool:
        return not self._changes and not self._expect and self._expect_head is None and self._operation is None

    def _record(self) -> Record:
        if self._is_empty():
            raise Invalid(f"nothing is asked of group {self._group!r}: give a change, an operation or an expectation")
        expect = [{"table": table, "key": key, "version": version} for (table, key), version in self._expect.items()]
        return {
            "group": self._group,
            "branch": self._branch,
            "expect_head": self._expect_head,
            "expect": expect,
            "changes": self._changes,
            "operation": self._operation,
        }


class Transaction(Part):
    """One intent with a unique id: committed whole or refused whole, once, however often it is sent.

    Its own methods speak of the group it was made with; `group(name)` gives a part for another one.
    A retry must carry the same id and the same content, so keep the object, or its `to_json()`, until it is decided.
    """

    __slots__ = ("_author", "_message", "_occurred_at", "_others", "_type", "id")

    def __init__(
        self,
        group: str | None,
        *,
        id: str | None = None,
        author: str = "",
        message: str = "",
        type: str = "",
        occurred_at: datetime | None = None,
        branch: str = MAIN,
    ) -> None:
        super().__init__(group, branch)
        self.id = new_id() if id is None else _name("id", id)
        self._author = _about("author", author)
        self._message = _about("message", message)
        self._type = _about("type", type)
        self._occurred_at = None if occurred_at is None else times.micros_from(occurred_at)
        self._others: dict[str, Part] = {}

    def __repr__(self) -> str:
        groups = ", ".join(repr(part._group) for part in self._parts())
        return f"Transaction({groups}, id={self.id!r}, type={self._type!r})"

    def group(self, name: str, branch: str = MAIN) -> Part:
        """The part for group `name`: the same one again where it was named before on the same branch."""
        part: Part | None = self if name == self._group else self._others.get(name)
        if part is None:
            if len(self._others) + (self._group is not None) >= limits.GROUPS_MAX:
                raise TooLarge(
                    f"a transaction names at most {limits.GROUPS_MAX:,} groups; cut it into several",
                    field="parts",
                    limit=limits.GROUPS_MAX,
                )
            part = self._others[name] = Part(_name("group", name), branch)
        elif part._branch != branch:
            raise Invalid(
                f"group {name!r} is written on branch {part._branch!r} already; a transaction has one branch for each"
            )
        return part

    @property
    def groups(self) -> list[str]:
        """The groups it names, in byte order."""
        return [part._own_group() for part in self._parts()]

    @property
    def home(self) -> str:
        """The byte-least group, whose partition decides the id."""
        return self._parts()[0]._own_group()

    @property
    def type(self) -> str:
        """The service's own name for the event."""
        return self._type

    @property
    def occurred_at(self) -> int | None:
        """When it happened in the service's world, in microseconds since 1970."""
        return self._occurred_at

    def record(self) -> Record:
        """The Avro record, its parts in byte order of their groups. Raises Invalid for a part that asks for nothing."""
        parts = self._parts()
        if len(parts) > 1 and sum(len(part._changes) for part in parts) > limits.CHANGES_MAX:
            raise _too_many_changes()
        return {
            "id": self.id,
            "author": self._author,
            "message": self._message,
            "type": self._type,
            "occurred_at": self._occurred_at,
            "parts": [part._record() for part in parts],
        }

    def intent(self) -> bytes:
        """The Avro body, the same bytes for the same content. Raises Invalid and TooLarge."""
        body = transaction_body(self.record())
        if len(body) > limits.TRANSACTION_BYTES_MAX:
            raise TooLarge(
                f"the transaction has {len(body):,} bytes; the limit is {limits.TRANSACTION_BYTES_MAX:,}",
                limit=limits.TRANSACTION_BYTES_MAX,
            )
        return body

    def to_json(self) -> Json:
        """The transaction as the HTTP API takes it; what is left to its default is left out."""
        about = {"author": self._author, "message": self._message, "type": self._type}
        whole: Json = {"id": self.id, **{name: text for name, text in about.items() if text}}
        if self._occurred_at is not None:
            whole["occurred_at"] = times.micros_to_text(self._occurred_at)
        parts = [_part_to_json(part) for part in self._parts()]
        return whole | (parts[0] if len(parts) == 1 else {"parts": parts})

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """The transaction in an object of the HTTP form, read with `documents.from_text` so that no number lost digits.

        An unknown field is Invalid, a wrong type Malformed; the error's `field` is a JSON pointer to the place.
        """
        fields = _object(obj, "", _TRANSACTION_FIELDS)
        parts = fields.get("parts")
        own_group = None if parts is not None else _required(fields, "group", "", str)
        with _At("/"):
            tx = cls(
                own_group,
                id=_optional(fields, "id", "", str, None),
                author=_optional(fields, "author", "", str, ""),
                message=_optional(fields, "message", "", str, ""),
                type=_optional(fields, "type", "", str, ""),
                branch=_optional(fields, "branch", "", str, MAIN),
            )
        tx._occurred_at = _moment(_optional(fields, "occurred_at", "", str, None))
        if parts is None:
            _read_part(tx, fields, "")
        else:
            tx._read_parts(fields)
        tx.record()
        return tx

    def _read_parts(self, fields: Json) -> None:
        if twice := sorted(_PART_FIELDS & fields.keys()):
            raise Invalid(f"{twice[0]!r} stands beside 'parts'; it belongs into each of them", field=f"/{twice[0]}")
        listed = _required(fields, "parts", "", list)
        if not listed:
            raise Invalid("a transaction has at least one part", field="/parts")
        for index, obj in enumerate(listed):
            where = f"/parts/{index}"
            part_fields = _object(obj, where, _PART_FIELDS)
            name = _required(part_fields, "group", where, str)
            if name in self._others:
                raise Invalid(
                    f"group {name!r} is named twice; put all that is asked of it into one part", field=f"{where}/group"
                )
            with _At(f"{where}/"):
                part = self.group(name, _optional(part_fields, "branch", where, str, MAIN))
            _read_part(part, part_fields, where)

    def _parts(self) -> list[Part]:
        if not self._others:
            self._own_group()
            return [self]
        parts = list(self._others.values())
        if self._group is not None and not self._is_empty():
            parts.append(self)
        return sorted(parts, key=Part._own_group)  # by code point, which is by UTF-8 byte


def new_id() -> str:
    """A new transaction id: a UUID of version 7 (RFC 9562), so that ids sort by the time they were made."""
    drawn = bytearray(os.urandom(16))
    drawn[:6] = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    drawn[6] = 0x70 | drawn[6] & 0x0F
    drawn[8] = 0x80 | drawn[8] & 0x3F
    text = drawn.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _part_to_json(part: Part) -> Json:
    record = part._record()
    written: Json = {"group": record["group"]}
    if record["branch"] != MAIN:
        written["branch"] = record["branch"]
    if record["expect_head"] is not None:
        written["expect_head"] = record["expect_head"]
    if record["expect"]:
        written["expect"] = record["expect"]
    if record["changes"]:
        written["changes"] = [_change_to_json(change) for change in record["changes"]]
    if record["operation"]:
        written["operation"] = record["operation"] | {"arguments": orjson.loads(record["operation"]["arguments"])}
    return written


def _change_to_json(change: Record) -> Json:
    if change["row"] is None:
        return {name: change[name] for name in ("op", "table", "key")}
    return change | {"row": orjson.loads(change["row"])}


def _read_part(part: Part, fields: Json, where: str) -> None:
    head = _optional(fields, "expect_head", where, int, None)
    if head is not None:
        with _At(f"{where}/"):
            part.expect_head(head)
    for index, obj in enumerate(_optional(fields, "expect", where, list, [])):
        _read_expectation(part, obj, f"{where}/expect/{index}")
    for index, obj in enumerate(_optional(fields, "changes", where, list, [])):
        _read_change(part, obj, f"{where}/changes/{index}")
    operation = _optional(fields, "operation", where, dict, None)
    if operation is not None:
        _read_operation(part, operation, where)


def _read_expectation(part: Part, obj: object, where: str) -> None:
    fields = _object(obj, where, frozenset({"table", "key", "version"}))
    table, key = _required(fields, "table", where, str), _required(fields, "key", where, str)
    with _At(f"{where}/"):
        part.expect(table, key, _required(fields, "version", where, int))


def _read_change(part: Part, obj: object, where: str) -> None:
    fields = _object(obj, where, frozenset({"op", "table", "key", "row"}))
    op = _required(fields, "op", where, str)
    table, key = _required(fields, "table", where, str), _required(fields, "key", where, str)
    if op == "delete":
        if fields.get("row") is not None:
            raise Invalid("a delete has no row", field=f"{where}/row")
        with _At(f"{where}/"):
            part.delete(table, key)
        return
    ask: Callable[[str, str, Json], Part] | None = {"put": part.put, "patch": part.patch, "add": part.add}.get(op)
    if ask is None:
        raise Invalid(f"{op[:64]!r} is no change; put, patch, add and delete are", field=f"{where}/op")
    row = _required(fields, "row", where, dict)
    with _At(f"{where}/"):
        ask(table, key, row)


def _read_operation(part: Part, obj: Json, where: str) -> None:
    where = f"{where}/operation"
    fields = _object(obj, where, frozenset({"kind", "arguments"}))
    kind = _required(fields, "kind", where, str)
    arguments = _optional(fields, "arguments", where, dict, {})
    with _At(f"{where}/"):
        part.operation(kind, **arguments)


def _object(obj: object, where: str, allowed: frozenset[str]) -> Json:
    if not isinstance(obj, dict):
        raise Malformed(f"a JSON object is wanted here, not {documents.kind_of(obj)}", field=where or "/")
    for name in obj:
        if name not in allowed:
            raise Invalid(
                f"there is no field {name[:64]!r} here; these are: {', '.join(sorted(allowed))}",
                field=f"{where}/{name}",
            )
    return cast(Json, obj)


def _required(fields: Json, name: str, where: str, kind: type[Any]) -> Any:
    value = _optional(fields, name, where, kind, None)
    if value is None:
        raise Invalid(f"{name!r} is missing", field=f"{where}/{name}")
    return value


def _optional(fields: Json, name: str, where: str, kind: type[Any], default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {str: "a string", int: "an integer", list: "an array", dict: "a JSON object"}[kind]
        raise Malformed(f"{name!r} is {documents.kind_of(value)}; {wanted} is wanted", field=f"{where}/{name}")
    return value


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return times.micros_from_text(text)
    except Invalid as error:
        error.facts["field"] = "/occurred_at"
        raise


class _At:
    """Errors raised inside get a JSON pointer for their field: `where`, and below it the field they name."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, VersologError):
            field = str(error.facts.get("field", ""))
            error.facts["field"] = field if field.startswith("/") else f"{self._where}{field}"


def _name(what: str, name: object) -> str:
    return limits.check_name(what, _text(what, name))


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise Invalid(f"a {what} is a string, not {documents.kind_of(value)}", field=what)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Invalid(
                f"the {what} holds half a character (a lone surrogate), which UTF-8 can't say", field=what
            ) from error
    return value


def _about(what: str, text: object) -> str:
    if text == "":
        return ""
    known, limit = _text(what, text), _ABOUT[what]
    if len(known) * 4 > limit and (size := len(known.encode())) > limit:
        raise TooLarge(f"the {what} has {size:,} bytes; the limit is {limit:,}", field=what, limit=limit)
    return known


def _empty(what: str) -> str:
    raise Invalid(f"an empty {what} is not a name; give at least one character", field=what)


def _version(what: str, version: object) -> int:
    if not isinstance(version, int) or isinstance(version, bool):
        raise Invalid(f"a version is an integer, not {documents.kind_of(version)}", field=what)
    if not 0 <= version <= documents.INT64_MAX:
        raise Invalid(f"a version is 0 or more, and {version} isn't one", field=what)
    return version


def _row_text(row: object, what: str) -> str:
    if not isinstance(row, dict):
        if not isinstance(row, Mapping):
            raise Invalid(f"a {what} is a JSON object, not {documents.kind_of(row)}", field="row")
        row = dict(row)
    text = documents.to_bytes(row)
    if len(text) > limits.ROW_BYTES_MAX:
        raise TooLarge(
            f"the {what} has {len(text):,} bytes; the limit is {limits.ROW_BYTES_MAX:,}",
            field="row",
            limit=limits.ROW_BYTES_MAX,
        )
    return text.decode()


def _argument(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [one.to_json() if isinstance(one, Resolution) else one for one in value]


def _amounts_text(amounts: object) -> str:
    text = _row_text(amounts, "map of amounts")
    if text == "{}":
        raise Invalid("there is nothing to add; name at least one field", field="row")
    documents.check_amounts(orjson.loads(text))
    return text


def _too_many_changes() -> TooLarge:
    return TooLarge(
        f"a transaction holds at most {limits.CHANGES_MAX:,} changes; cut it into several",
        field="changes",
        limit=limits.CHANGES_MAX,
    )
