"""Bodies of transactions, commits and outcomes taken apart by hand: the same records as the codec's, and
outcomes as they stand, which are not made records of only to be written again.

Each reader goes straight through a body as our own writers write it. Where a body is anything else, it is the general
library that reads it, or says what is wrong with it. Property tests compare the two on good bodies and broken ones.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from versolog.schemas.codec import Record, Schema, decode, schema
from versolog.schemas.written import outcome_body

_TRANSACTION: Final = schema("Transaction")
_COMMIT: Final = schema("Commit")
_OUTCOMES: Final = schema("Outcomes")
_CHECKPOINT: Final = schema("Checkpoint")

_OPS: Final = ("put", "patch", "add", "delete")
_HASH_BYTES: Final = 32
_VARINT_SHIFT_MAX: Final = 56
"""Of the ninth byte. A tenth may go beyond 64 bits, and what is made of that is the library's to say."""


class Told(NamedTuple):
    """An outcome as it stands in a record of outcomes."""

    transaction_id: str
    code: str
    """Empty where it was committed."""
    body: bytes
    """The Avro body of the Outcome."""


class Outcomes(NamedTuple):
    """A record of outcomes."""

    told: list[Told]
    checkpoint: Record | None


def read_transaction(body: bytes, writer: Schema = _TRANSACTION) -> Record:
    """The Transaction in an Avro body written with `writer`. Raises Malformed."""
    if writer is _TRANSACTION:
        try:
            return _transaction(_Body(body))
        except (_UnusualError, IndexError, UnicodeDecodeError):
            pass
    return decode(_TRANSACTION, body, writer=writer)


def read_commit(body: bytes, writer: Schema = _COMMIT) -> Record:
    """The Commit in an Avro body written with `writer`. Raises Malformed."""
    if writer is _COMMIT:
        try:
            return _commit(_Body(body))
        except (_UnusualError, IndexError, UnicodeDecodeError):
            pass
    return decode(_COMMIT, body, writer=writer)


def read_outcomes(body: bytes, writer: Schema = _OUTCOMES) -> Outcomes:
    """The Outcomes in an Avro body written with `writer`. Raises Malformed."""
    if writer is _OUTCOMES:
        try:
            return _outcomes(_Body(body))
        except (_UnusualError, IndexError, UnicodeDecodeError):
            pass
    record = decode(_OUTCOMES, body, writer=writer)
    told = [Told(result["transaction_id"], result["code"], outcome_body(result)) for result in record["results"]]
    return Outcomes(told, record["checkpoint"])


class _UnusualError(Exception):
    """The body is not as our writers write it."""


