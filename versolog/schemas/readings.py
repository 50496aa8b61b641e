"""Bodies of what the log is full of taken apart by hand: the same records as the codec's, and outcomes as they stand, which are not made records of only to be written again.

Each reader goes straight through a body as our own writers write it. Where a body is anything else, it is the general
library that reads it, or says what is wrong with it. Property tests compare the two on good bodies and broken ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from versolog.schemas.codec import Record, Schema, decode, schema
from versolog.schemas.written import checkpoint_body, outcome_body

Item = TypeVar("Item")

_TRANSACTION: Final = schema("Transaction")
_COMMIT: Final = schema("Commit")
_OUTCOME: Final = schema("Outcome")
_OUTCOMES: Final = schema("Outcomes")
_SHARE: Final = schema("Share")
_VOTES: Final = schema("Votes")
_CHECKPOINT: Final = schema("Checkpoint")

_OPS: Final = ("put", "patch", "add", "delete")
_VERDICTS: Final = ("committed", "refused")
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
    checkpoint: bytes | None
    """The Avro body of the Checkpoint, for `read_checkpoint`: of many records at once, only the last one's is wanted."""


def read_transaction(body: bytes, writer: Schema = _TRANSACTION) -> Record:
    """The Transaction in an Avro body written with `writer`. Raises Malformed."""
    return _record(_TRANSACTION, _transaction, body, writer)


def read_commit(body: bytes, writer: Schema = _COMMIT) -> Record:
    """The Commit in an Avro body written with `writer`. Raises Malformed."""
    return _record(_COMMIT, _commit, body, writer)


def read_share(body: bytes, writer: Schema = _SHARE) -> Record:
    """The Share in an Avro body written with `writer`. Raises Malformed."""
    return _record(_SHARE, _share, body, writer)


def read_votes(body: bytes, writer: Schema = _VOTES) -> Record:
    """The Votes in an Avro body written with `writer`. Raises Malformed."""
    return _record(_VOTES, _votes, body, writer)


def read_outcome(body: bytes) -> Record:
    """The Outcome in an Avro body of our own. Raises Malformed."""
    return _record(_OUTCOME, _outcome, body, _OUTCOME)


def read_outcomes(body: bytes, writer: Schema = _OUTCOMES) -> Outcomes:
    """The Outcomes in an Avro body written with `writer`. Raises Malformed."""
    read = _by_hand(_outcomes, body) if writer is _OUTCOMES else None
    if read is not None:
        return read
    record = decode(_OUTCOMES, body, writer=writer)
    told = [Told(result["transaction_id"], result["code"], outcome_body(result)) for result in record["results"]]
    checkpoint = record["checkpoint"]
    return Outcomes(told, None if checkpoint is None else checkpoint_body(checkpoint))


def read_checkpoint(body: bytes) -> Record:
    """The Checkpoint in an Avro body of our own. Raises Malformed."""
    return decode(_CHECKPOINT, body)


def _record(ours: Schema, read: Callable[[_Body], Record], body: bytes, writer: Schema) -> Record:
    """The record by hand where it is as our writers write it, and else by the library."""
    record = _by_hand(read, body) if writer is ours else None
    return decode(ours, body, writer=writer) if record is None else record


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

    def symbol(self, symbols: tuple[str, ...]) -> str:
        """Of an enum."""
        number = self.long()
        if not 0 <= number < len(symbols):
            raise _UnusualError
        return symbols[number]

    def array(self, item: Callable[[_Body], Item]) -> list[Item]:
        """An array in one block, each of its items as `item` reads it."""
        count = self.long()
        if count < 0:  # blocks with their size, which others may write
            raise _UnusualError
        items = [item(self) for _ in range(count)]
        if count and self.long() != 0:
            raise _UnusualError
        return items

    def end(self) -> None:
        if self._at != len(self._body):
            raise _UnusualError


def _by_hand(read: Callable[[_Body], Item], body: bytes) -> Item | None:
    """What `read` makes of the whole body; None where it is not as our writers write it."""
    rest = _Body(body)
    try:
        found = read(rest)
        rest.end()
    except (_UnusualError, IndexError, UnicodeDecodeError):
        return None
    return found


def _transaction(rest: _Body) -> Record:
    return {
        "id": rest.text(),
        "author": rest.text(),
        "message": rest.text(),
        "type": rest.text(),
        "occurred_at": rest.optional_long(),
        "parts": rest.array(_part),
    }


