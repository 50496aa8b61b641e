"""A changed byte, wherever it is, is found and named."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import Producer as KafkaProducer

from tests.cluster import Cluster
from tests.conftest import RealBroker
from tests.traffic import COUNTERS, Traffic
from versolog.projections import keys, layout
from versolog.projections.rocks import Memory, Rocks
from versolog.projections.store import Store
from versolog.projections.tail import Ends
from versolog.projections.verify import Finding, Verified, Verifier

SOON_S = 60.0
WAVES = 4
PLACES = 12
"""Entries of each kind that are changed, one at a time."""
FAMILIES = [layout.ROWS, layout.LATEST, layout.COMMITS, layout.REFS, layout.TRANSACTIONS]


@pytest.fixture(scope="module")
def cluster(broker: RealBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One partition with a history of all kinds; its worker has ended."""
    cluster = Cluster(broker.bootstrap, tmp_path_factory.mktemp("verified"), partitions=1)
    cluster.make_topics()
    try:
        cluster.start()
        cluster.owned()
        with cluster.producer() as producer:
            traffic = Traffic(producer)
            for _ in range(WAVES):
                traffic.acknowledge(producer.outcomes(traffic.send_wave(), SOON_S))
        cluster.stop()
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def store(cluster: Cluster, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    return shutil.copytree(cluster.data("w1") / "partition-0", tmp_path / "partition-0")


def verify(cluster: Cluster, store: Path | None, group: str | None = None) -> Verified:
    opened = None if store is None else Store.open(store, read_only=True)
    try:
        verifier = Verifier(0, topics=cluster.topics, codec=cluster.codec(), store=opened, group=group)
        return verifier.run(cluster.kafka, Ends(cluster.kafka))
    finally:
        if opened is not None:
            opened.close()


def entries(store: Path, family: str) -> list[tuple[bytes, bytes]]:
    rocks = Rocks(store, Memory(), read_only=True)
    try:
        return list(rocks.between(family, b"", b"\xff" * 64))
    finally:
        rocks.close()


def put(store: Path, family: str, key: bytes, value: bytes) -> None:
    rocks = Rocks(store, Memory(), read_only=False)
    rocks.put(family, key, value)
    rocks.close()


def changed(value: bytes, random_: random.Random) -> bytes:
    """`value` with one bit turned over, or with a byte where there was none."""
    if not value:
        return b"\1"
    place = random_.randrange(len(value))
    return value[:place] + bytes([value[place] ^ 1 << random_.randrange(8)]) + value[place + 1 :]


def test_what_is_as_it_was_written_has_no_findings(cluster: Cluster, store: Path) -> None:
    verified = verify(cluster, store)
    assert verified.findings == []
    assert verified.rows == len(entries(store, layout.ROWS)) > 100
    assert verified.commits == sum(version for version, _ in verified.heads.values())
    only = verify(cluster, store, group=COUNTERS[0])
    assert only.findings == []
    assert only.heads == {COUNTERS[0]: verified.heads[COUNTERS[0]]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_byte_in_the_store_is_found(cluster: Cluster, store: Path, family: str) -> None:
    random_ = random.Random(family)
    for key, value in random_.sample(entries(store, family), PLACES):
        put(store, family, key, changed(value, random_))
        findings = verify(cluster, store).findings
        put(store, family, key, value)
        assert findings, f"{family} {key!r}: {value[:100]!r}"
        assert {finding.where for finding in findings} == {"store"}
        if family != layout.TRANSACTIONS:
            assert all(finding.group for finding in findings), findings
    assert verify(cluster, store).findings == []


def test_a_newest_row_of_a_version_that_did_not_write_it_is_found(cluster: Cluster, store: Path) -> None:
    """Reads at the head would answer it."""
    group = COUNTERS[0]
    version = verify(cluster, store).heads[group][0]
    older = (
        (key, value) for key, value in entries(store, layout.LATEST) if layout.read_latest(value).version < version
    )
    key, value = next((key, value) for key, value in older if key.startswith(keys.text(group)))
    put(store, layout.LATEST, key, layout.row_value(version, 1, b'{"evil":1}'))
    (found,) = verify(cluster, store).findings
    put(store, layout.LATEST, key, value)
    assert (found.group, found.where) == (group, "store")


def test_a_row_that_the_log_never_wrote_is_found(cluster: Cluster, store: Path) -> None:
    group = COUNTERS[0]
    version = verify(cluster, store).heads[group][0]
    prefix = layout.row_prefix(group, 1, "t") + b"forged\0"
    value = layout.row_value(version, 1, b'{"x":1}')
    put(store, layout.LATEST, prefix, value)
    assert [finding.group for finding in verify(cluster, store).findings] == [group]


@pytest.mark.parametrize("kind", ["tag", "live", "name", "run", "join", "branch"])
def test_a_ref_that_no_commit_made_is_found(cluster: Cluster, store: Path, kind: str) -> None:
    """Reads would resolve it."""
    group = COUNTERS[0]
    key, value = {
        "tag": (layout.tag_key(group, "forged"), keys.number(1)),
        "live": (layout.live_key(group, "forged"), keys.number(1)),
        "name": (layout.name_prefix(group, "forged") + keys.descending(1), b"t" + keys.number(1)),
        "run": (layout.run_key(group, 77, 1), b"b"),
        "join": (layout.join_key(group, 1, 1), keys.number(1)),
        "branch": (layout.branch_key(keys.text(group), 77), entries(store, layout.REFS)[0][1]),
    }[kind]
    put(store, layout.REFS, key, value)
    for only in (None, group):
        (finding,) = verify(cluster, store, only).findings
        assert (finding.where, finding.group) == ("store", group)
        assert "of no commit" in finding.detail
    assert verify(cluster, store, COUNTERS[1]).findings == []


def test_a_log_that_lost_its_end_is_found(cluster: Cluster, store: Path) -> None:
    class Shorter(Ends):
        """As if the last records were not there."""

        def stable(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
            return {place: end - 5 for place, end in super().stable(places).items()}

        def last(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
            return {place: end - 5 for place, end in super().last(places).items()}

    with closing(Store.open(store, read_only=True)) as opened:
        verifier = Verifier(0, topics=cluster.topics, codec=cluster.codec(), store=opened, group=None)
        found = verifier.run(cluster.kafka, Shorter(cluster.kafka)).findings
    lost = [finding.detail for finding in found if "the log has lost records" in finding.detail]
    assert len(lost) == 2, "of commits and of outcomes"


def test_the_command_line_names_what_was_changed(cluster: Cluster, store: Path) -> None:
    key, value = next((k, v) for k, v in entries(store, layout.LATEST) if b'{"n":' in v and COUNTERS[1].encode() in k)
    put(store, layout.LATEST, key, value.replace(b'{"n":', b'{"m":'))
    environment = {"VERSOLOG_BOOTSTRAP": cluster.bootstrap, "VERSOLOG_PREFIX": cluster.prefix}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "versolog", "verify", "--data", str(store.parent), *arguments], check=False,
            capture_output=True, text=True, env={**os.environ, **environment}, timeout=60,
        )  # fmt: skip

    told = run("--json")
    assert told.returncode == 2, told
    (line,) = told.stdout.splitlines()
    finding = json.loads(line)
    assert (finding["where"], finding["group"]) == ("store", COUNTERS[1])
    assert '{"n":' in finding["expected"]
    assert '{"m":' in finding["found"]
    put(store, layout.LATEST, key, value)
    assert run().returncode == 0


# The log


def records(cluster: Cluster, topic: str) -> list[Message]:
    settings = {"group.id": "copy", "enable.auto.commit": False, "isolation.level": "read_committed",
                "auto.offset.reset": "error", "enable.partition.eof": True, "fetch.wait.max.ms": 50}  # fmt: skip
    found = []
    with closing(Consumer({**cluster.kafka, **settings})) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (message := consumer.poll(SOON_S)) is not None:
            if (error := message.error()) is None:
                found.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                return found
    raise AssertionError(f"{topic} was not answered")


def copied(cluster: Cluster, altered: dict[tuple[str, int], bytes | None]) -> Cluster:
    """The cluster's log under another name, with some records (by topic and place) changed or left out."""
    copy = Cluster(cluster.bootstrap, cluster.directory, partitions=1)
    copy.make_topics()
    producer = KafkaProducer({**cluster.kafka, "linger.ms": 50, "message.max.bytes": 1_048_588})
    for name in ("schemas", "commits", "outcomes"):
        for place, message in enumerate(records(cluster, getattr(cluster.topics, name))):
            value = altered.get((name, place), message.value())
            if value is not None:
                producer.produce(getattr(copy.topics, name), value, message.key(), 0)
    producer.flush()
    return copy


def named(findings: list[Finding]) -> set[tuple[str | None, int | None]]:
    return {(finding.group, finding.version) for finding in findings}


def test_a_copied_log_verifies(cluster: Cluster) -> None:
    copy = copied(cluster, {})
    verified = verify(copy, None)
    assert verified.findings == []
    assert verified.heads == verify(cluster, None).heads


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 30))])
def test_a_changed_byte_in_the_log_is_found_and_named(cluster: Cluster, seed: int) -> None:
    random_ = random.Random(seed)
    messages = records(cluster, cluster.topics.commits)
    place = random_.randrange(len(messages))
    value = messages[place].value()
    assert isinstance(value, bytes)
    altered = value[:5] + changed(value[5:], random_)
    findings = verify(copied(cluster, {("commits", place): altered}), None).findings
    assert findings
    assert place in {finding.offset for finding in findings} or any(finding.group for finding in findings)


@pytest.mark.parametrize("missing", [0, 50, -1])
def test_a_missing_commit_is_found_and_named(cluster: Cluster, missing: int) -> None:
    messages = records(cluster, cluster.topics.commits)
    place = range(len(messages))[missing]
    group = (messages[place].key() or b"").decode()
    findings = verify(copied(cluster, {("commits", place): None}), None).findings
    assert group in {name for name, _ in named(findings)}
