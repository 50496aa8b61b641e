"""What the log holds, read with a plain consumer and checked by this file's own arithmetic: no store, no verifier."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from fastavro import schemaless_reader

from tests.cluster import Cluster
from versolog.schemas.outcome import Outcome

SILENT_S = 30.0


@dataclass
class Commit:
    """One commit of a group, its pieces put together."""

    record: dict[str, Any]
    """Of the last piece."""
    hash: bytes
    changes: list[dict[str, Any]]


@dataclass
class History:
    """Commits by group in the order of the log, and every outcome that was ever written for an id."""

    commits: dict[str, list[Commit]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    poison: list[Outcome] = field(default_factory=list)
    """Outcomes of records that had no id."""
    batches: int = 0

    def rows(self, group: str, upto: int | None = None) -> dict[tuple[str, str], str]:
        """The rows of a group with one branch, as JSON, by the changes alone."""
        rows: dict[tuple[str, str], str] = {}
        for commit in self.commits[group][:upto]:
            for change in commit.changes:
                place = change["table"], change["key"]
                if change["row"] is None:
                    rows.pop(place, None)
                else:
                    rows[place] = change["row"]
        return rows

    def check(self, acknowledged: Iterable[Outcome] = ()) -> None:
        """Versions without gaps, an unbroken chain, one outcome for each id, and all that was acknowledged is there."""
        self._check_chains()
        self._check_outcomes()
        for outcome in acknowledged:
            told = self.outcomes[outcome.transaction_id]
            known = [_told_by_any(one, told) for one in told]
            assert _told_by_any(outcome, told) in known, f"acknowledged and not in the log: {outcome}; there is {known}"

    def _check_chains(self) -> None:
        for group, commits in self.commits.items():
            versions = [commit.record["version"] for commit in commits]
            assert versions == list(range(1, len(versions) + 1)), f"{group}: {versions}"
            times = [commit.record["committed_at"] for commit in commits]
            assert times == sorted(times), f"{group}: committed_at falls"
            offsets = [commit.record["transaction_offset"] for commit in commits]
            assert offsets == sorted(set(offsets)), f"{group}: a transaction has two commits, or they are out of order"

    def _check_outcomes(self) -> None:
        made = Counter(commit.record["transaction_id"] for commits in self.commits.values() for commit in commits)
        for transaction_id, told in self.outcomes.items():
            first, *again = [_told_by_any(outcome, told) for outcome in told if outcome.code != "id-reused"]
            assert all(outcome == first for outcome in again), f"{transaction_id} has several ends: {told}"
            written = [part for part in first.parts if part.version]
            assert made.pop(transaction_id, 0) == len(written), f"{transaction_id}: {first}"
            assert bool(written) <= first.committed, f"{transaction_id} was refused and has commits"
            for part in written:
                commit = self.commits[part.group][part.version - 1]
                assert (commit.hash, commit.record["transaction_id"]) == (part.hash, transaction_id)
        assert not made, f"commits without an outcome: {made}"


def _told_by_any(outcome: Outcome, told: Iterable[Outcome]) -> Outcome:
    """What participants tell alike: each knows the hashes of its own commits, and its own offset."""
    return replace(outcome.joined(told), transaction_offset=None)


class LogReader:
    """Reads the topics of a cluster as any Avro-aware consumer could: schemas by id, bodies with fastavro."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._codec = cluster.codec()
        self._fingerprints: dict[int, bytes] = {}

    def history(self) -> History:
        """All that is committed up to now. Fails where a hash or a piece is not as it has to be."""
        history = History()
        self._read_commits(history)
        for message in self._records(self._cluster.topics.outcomes):
            record, _ = self._read(message)
            history.batches += record["checkpoint"] is not None
            for outcome in map(Outcome.from_avro, record["results"]):
                of_id = history.outcomes[outcome.transaction_id] if outcome.transaction_id else history.poison
                of_id.append(outcome)
        return history

    def _read_commits(self, history: History) -> None:
        hashes: dict[str, bytes] = defaultdict(lambda: bytes(32))
        unfinished: dict[str, Commit] = {}
        for message in self._records(self._cluster.topics.commits):
            record, hash_ = self._read(message)
            group, piece = record["group"], record["piece"]
            assert message.key() == group.encode()
            assert record["previous_hash"] == hashes[group], f"the chain of {group} breaks at {record['version']}"
            hashes[group] = hash_
            commit = unfinished.pop(group, None)
            if commit is None:
                assert piece == 1, f"{group} version {record['version']} begins with piece {piece}"
                commit = Commit(record, hash_, [])
            else:
                assert (record["version"], piece) == (commit.record["version"], commit.record["piece"] + 1)
            commit.record, commit.hash = record, hash_
            commit.changes += record["changes"]
            if piece == record["pieces"]:
                history.commits[group].append(commit)
            else:
                unfinished[group] = commit
        assert not unfinished, "a commit has only some of its pieces"

    def _read(self, message: Message) -> tuple[dict[str, Any], bytes]:
        """The record, and its hash: SHA-256 of a zero byte, the SHA-256 of its schema's text, and its body."""
        value = message.value()
        assert isinstance(value, bytes)
        assert value[0] == 0
        schema_id, body = int.from_bytes(value[1:5], "big"), value[5:]
        schema = self._codec.schema_of(schema_id)
        fingerprint = self._fingerprints.get(schema_id) or hashlib.sha256(schema.text.encode()).digest()
        self._fingerprints[schema_id] = fingerprint
        record = schemaless_reader(io.BytesIO(body), schema.parsed, None)
        assert isinstance(record, dict)
        return record, hashlib.sha256(b"\0" + fingerprint + body).digest()

    def _records(self, topic: str) -> Iterator[Message]:
        settings = {"group.id": "history", "enable.auto.commit": False, "isolation.level": "read_committed",
                    "auto.offset.reset": "error", "enable.partition.eof": True, "fetch.wait.max.ms": 50}  # fmt: skip
        with closing(Consumer({**self._cluster.kafka, **settings})) as consumer:
            open_ = set(range(self._cluster.partitions))
            consumer.assign([TopicPartition(topic, number, 0) for number in open_])
            while open_:
                first = consumer.poll(SILENT_S)
                assert first is not None, f"{topic} was silent for {SILENT_S:g} s"
                for message in [first, *consumer.consume(5_000, 0)]:
                    if (error := message.error()) is None:
                        yield message
                    else:
                        assert error.code() == KafkaError._PARTITION_EOF, error
                        open_.discard(message.partition() or 0)
