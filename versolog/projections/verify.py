"""Verifying: every hash computed again from Kafka alone, and compared with the chain, the outcomes and a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from versolog.projections.audit import StoreAudit
from versolog.projections.store import Store
from versolog.projections.tail import COMMIT, IDLE_POLL_S, OUTCOME, OUTCOMES, Ends, fetched, reader_to_end, takes_effect
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import Malformed, Unavailable
from versolog.schemas.readings import read_commit
from versolog.schemas.topics import Topics
from versolog.streams.chain import commit_hash
from versolog.streams.state import NO_HASH

FINDINGS_MAX = 100
PATIENCE_S = 30.0
"""For how long the log may have nothing to say before it counts as away."""
SETTLE_ROUNDS = 5
"""How often to look for the other half of a batch, whose topics don't show it at the same instant."""
PREFIX_BYTES = 8

Progress = Callable[[int, int], None]
"""Told the records read so far, and about how many there are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    where: str
    """`log`, `outcomes` or `store`."""
    partition: int
    offset: int
    """In the topic commits, or in outcomes where that is meant; -1 where no one record is."""
    group: str | None
    version: int | None
    detail: str
    expected: str | None = None
    found: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Verified:
    """What verifying a partition, or one group of it, came to."""

    commits: int = 0
    groups: int = 0
    outcomes: int = 0
    rows: int = 0
    """Row states of the store that were compared with the commits that wrote them."""
    findings: list[Finding] = field(default_factory=list)
    """The first FINDINGS_MAX of them."""
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """By group, the last version and its hash, as computed."""

    @property
    def ok(self) -> bool:
        return not self.findings


class Verifier:
    """Walks one partition of commits and outcomes from its first record to its last."""

    def __init__(self, partition: int, *, topics: Topics, codec: Codec, store: Store | None, group: str | None) -> None:
        """With `store` all that it holds is compared too, as far as it has come; with `group` only that one."""
        self._partition, self._topics, self._codec = partition, topics, codec
        self._group, self._key = group, None if group is None else group.encode()
        self._chains: dict[str, _Chain] = {}
        self._agreement = _Agreement()
        self._audit = None if store is None else StoreAudit(store, partial(self._find, "store"))
        self.verified = Verified()

    def run(self, kafka: dict[str, Any], ends: Ends, progress: Progress | None = None) -> Verified:
        """Read everything up to now and compare. Blocks. Raises Unavailable where the log can't be read."""
        places = [(topic, self._partition) for topic in (self._topics.commits, self._topics.outcomes)]
        upto = ends.stable(places)
        with closing(reader_to_end(kafka, **{"check.crcs": True})) as consumer:
            self._read(consumer, ends.first(places), upto, self._check, progress)
            self._settle(consumer, ends, upto)
        for (group, version), offset in self._agreement.unnamed.items():
            self._find("log", offset, group, version, "no outcome names the commit")
        for (group, version), named in self._agreement.named.items():
            self._find("log", -1, group, version, "an outcome names a commit that is not there", named.hex())
        if self._audit is not None:
            last = ends.last(places)
            self._audit.log_ends(*(last[place] for place in places))
            self._audit.end(self._group)
            self.verified.rows = self._audit.rows
        self.verified.groups = len(self._chains)
        self.verified.heads = {group: (chain.version, chain.hash) for group, chain in self._chains.items()}
        return self.verified

    def _settle(self, consumer: Consumer, ends: Ends, upto: dict[tuple[str, int], int]) -> None:
        """Read on for the other half of what was half there when the ends were asked for."""
        for _ in range(SETTLE_ROUNDS):
            if not self._agreement.open:
                return
            self._agreement.takes_new = False
            further = ends.stable(upto)
            if further == upto:
                time.sleep(IDLE_POLL_S)
            self._read(consumer, upto, further, self._check_agreement)
            upto = further

    def _read(
        self, consumer: Consumer, start: dict[tuple[str, int], int], upto: dict[tuple[str, int], int],
        check: Callable[[Message, int], None], progress: Progress | None = None,
    ) -> None:  # fmt: skip
        open_ = {topic for (topic, number), end in upto.items() if start[topic, number] < end and end > 0}
        consumer.assign(
            [TopicPartition(topic, number, start[topic, number]) for topic, number in upto if topic in open_]
        )
        silent_s, read, about = 0.0, 0, sum(upto.values())
        while open_:
            messages = fetched(consumer)
            silent_s = 0.0 if messages else silent_s + IDLE_POLL_S
            if silent_s > PATIENCE_S:
                raise Unavailable(f"partition {self._partition} was not answered for {PATIENCE_S:g} s")
            for message in messages:
                error, offset, topic = message.error(), message.offset(), message.topic()
                assert offset is not None
                assert topic is not None
                if error is None and offset < upto[topic, self._partition]:
                    check(message, offset)
                elif error is None or error.code() == KafkaError._PARTITION_EOF:
                    open_.discard(topic)
                elif error.code() == KafkaError._BAD_MSG or error.fatal():
                    self._find("log", offset, None, None, f"{topic}: Kafka can't read the record: {error}")
                    open_.discard(topic)
            read += len(messages)
            if progress is not None:
                progress(read, about)

    def _check(self, message: Message, offset: int) -> None:
        value = message.value()
        if message.topic() == self._topics.outcomes:
            self._check_outcomes(offset, value)
        elif self._key is None or message.key() == self._key:
            self._check_commit(offset, message.key(), value)

    def _check_commit(self, offset: int, key: Any, value: Any) -> None:
        try:
            record, found = self._commit(value)
        except Malformed as error:
            self._find("log", offset, None, None, f"not a commit: {error.detail}")
            return
        group, version = record["group"], record["version"]
        if key != group.encode():
            self._find("log", offset, group, version, "the record's key is not its group")
        chain = self._chains.setdefault(group, _Chain())
        self._check_place(offset, chain, record)
        chain.version, chain.hash, chain.committed_at = version, found, record["committed_at"]
        last = record["piece"] == record["pieces"]
        chain.expected_piece = 1 if last else record["piece"] + 1
        if last:
            self.verified.commits += 1
            self._agree(offset, group, version, found)
        if self._audit is not None:
            self._audit.commit(offset, record, value, found)

    def _commit(self, value: Any) -> tuple[Record, bytes]:
        """The record and its hash. Raises Malformed."""
        writer, body = self._codec.opened(value, COMMIT)
        return read_commit(body, writer), commit_hash(writer.fingerprint, body)

    def _check_place(self, offset: int, chain: _Chain, record: Record) -> None:
        group, version, piece = record["group"], record["version"], record["piece"]
        follows = chain.version + 1 if chain.expected_piece == 1 else chain.version
        if version != follows or piece != chain.expected_piece:
            expected = f"version {follows} piece {chain.expected_piece}"
            self._find("log", offset, group, version, "a version is missing, doubled or out of order",
                       expected, f"version {version} piece {piece}")  # fmt: skip
        if record["previous_hash"] != chain.hash:
            self._find("log", offset, group, version,
                       f"the chain is broken: the commit before (version {chain.version}) is not the one it was",
                       record["previous_hash"].hex(), chain.hash.hex())  # fmt: skip
        if record["committed_at"] < chain.committed_at:
            self._find("log", offset, group, version, "committed_at falls",
                       f"at least {chain.committed_at}", str(record["committed_at"]))  # fmt: skip

    def _check_outcomes(self, offset: int, value: Any) -> None:
        try:
            _, record = self._codec.read(value, OUTCOMES)
        except Malformed as error:
            self._find("outcomes", offset, None, None, f"not outcomes: {error.detail}")
            return
        wanted = [
            result
            for result in record["results"]
            if self._group is None or any(part["group"] == self._group for part in result["parts"])
        ]
        for result in wanted:
            for part in result["parts"]:
                if _names_commit(part) and self._group in (None, part["group"]):
                    self.verified.outcomes += 1
                    self._agree(-1, part["group"], part["version"], part["hash"])
        if self._audit is not None:
            told = [(result["transaction_id"], avro.encode(OUTCOME, result)) for result in wanted
                    if takes_effect(result["transaction_id"], result["code"])]  # fmt: skip
            self._audit.outcomes(offset, told, record["checkpoint"])

    def _check_agreement(self, message: Message, offset: int) -> None:
        """As `_check`, for what came after the end: only what was still open is looked at."""
        value: Any = message.value()
        try:
            if message.topic() == self._topics.commits:
                record, found = self._commit(value)
                if record["piece"] == record["pieces"]:
                    self._agree(offset, record["group"], record["version"], found)
                return
            _, record = self._codec.read(value, OUTCOMES)
        except Malformed:
            return
        for part in (part for result in record["results"] for part in result["parts"] if _names_commit(part)):
            self._agree(-1, part["group"], part["version"], part["hash"])

    def _agree(self, offset: int, group: str, version: int, hash_: bytes) -> None:
        """Compare what a commit (`offset` ≥ 0) or an outcome says of a version with what the other does."""
        if offset >= 0:
            named, computed = self._agreement.commit(group, version, offset, hash_), hash_
        else:
            offset, computed = self._agreement.outcome(group, version, hash_)
            named = hash_
        if named is not None and not named.startswith(computed):
            self._find("log", offset, group, version, "the commit is not the one that the outcome names",
                       named.hex(), computed.hex())  # fmt: skip

    def _find(
        self, where: str, offset: int, group: str | None, version: int | None, detail: str,
        expected: str | None = None, found: str | None = None,
    ) -> None:  # fmt: skip
        if len(self.verified.findings) < FINDINGS_MAX:
            finding = Finding(where, self._partition, offset, group, version, detail, expected, found)
            self.verified.findings.append(finding)