def _part(rest: _Body) -> Record:
    return {
        "group": rest.text(),
        "branch": rest.text(),
        "expect_head": rest.optional_long(),
        "expect": rest.array(_expectation),
        "changes": rest.array(_requested_change),
        "operation": {"kind": rest.text(), "arguments": rest.text()} if rest.branch() else None,
    }


def _expectation(rest: _Body) -> Record:
    return {"table": rest.text(), "key": rest.text(), "version": rest.long()}


def _requested_change(rest: _Body) -> Record:
    return {"op": rest.symbol(_OPS), "table": rest.text(), "key": rest.text(), "row": rest.optional_text()}


def _commit(rest: _Body) -> Record:
    return {
        "group": rest.text(),
        "version": rest.long(),
        "branch": rest.text(),
        "branch_id": rest.long(),
        "parents": rest.array(_long),
        "previous_hash": rest.bytes_of(_HASH_BYTES),
        "transaction_id": rest.text(),
        "intent_hash": rest.bytes_of(_HASH_BYTES),
        "transaction_offset": rest.long(),
        "sequence_offset": rest.optional_long(),
        "others": rest.array(_other),
        "author": rest.text(),
        "message": rest.text(),
        "type": rest.text(),
        "committed_at": rest.long(),
        "occurred_at": rest.optional_long(),
        "operation": rest.text(),
        "arguments": rest.text(),
        "changes": rest.array(_change),
        "refs": rest.array(_ref),
        "schemas": rest.array(_schema_met),
        "piece": rest.long(),
        "pieces": rest.long(),
    }


def _long(rest: _Body) -> int:
    return rest.long()


def _other(rest: _Body) -> Record:
    return {"group": rest.text(), "version": rest.long()}


def _change(rest: _Body) -> Record:
    return {"table": rest.text(), "key": rest.text(), "row": rest.optional_text()}


def _ref(rest: _Body) -> Record:
    kind = rest.long()
    if kind not in (0, 1):
        raise _UnusualError
    return {
        "kind": "tag" if kind else "branch",
        "name": rest.text(),
        "version": rest.optional_long(),
        "parent": rest.optional_long(),
    }


def _schema_met(rest: _Body) -> Record:
    return {"table": rest.text(), "fingerprint": rest.bytes_of(_HASH_BYTES)}


def _outcome(rest: _Body) -> Record:
    return {
        "transaction_id": rest.text(),
        "intent_hash": rest.bytes_of(_HASH_BYTES),
        "transaction_offset": rest.long(),
        "committed_at": rest.long(),
        "outcome": rest.symbol(_VERDICTS),
        "parts": rest.array(_part_outcome),
        "code": rest.text(),
        "detail": rest.text(),
        "facts": rest.text(),
    }


def _part_outcome(rest: _Body) -> Record:
    return {
        "group": rest.text(),
        "branch": rest.text(),
        "version": rest.long(),
        "hash": rest.bytes_of(_HASH_BYTES),
    }


def _outcomes(rest: _Body) -> Outcomes:
    return Outcomes(rest.array(_told), rest.remainder() if rest.branch() else None)


def _told(rest: _Body) -> Told:
    begin = rest.at
    transaction_id = rest.text()
    rest.bytes_of(_HASH_BYTES)
    rest.long()
    rest.long()
    rest.symbol(_VERDICTS)
    rest.array(_pass_told_part)
    code = rest.text()
    rest.text()
    rest.text()
    return Told(transaction_id, code, rest.since(begin))


def _pass_told_part(rest: _Body) -> None:
    rest.text()
    rest.text()
    rest.long()
    rest.bytes_of(_HASH_BYTES)


def _share(rest: _Body) -> Record:
    return {
        "sequence_offset": rest.long(),
        "previous": rest.long(),
        "intent_hash": rest.bytes_of(_HASH_BYTES),
        "participants": rest.array(_long),
        "transaction": _transaction(rest) if rest.branch() else None,
        "code": rest.text(),
        "detail": rest.text(),
        "facts": rest.text(),
    }


def _votes(rest: _Body) -> Record:
    return {"partition": rest.long(), "votes": rest.array(_vote)}


def _vote(rest: _Body) -> Record:
    return {
        "sequence_offset": rest.long(),
        "verdict": rest.text(),
        "clock": rest.long(),
        "parts": rest.array(_voted_part),
        "code": rest.text(),
        "detail": rest.text(),
        "facts": rest.text(),
    }


def _voted_part(rest: _Body) -> Record:
    return {"group": rest.text(), "branch": rest.text(), "version": rest.long()}
