"""The end of a transaction: committed with its versions, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

import orjson

from versolog.schemas import times
from versolog.schemas.codec import Record
from versolog.schemas.errors import Malformed, VersologError, refusal

_HASH_BYTES = 32
_NO_HASH = bytes(_HASH_BYTES)
_OWN_FIELDS = frozenset(
    {"id", "transaction_id", "outcome", "code", "detail", "committed_at", "status", "type", "title"}
)


class PartOutcome(NamedTuple):
    """What became of one group. Version 0 and a hash of zeros: nothing of its own was committed. A version and a hash
    of zeros: another partition committed it, whose own outcome has the hash."""

    group: str
    branch: str
    version: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided of a transaction, once for ever: whoever asks again, or sends it again, gets the same."""

    transaction_id: str
    committed: bool
    committed_at: int
    """When it was decided, committed or refused: milliseconds on the store's clock."""
    parts: tuple[PartOutcome, ...]
    code: str = ""
    """Why it was refused, for programs; one of `errors.REFUSALS`."""
    detail: str = ""
    """Why it was refused, for people."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was expected and what was found."""
    intent_hash: bytes = _NO_HASH
    """SHA-256 of the transaction as it was sent; zeros where the outcome came as JSON."""
    transaction_offset: int | None = None
    """Where the transaction stands in its partition; None where the outcome came as JSON."""

    @classmethod
    def from_avro(cls, record: Record) -> Self:
        """The outcome in an `Outcome` record."""
        return cls(
            transaction_id=record["transaction_id"],
            committed=record["outcome"] == "committed",
            committed_at=record["committed_at"],
            parts=tuple(PartOutcome(p["group"], p["branch"], p["version"], p["hash"]) for p in record["parts"]),
            code=record["code"],
            detail=record["detail"],
            facts=orjson.loads(record["facts"]) if record["facts"] else {},
            intent_hash=record["intent_hash"],
            transaction_offset=record["transaction_offset"],
        )

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """The outcome in an answer of the HTTP API, a problem object for a refusal too. Raises Malformed.

        Fields that this version doesn't know are taken for facts, so that a newer server can tell more.
        """
        if not isinstance(obj, dict):
            raise Malformed("not an outcome: a JSON object is wanted")
        try:
            committed = {"committed": True, "refused": False}[obj["outcome"]]
            listed = obj.get("parts", [obj]) if committed else []
            return cls(
                transaction_id=obj["id"],
                committed=committed,
                committed_at=times.micros_from_text(obj["committed_at"]) // 1000,
                parts=tuple(_part_from_json(part) for part in listed),
                code=obj.get("code", ""),
                detail=obj.get("detail", ""),
                facts={} if committed else {name: obj[name] for name in obj.keys() - _OWN_FIELDS},
            )
        except (KeyError, TypeError, ValueError, AttributeError, VersologError) as error:
            raise Malformed(f"not an outcome: {type(error).__name__}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The outcome as the HTTP API answers it."""
        ends = {
            "id": self.transaction_id,
            "outcome": "committed" if self.committed else "refused",
            "committed_at": times.millis_to_text(self.committed_at),
        }
        if not self.committed:
            return {**self.facts, **ends, "code": self.code, "detail": self.detail}
        if len(self.parts) == 1:
            return ends | _part_to_json(self.parts[0]) | {"token": self.token}
        return ends | {"parts": [_part_to_json(part) for part in self.parts], "token": self.token}

    @property
    def version(self) -> int:
        """The version that it made of its group; of its first group in byte order where it named several."""
        return self.parts[0].version if self.parts else 0

    @property
    def hash(self) -> bytes:
        """The hash of the commit that `version` names."""
        return self.parts[0].hash if self.parts else _NO_HASH

    @property
    def token(self) -> str:
        """What a read must carry to see this write: `group:version` of each part, percent-encoded, commas between."""
        made = [part for part in self.parts if part.version]
        return ",".join(f"{_quoted(part.group)}:{part.version}" for part in made)

    @property
    def missing(self) -> list[str]:
        """The groups whose commit's hash is not known here: those of other partitions."""
        return [part.group for part in self.parts if part.version and part.hash == _NO_HASH]

    def joined(self, others: Iterable[Outcome]) -> Self:
        """The outcome with the hashes that other participants of the same transaction know."""
        hashes = {part.group: part.hash for other in others for part in other.parts if part.hash != _NO_HASH}
        parts = (
            PartOutcome(group, branch, version, hashes.get(group, hash_)) for group, branch, version, hash_ in self.parts
        )
        return replace(self, parts=tuple(parts))

    def error(self) -> VersologError | None:
        """The error that a refusal is; None where it was committed."""
        if self.committed:
            return None
        facts = {name: fact for name, fact in self.facts.items() if name not in _OWN_FIELDS}
        return refusal(self.code, self.detail, **facts, id=self.transaction_id)

    def problem(self) -> dict[str, Any] | None:
        """A refusal as an RFC 9457 problem object; None where it was committed."""
        error = self.error()
        if error is None:
            return None
        return error.problem() | {"outcome": "refused", "committed_at": times.millis_to_text(self.committed_at)}

    def raise_for_refusal(self) -> Self:
        """The outcome itself where it was committed. Raises the refusal otherwise, a VersologError by its code."""
        error = self.error()
        if error is not None:
            raise error
        return self


@lru_cache(maxsize=4_096)
def _quoted(group: str) -> str:
    return quote(group, safe="")


def read_token(token: str) -> dict[str, int]:
    """The version that must be visible of each group that `token` names. Raises Malformed."""
    wanted: dict[str, int] = {}
    for item in token.split(",") if token else ():
        group, colon, version = item.partition(":")
        if not colon or not group or not version.isdecimal() or not version.isascii() or len(version) > 18:
            raise Malformed(f"{item[:64]!r} in the token is not group:version; send it back as it was given")
        try:
            name = unquote(group, errors="strict")
        except UnicodeDecodeError as error:
            raise Malformed(f"{item[:64]!r} in the token names no group; send it back as it was given") from error
        wanted[name] = max(int(version), wanted.get(name, 0))
    return wanted


def _part_to_json(part: PartOutcome) -> dict[str, Any]:
    hashed = part.hash.hex() if part.hash != _NO_HASH else None
    return {"group": part.group, "branch": part.branch, "version": part.version, "hash": hashed}


def _part_from_json(obj: Mapping[str, Any]) -> PartOutcome:
    hashed = _NO_HASH if obj["hash"] is None else bytes.fromhex(obj["hash"])
    return PartOutcome(str(obj["group"]), str(obj["branch"]), int(obj["version"]), hashed)