def _names_commit(part: Record) -> bool:
    """Whether an outcome's part names a commit of its own partition; of those elsewhere it has the version alone."""
    return bool(part["version"]) and part["hash"] != NO_HASH


class _Chain:
    """Where a group's chain stands while it is walked."""

    __slots__ = ("committed_at", "expected_piece", "hash", "version")

    def __init__(self) -> None:
        self.version, self.hash, self.committed_at, self.expected_piece = 0, NO_HASH, 0, 1


class _Agreement:
    """What commits and outcomes say of the same versions, in whatever order they are read.

    An outcome is told again with every retry of its transaction, so the hashes of all versions are kept, by their first
    bytes: enough to see that one was changed, and little enough for millions of them.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, bytearray] = {}
        """By group, those of the commits read, in order."""
        self.unnamed: dict[tuple[str, int], int] = {}
        """The offsets of commits that no outcome named yet."""
        self.named: dict[tuple[str, int], bytes] = {}
        """The hashes that outcomes named and that no commit had yet."""
        self.takes_new = True
        """False once only what is open is of interest."""

    @property
    def open(self) -> bool:
        return bool(self.unnamed or self.named)

    def commit(self, group: str, version: int, offset: int, hash_: bytes) -> bytes | None:
        """Take a commit; answers the hash that an outcome named, if one did."""
        named = self.named.pop((group, version), None)
        if self.takes_new:
            prefixes = self._prefixes.setdefault(group, bytearray())
            if len(prefixes) == (version - 1) * PREFIX_BYTES:  # else a version is missing, which is found elsewhere
                prefixes += hash_[:PREFIX_BYTES]
            if named is None:
                self.unnamed.setdefault((group, version), offset)
        return named

    def outcome(self, group: str, version: int, hash_: bytes) -> tuple[int, bytes]:
        """Take what an outcome says of a version; answers the offset of the commit, or -1, and the beginning of its
        hash, as far as it is known: nothing where it wasn't read yet."""
        start = (version - 1) * PREFIX_BYTES
        known = bytes(self._prefixes.get(group, b"")[start : start + PREFIX_BYTES])
        if known:
            return self.unnamed.pop((group, version), -1), known
        return -1, self.named.setdefault((group, version), hash_) if self.takes_new else b""
