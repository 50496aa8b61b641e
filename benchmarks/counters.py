"""A counter for each key, exactly once, from a full topic of one partition: versolog beside Quix Streams and Faust.

Each of them updates one state and writes one output for each event: versolog's state is a row of a group, and its
output the commit. All are timed alike, from the first output to the last by the broker's clock, so that starting is
not counted; and each output is held against the events before.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import orjson
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.bench import Bench
from benchmarks.logs import READ_AT_ONCE, REQUEST_TIMEOUT_S, Log, check, fill, make, reading
from benchmarks.machine import cpu_s
from benchmarks.measured import Result, Speed, WrongResultError, compared, told
from benchmarks.peers import DIRECTORY, python_of_peers
from benchmarks.workloads import Workload
from versolog.schemas.topics import Topics
from versolog.streams.transaction import Transaction

KEYS = 100
COUNT, QUIX_COUNT, FAUST_COUNT = 60_000, 60_000, 5_000
"""Faust takes a minute for what the others do in seconds."""
TARGET_PER_S = 25_000.0
QUIX, FAUST = "Quix Streams, exactly-once", "Faust, exactly_once"
RATIO_TARGETS = {QUIX: 1.0, FAUST: 20.0}
ALL_WITHIN_S = 240.0
STOP_WITHIN_S = 10.0


class Peer(NamedTuple):
    """A stream processor, how its program is run, and how many events it is given."""

    name: str
    command: Sequence[str]
    events: int


class Output(NamedTuple):
    """What a processor wrote, and how fast."""

    speed: Speed
    records: Sequence[tuple[bytes, bytes]]
    """Keys and values in the order of the log."""


def measure(bench: Bench) -> Iterator[Result]:
    """All of them in turn in each round, on the same broker."""
    peers = _peers(bench)
    ours: list[Speed] = []
    theirs: dict[str, list[Speed]] = {peer.name: [] for peer in peers}
    for number in bench.rounds("counters beside other stream processors"):
        ours.append(_versolog(bench, number))
        for peer in peers:
            theirs[peer.name].append(_peer(bench, peer, number))
        others = ", ".join(f"{name} {told(speeds[-1])}" for name, speeds in theirs.items())
        bench.say(f"  versolog {told(ours[-1])}, {others}")
    checked = "each event is counted once: the outputs of a key are 1, 2, 3 and so on to the number of its events"
    yield compared("counters, one partition", ours, checked, theirs, TARGET_PER_S, RATIO_TARGETS)


def _peers(bench: Bench) -> list[Peer]:
    peers = []
    if quix := python_of_peers("quixstreams"):
        peers.append(Peer(QUIX, [quix, str(DIRECTORY / "quix_counters.py")], QUIX_COUNT))
    else:
        bench.say("Quix Streams is left out: it is not installed (make bench does that)")
    return [*peers, Peer(FAUST, [sys.executable, str(DIRECTORY / "faust_counters.py")], FAUST_COUNT)]


def _versolog(bench: Bench, number: int) -> Speed:
    count = bench.sizes.of(COUNT)
    added = (Transaction("counters", author="bench").add("counts", _key(nth), {"n": 1}) for nth in range(count))
    workload = Workload("counters", list(added))
    log = Log(bench.bootstrap, Topics(f"counters-{number}."), 1, count)
    make(log, fsync=bench.sizes.fsync)
    fill(log, workload.transactions)
    with bench.worker(log) as worker:
        output = _outputs(log, log.topics.commits, worker.pid)
        worker.ready()
        rows = orjson.loads(worker.get(f"/v1/groups/counters/tables/counts/rows?limit={KEYS}"))["rows"]
    check(log, workload)
    if {row["key"]: row["row"]["n"] for row in rows} != Counter(map(_key, range(count))):
        raise WrongResultError("versolog's counters are not the number of events")
    bench.forget(log)
    return output.speed


def _peer(bench: Bench, peer: Peer, number: int) -> Speed:
    name = f"peer-{peer.name.partition(' ')[0].rstrip(',').lower()}-{number}"
    log = Log(bench.bootstrap, Topics(f"{name}."), 1, peer.events)
    events, counts = f"{name}.events", f"{name}.counts"
    _make(bench.bootstrap, events, counts)
    _send(bench.bootstrap, events, peer.events)
    directory = bench.scratch / name
    directory.mkdir()
    with (directory / "log").open("wb") as told_there:
        command = [*peer.command, bench.bootstrap, events, counts, str(directory)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told_there, stderr=told_there)
    try:
        output = _outputs(log, counts, process.pid)
    except WrongResultError as wrong:
        raise WrongResultError(f"{peer.name}: {wrong}\n{(directory / 'log').read_text()[-2_000:]}") from wrong
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _check(peer, output)
    return output.speed


def _check(peer: Peer, output: Output) -> None:
    counted: Counter[str] = Counter()
    for key, value in output.records:
        counted[name := key.decode()] += 1
        if orjson.loads(value) != {"n": counted[name]}:
            raise WrongResultError(f"{peer.name}: output {counted[name]} of {name} is {value!r}")
    if counted != Counter(map(_key, range(peer.events))):
        raise WrongResultError(f"{peer.name}: {counted} is not the number of events")


def _outputs(log: Log, topic: str, pid: int) -> Output:
    """What `pid` writes into `topic`, a record for each of the log. Raises WrongResultError where it takes too long."""
    count = log.records
    found: list[tuple[bytes, bytes]] = []
    times_ms: list[int] = []
    begun_cpu_s, deadline = 0.0, time.monotonic() + ALL_WITHIN_S
    with reading(log, topic) as consumer:
        while len(found) < count:
            if time.monotonic() > deadline:
                raise WrongResultError(f"{len(found):,} of {count:,} outputs within {ALL_WITHIN_S:g} s")
            for message in consumer.consume(READ_AT_ONCE, 0.2):
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                begun_cpu_s = begun_cpu_s or cpu_s(pid)
                found.append((cast(bytes, message.key()), cast(bytes, message.value())))
                times_ms.append(message.timestamp()[1])
    # What was written together with the first was on its way before the clock starts.
    timed = sum(time_ms > times_ms[0] for time_ms in times_ms)
    if not timed:
        raise WrongResultError("all outputs came at once; measure more")
    per_s = timed / (times_ms[-1] - times_ms[0]) * 1_000
    return Output(Speed(per_s, (cpu_s(pid) - begun_cpu_s) / count * 1e6), found)


def _make(bootstrap: str, events: str, counts: str) -> None:
    config = {"message.timestamp.type": "LogAppendTime"}
    topics = [NewTopic(name, 1, 1, config=config) for name in (events, counts)]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics(topics).values():
        made.result(REQUEST_TIMEOUT_S)


def _send(bootstrap: str, events: str, count: int) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
    )
    for nth in range(count):
        producer.produce(events, b'{"n":1}', _key(nth).encode())
    if producer.flush(REQUEST_TIMEOUT_S):
        raise WrongResultError("Kafka did not take all events")


def _key(nth: int) -> str:
    return f"counter-{nth % KEYS:03}"
