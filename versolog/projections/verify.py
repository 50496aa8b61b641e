"""Verifying: every hash computed again from Kafka alone, and compared with the chain, the outcomes and a store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from versolog.projections.store import Store
from versolog.projections.tail import COMMIT, IDLE_POLL_S, OUTCOMES, Ends, fetched, reader
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import Malformed, Unavailable
from versolog.schemas.topics import Topics
from versolog.streams.chain import commit_hash
from versolog.streams.state import NO_HASH, Level

FINDINGS_MAX = 100
PATIENCE_S = 30.0
"""For how long the log may have nothing to say before it counts as away."""

Progress = Callable[[int, int], None]
"""Told the records read so far, and about how many there are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    where: str
    """`log`, `outcomes` or `store`."""
    partition: int
    offset: int
    """In the topic commits, or in outcomes where that is meant."""
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
    """Rows of the store that were compared with the commits that wrote them."""
    findings: list[Finding] = field(default_factory=list)
    """The first FINDINGS_MAX of them."""
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """By group, the last version and its hash, as computed."""

    @property
    def ok(self) -> bool:
        return not self.findings


class _Chain:
    """Where a group's chain stands while it is walked."""

    __slots__ = ("committed_at", "expected_piece", "hash", "version")

    def __init__(self) -> None:
        self.version, self.hash, self.committed_at, self.expected_piece = 0, NO_HASH, 0, 1


class Verifier:
    """Walks one partition of commits and outcomes from its first record to its last."""

    def __init__(self, partition: int, *, topics: Topics, codec: Codec, store: Store | None, group: str | None) -> None:
        """With `store` its index and rows are compared too, as far as it has come; with `group` only that one."""
        self._partition, self._topics, self._codec = partition, topics, codec
        self._store = store
        self._key = None if group is None else group.encode()
        self._group = group
        self._chains: dict[str, _Chain] = {}
        self._unmatched: dict[tuple[str, int], tuple[int, bytes]] = {}
        """By group and version: a hash that only one of commits and outcomes named yet; the commit's offset or -1."""
        self.verified = Verified()

    def run(self, kafka: dict[str, Any], ends: Ends, progress: Progress | None = None) -> Verified:
        """Read everything up to now and compare. Blocks. Raises Unavailable where the log can't be read."""
        number = self._partition
        topics = {self._topics.commits, self._topics.outcomes}
        upto = ends.stable([(topic, number) for topic in topics])
        open_ = {topic for topic in topics if upto[topic, number] > 0}
        with closing(reader(kafka, **{"enable.partition.eof": True, "check.crcs": True})) as consumer:
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic in sorted(open_)])
            self._read(consumer, open_, upto, progress)
        for (group, version), (offset, named) in self._unmatched.items():
            if offset < 0:
                self._find("log", -1, group, version, "an outcome names a commit that is not there", named.hex())
        self.verified.groups = len(self._chains)
        self.verified.heads = {group: (chain.version, chain.hash) for group, chain in self._chains.items()}
        self._compare_heads()
        return self.verified

    def _read(
        self, consumer: Consumer, open_: set[str], upto: dict[tuple[str, int], int], progress: Progress | None
    ) -> None:
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
                    self._check(message, offset)
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
            schema_id, body = avro.unframe(value)
            writer = self._codec.schema_of(schema_id)
            record = avro.decode(COMMIT, body, writer=writer)
        except Malformed as error:
            self._find("log", offset, None, None, f"not a commit: {error.detail}")
            return
        group, version = record["group"], record["version"]
        if key != group.encode():
            self._find("log", offset, group, version, "the record's key is not its group")
        chain = self._chains.setdefault(group, _Chain())
        self._check_place(offset, chain, record)
        found = commit_hash(writer.fingerprint, body)
        chain.version, chain.hash, chain.committed_at = version, found, record["committed_at"]
        last = record["piece"] == record["pieces"]
        chain.expected_piece = 1 if last else record["piece"] + 1
        if last:
            self.verified.commits += 1
            self._match(group, version, offset, found)
        if self._store is not None:
            self._compare(self._store, offset, record, value, found)

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
        for result in record["results"]:
            for part in result["parts"]:
                group, version = part["group"], part["version"]
                if version == 0 or (self._group is not None and group != self._group):
                    continue
                self.verified.outcomes += 1
                self._match(group, version, -1, part["hash"])

    def _match(self, group: str, version: int, offset: int, hash_: bytes) -> None:
        """Compare what commits and outcomes say of a version, once both have said it."""
        other = self._unmatched.get((group, version))
        if other is None or (other[0] < 0) == (offset < 0):
            self._unmatched[group, version] = offset, hash_
            return
        del self._unmatched[group, version]
        if other[1] != hash_:
            named, computed = (hash_, other[1]) if offset < 0 else (other[1], hash_)
            self._find("log", max(offset, other[0]), group, version, "the commit is not the one that the outcome names",
                       named.hex(), computed.hex())  # fmt: skip

    def _compare(self, store: Store, offset: int, record: Record, value: bytes, computed: bytes) -> None:
        """Compare one piece with what the store holds of it: the index entry, and each row it wrote."""
        group, version = record["group"], record["version"]
        head = store.head(group)
        if offset >= store.next_commit_offset or head is None or head.version < version:
            return  # the store has not come so far
        if record["piece"] == record["pieces"]:
            entry = store.commit_entry(group, version)
            if entry is None:
                self._find("store", offset, group, version, "the commit is missing")
            elif entry.hash != computed:
                self._find("store", offset, group, version, "the commit's hash is another",
                           computed.hex(), entry.hash.hex())  # fmt: skip
            elif all(value != piece.value for piece in entry.pieces):
                self._find("store", offset, group, version, "the commit's bytes are others")
        level = Level(record["branch_id"], version)
        for change in record["changes"]:
            table, key, text = change["table"], change["key"], change["row"]
            row = store.row(group, level, table, key)
            self.verified.rows += 1
            wanted = None if text is None else text.encode()
            if row is None or row.version != version or row.text != wanted:
                found = "nothing" if row is None else f"version {row.version}: {(row.text or b'deleted')[:200]!r}"
                self._find("store", offset, group, version, f"the row {key!r} of {table!r} is not as written",
                           repr((wanted or b"deleted")[:200]), found)  # fmt: skip

    def _compare_heads(self) -> None:
        if self._store is None:
            return
        for group, chain in self._chains.items():
            head = self._store.head(group)
            if head is not None and head.version > chain.version:
                self._find("store", -1, group, head.version, "the store holds versions that the log does not",
                           str(chain.version), str(head.version))  # fmt: skip
            elif head is not None and head.version == chain.version and head.hash != chain.hash:
                self._find("store", -1, group, head.version, "the head's hash is another",
                           chain.hash.hex(), head.hash.hex())  # fmt: skip

    def _find(
        self, where: str, offset: int, group: str | None, version: int | None, detail: str,
        expected: str | None = None, found: str | None = None,
    ) -> None:  # fmt: skip
        if len(self.verified.findings) < FINDINGS_MAX:
            finding = Finding(where, self._partition, offset, group, version, detail, expected, found)
            self.verified.findings.append(finding)