class _Body:
    """A body, and how far it is read."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def long(self) -> int:
        """A long: zigzag, seven bits a byte, the least first."""
        byte = self._body[self._at]
        self._at += 1
        if byte < 0x80:
            return (byte >> 1) ^ -(byte & 1)
        number, shift = byte & 0x7F, 7
        while True:
            byte = self._body[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)
            shift += 7
            if shift > _VARINT_SHIFT_MAX:
                raise _UnusualError

    @property
    def at(self) -> int:
        return self._at

    def since(self, begin: int) -> bytes:
        """What was read from there on."""
        return self._body[begin : self._at]

    def remainder(self) -> bytes:
        """All that is left."""
        begin, self._at = self._at, len(self._body)
        return self._body[begin:]

    def bytes_of(self, size: int) -> bytes:
        begin = self._at
        end = begin + size
        if size < 0 or end > len(self._body):
            raise _UnusualError
        self._at = end
        return self._body[begin:end]

    def text(self) -> str:
        return self.bytes_of(self.long()).decode()

    def branch(self) -> bool:
        """Whether the second branch of a union with null follows, which is ours for what is there."""
        number = self.long()
        if number not in (0, 1):
            raise _UnusualError
        return number == 1

    def optional_long(self) -> int | None:
        return self.long() if self.branch() else None

    def optional_text(self) -> str | None:
        return self.text() if self.branch() else None

    def items(self) -> int:
        """How many items of an array follow; `end_of_items` is due after them, where there are any."""
        count = self.long()
        if count < 0:  # blocks with their size, which others may write
            raise _UnusualError
        return count

    def end_of_items(self) -> None:
        if self.long() != 0:
            raise _UnusualError

    def end(self) -> None:
        if self._at != len(self._body):
            raise _UnusualError


def _transaction(rest: _Body) -> Record:
    transaction: Record = {
        "id": rest.text(),
        "author": rest.text(),
        "message": rest.text(),
        "type": rest.text(),
        "occurred_at": rest.optional_long(),
    }
    parts = [_part(rest) for _ in range(rest.items())]
    if parts:
        rest.end_of_items()
    rest.end()
    transaction["parts"] = parts
    return transaction


def _part(rest: _Body) -> Record:
    part: Record = {"group": rest.text(), "branch": rest.text(), "expect_head": rest.optional_long()}
    part["expect"] = expect = [
        {"table": rest.text(), "key": rest.text(), "version": rest.long()} for _ in range(rest.items())
    ]
    if expect:
        rest.end_of_items()
    part["changes"] = changes = [_requested_change(rest) for _ in range(rest.items())]
    if changes:
        rest.end_of_items()
    part["operation"] = {"kind": rest.text(), "arguments": rest.text()} if rest.branch() else None
    return part


def _requested_change(rest: _Body) -> Record:
    op = rest.long()
    if not 0 <= op < len(_OPS):
        raise _UnusualError
    return {"op": _OPS[op], "table": rest.text(), "key": rest.text(), "row": rest.optional_text()}


def _commit(rest: _Body) -> Record:
    commit: Record = {
        "group": rest.text(),
        "version": rest.long(),
        "branch": rest.text(),
        "branch_id": rest.long(),
    }
    commit["parents"] = parents = [rest.long() for _ in range(rest.items())]
    if parents:
        rest.end_of_items()
    commit["previous_hash"] = rest.bytes_of(_HASH_BYTES)
    commit["transaction_id"] = rest.text()
    commit["intent_hash"] = rest.bytes_of(_HASH_BYTES)
    commit["transaction_offset"] = rest.long()
    commit["sequence_offset"] = rest.optional_long()
    commit["others"] = others = [{"group": rest.text(), "version": rest.long()} for _ in range(rest.items())]
    if others:
        rest.end_of_items()
    commit["author"] = rest.text()
    commit["message"] = rest.text()
    commit["type"] = rest.text()
    commit["committed_at"] = rest.long()
    commit["occurred_at"] = rest.optional_long()
    commit["operation"] = rest.text()
    commit["arguments"] = rest.text()
    commit["changes"] = changes = [
        {"table": rest.text(), "key": rest.text(), "row": rest.optional_text()} for _ in range(rest.items())
    ]
    if changes:
        rest.end_of_items()
    commit["refs"] = refs = [_ref(rest) for _ in range(rest.items())]
    if refs:
        rest.end_of_items()
    commit["schemas"] = schemas = [
        {"table": rest.text(), "fingerprint": rest.bytes_of(_HASH_BYTES)} for _ in range(rest.items())
    ]
    if schemas:
        rest.end_of_items()
    commit["piece"] = rest.long()
    commit["pieces"] = rest.long()
    rest.end()
    return commit


def _ref(rest: _Body) -> Record:
    kind = rest.long()
    if kind not in (0, 1):
        raise _UnusualError
    name = rest.text()
    return {
        "kind": "tag" if kind else "branch",
        "name": name,
        "version": rest.optional_long(),
        "parent": rest.optional_long(),
    }


def _outcomes(rest: _Body) -> Outcomes:
    told = [_told(rest) for _ in range(rest.items())]
    if told:
        rest.end_of_items()
    checkpoint = decode(_CHECKPOINT, rest.remainder()) if rest.branch() else None
    rest.end()
    return Outcomes(told, checkpoint)


def _told(rest: _Body) -> Told:
    begin = rest.at
    transaction_id = rest.text()
    rest.bytes_of(_HASH_BYTES)
    rest.long()
    rest.long()
    if rest.long() not in (0, 1):
        raise _UnusualError
    parts = rest.items()
    for _ in range(parts):
        rest.text()
        rest.text()
        rest.long()
        rest.bytes_of(_HASH_BYTES)
    if parts:
        rest.end_of_items()
    code = rest.text()
    rest.text()
    rest.text()
    return Told(transaction_id, code, rest.since(begin))
