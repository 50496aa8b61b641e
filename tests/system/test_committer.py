"""The rules by which an owner commits, with what each is for: a lost answer, a late owner, a stranger who writes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer

from tests.cluster import Cluster
from tests.conftest import RealBroker
from tests.history import LogReader
from tests.owner import Owner, owner
from versolog.projections.rocks import StoreUnusable
from versolog.projections.store import Store
from versolog.schemas.errors import BrokenLog, Misconfigured, Unavailable
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import partition_of
from versolog.streams import committer, participant
from versolog.streams.chain import intent_hash
from versolog.streams.decide import Asked, Decision, decision_on, is_lengthy
from versolog.streams.pace import Pace
from versolog.streams.state import Level, State
from versolog.streams.transaction import Transaction

GROUP = "g"
TAKE_OVERS = 8
SOON_S = 30.0
REST_S = 2.0
"""Time enough to send and to read something in a rest."""

Send = Callable[..., None]


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], broker: RealBroker) -> Cluster:
    """One partition, no worker: the tests own it themselves."""
    return new_cluster(broker, partitions=1)


def count(transaction_id: str, amount: int = 1) -> Transaction:
    return Transaction(GROUP, id=transaction_id).add("t", "count", {"n": amount})


@pytest.fixture
def send(cluster: Cluster) -> Iterator[Send]:
    """Into the log, without waiting for outcomes."""
    with cluster.producer() as producer:

        def accepted(*transactions: Transaction) -> None:
            producer.send_many(transactions)
            producer.flush()

        yield accepted


def log_adds_up(cluster: Cluster, total: int) -> None:
    history = LogReader(cluster).history()
    history.check()
    assert json.loads(history.rows(GROUP)["t", "count"]) == {"n": total}


@asynccontextmanager
async def resting(cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Owner, int]]:
    """An owner that has committed `a`, has taken in `b`, at the offset told, and rests before it commits that."""
    monkeypatch.setattr(Pace, "rest_s", lambda *_, awaited: REST_S)
    send(count("a"))
    async with owner(cluster) as one:
        start = await one.decide_all()
        send(count("b"))
        await one.take(start)
        yield one, start


def fails(*asked: object) -> object:
    """In place of a question to the store."""
    raise Unavailable("the store failed on purpose", code="store-failed")


class LosesTheAnswer(KafkaProducer):
    """Commits, and then says that it does not know."""

    def commit_transaction(self, *arguments: Any) -> None:
        super().commit_transaction(*arguments)
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))


class NeverCommits(KafkaProducer):
    """Says that it does not know, and has not."""

    def commit_transaction(self, *arguments: Any) -> None:
        self.flush()
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.mark.parametrize("kind", [LosesTheAnswer, NeverCommits])
def test_after_a_lost_commit_answer_the_log_is_asked(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch, kind: type[KafkaProducer]
) -> None:
    async def run() -> None:
        async with owner(cluster) as one:
            with monkeypatch.context() as broken:
                broken.setattr(committer, "Producer", kind)
                start = await one.recover()
                await one.take(start)
                # Nothing else comes, so nobody would be told by `take`.
                assert isinstance(await one.failed(), Unavailable)
            await one.decide_all()
            outcome = one.outcome("a")
            assert outcome is not None
            assert (outcome.committed, outcome.version) == (True, 1)

    send(count("a"), count("b"))
    asyncio.run(run())
    log_adds_up(cluster, 2)


def test_who_waits_for_an_outcome_gets_it_from_the_recovery(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> Outcome:
        async with owner(cluster) as one:
            with monkeypatch.context() as broken:
                broken.setattr(committer, "Producer", LosesTheAnswer)
                start = await one.recover()
                waiting = one.partition.expect_outcome("a", intent_hash(tx.intent()))
                await one.take(start)
                await one.failed()
            await one.recover()
            one.partition.caught_up()
            return await asyncio.wait_for(waiting, 1)

    tx = count("a")
    send(tx)
    assert asyncio.run(run()).committed


def test_a_batch_that_is_let_go_of_while_it_rests_is_decided_again(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it may be committed: its checkpoint alone would leave it out for ever."""

    async def run() -> None:
        async with resting(cluster, send, monkeypatch) as (one, start):
            await asyncio.sleep(0.1)
            assert one.outcome("b") is None, "it rests"
            assert await one.recover() == start
            await one.take(start)
            await one.stored(start + 1)
            assert one.outcome("b") is not None

    asyncio.run(run())
    log_adds_up(cluster, 2)


def test_it_rests_no_longer_once_the_batch_is_full(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deciding waits then."""
    monkeypatch.setattr(Pace, "rest_s", lambda *_, awaited: 10 * SOON_S)
    monkeypatch.setattr(committer, "BATCH_TRANSACTIONS_MAX", 3)

    async def run() -> None:
        async with owner(cluster) as one:
            send(count("a"))
            start = await one.decide_all()
            send(*(count(transaction_id) for transaction_id in "bcd"))
            await one.take(start)
            await one.stored(start + 3)

    asyncio.run(run())
    log_adds_up(cluster, 4)


def test_how_long_it_rests_goes_by_how_many_are_awaited_here(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def rest_s(*_: object, awaited: int) -> float:
        told.append(awaited)
        return 0.0

    monkeypatch.setattr(Pace, "rest_s", rest_s)

    async def run() -> None:
        async with owner(cluster) as one:
            send(count("a"))
            start = await one.decide_all()
            hash_ = bytes(32)
            outcome = one.partition.expect_outcome("b", hash_)
            send(count("b"))
            await one.take(start)
            await one.stored(start + 1)
            one.partition.expect_no_more("b", hash_, outcome)

    asyncio.run(run())
    assert (told[0], told[-1]) == (0, 1)


def test_nothing_is_committed_after_deciding_failed_midway(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The participant may have passed what no batch holds."""

    async def run() -> None:
        async with resting(cluster, send, monkeypatch) as (one, start):
            send(count("c"))
            with monkeypatch.context() as broken:
                broken.setattr(one.partition, "outcomes", fails)
                with pytest.raises(Unavailable, match="on purpose"):
                    await one.take(start + 1)
            await asyncio.sleep(1.5 * REST_S)
            assert await one.recover() == start
            await one.take(start)
            await one.stored(start + 2)

    asyncio.run(run())
    log_adds_up(cluster, 3)


def test_a_store_that_fails_refuses_nothing(cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker would decide otherwise, and a refusal stands for ever."""

    async def run() -> None:
        async with owner(cluster) as one:
            start = await one.decide_all()
            send(count("b"))
            with monkeypatch.context() as broken:
                broken.setattr(one.partition.store, "row", fails)
                broken.setattr(one.partition.store, "rows", fails)
                with pytest.raises(Unavailable, match="on purpose"):
                    await one.take(start)
            await one.decide_all()
            outcome = one.outcome("b")
            assert outcome is not None
            assert outcome.committed

    send(count("a"))
    asyncio.run(run())
    log_adds_up(cluster, 2)


def test_a_store_that_can_not_be_read_is_made_anew(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often that fails first, and whether it is decided or followed next."""
    damaged = StoreUnusable("a file of it is damaged")

    async def run() -> None:
        async with owner(cluster) as one:
            await one.decide_all()
            before = one.partition.store
            one.partition.broke_off(damaged)
            with monkeypatch.context() as full:
                full.setattr(one.partition, "_opened", no_room)
                for _ in range(2):
                    with pytest.raises(Misconfigured, match="full"):
                        await one.recover()
            await one.decide_all()
            assert one.partition.store is not before
            assert one.outcome("a") is not None
            made = one.partition.store
            await one.recover()
            assert one.partition.store is made, "once is enough"
            await one.committer.stop()
            one.partition.broke_off(damaged)
            await asyncio.to_thread(one.partition.reconcile)
            assert one.partition.store is not made
            assert one.partition.store.next_commit_offset == 0

    send(count("a"))
    asyncio.run(run())


def no_room() -> Store:
    raise Misconfigured("the disk is full")


class Dawdles(KafkaProducer):
    """Commits only once it is told to."""

    begun, released = threading.Event(), threading.Event()

    def commit_transaction(self, *arguments: Any) -> None:
        self.begun.set()
        assert self.released.wait(SOON_S)
        super().commit_transaction(*arguments)


def test_a_commit_on_its_way_is_waited_for_whoever_gave_up_waiting(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would go on beside the next owner's, or the follower's."""
    monkeypatch.setattr(committer, "STOP_TIMEOUT_S", 0.1)

    async def run() -> None:
        async with owner(cluster) as one:
            with monkeypatch.context() as slow:
                slow.setattr(committer, "Producer", Dawdles)
                await one.take(await one.recover())
                assert await asyncio.to_thread(Dawdles.begun.wait, SOON_S)
            again = asyncio.create_task(one.recover())
            await asyncio.sleep(0.1)
            again.cancel()
            await asyncio.wait({again})
            stopping = asyncio.create_task(one.committer.stop())
            await asyncio.sleep(0.5)
            assert not stopping.done()
            Dawdles.released.set()
            await stopping
            assert one.outcome("a") is not None

    send(count("a"))
    asyncio.run(run())
    log_adds_up(cluster, 1)


def test_what_is_in_the_log_and_not_in_the_store_yet_is_known(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower may read it, and tell of it, before its owner has stored it: reads of the group have to wait."""

    async def run() -> None:
        async with owner(cluster) as one:
            start = await one.recover()
            stored = threading.Event()
            apply = one.partition.apply
            monkeypatch.setattr(one.partition, "apply", lambda written: stored.wait(SOON_S) and apply(written))
            await one.take(start)
            assert await asyncio.to_thread(in_the_log, cluster)
            assert one.partition.store.head(GROUP) is None
            batch = one.committer.committing(GROUP)
            assert batch is not None
            assert one.committer.committing("other") is None
            assert one.committer.committing(None) is batch
            assert one.committer.deciding("a") is batch
            assert one.committer.deciding("b") is None
            stored.set()
            assert await one.partition.until(lambda: one.committer.committing(GROUP) is not batch, SOON_S)
            assert one.partition.store.head(GROUP) is not None

    send(count("a"))
    asyncio.run(run())


def in_the_log(cluster: Cluster) -> bool:
    """Whether the log comes to hold a committed change of the group, soon."""
    deadline = time.monotonic() + SOON_S
    while not LogReader(cluster).history().commits[GROUP]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_an_owner_that_lost_its_partition_commits_nothing_more(cluster: Cluster, send: Send) -> None:
    """As after a pause of the process: it decides what the other has decided already."""

    async def run() -> None:
        async with owner(cluster, "zombie") as zombie, owner(cluster, "new") as new:
            start = await zombie.recover()
            send(count("a"))
            await new.decide_all()
            await zombie.take(start)
            assert isinstance(await zombie.failed(), Unavailable)
            assert zombie.outcome("a") is None
            with pytest.raises(Unavailable):
                await zombie.take(start)
            # Given the partition again, it reads what happened meanwhile.
            assert await zombie.recover() == 1
            assert zombie.outcome("a") == new.outcome("a")

    asyncio.run(run())
    log_adds_up(cluster, 1)


def test_what_an_owner_had_under_way_ends_before_the_next_one_reads(cluster: Cluster, send: Send) -> None:
    """Fence first, then read: the other way round the last batch of the old owner would be decided twice."""

    async def run() -> None:
        async with owner(cluster, "old") as old, owner(cluster, "new") as new:
            for number in range(TAKE_OVERS):
                send(count(f"{number}"))
                start = await old.recover()
                committing = asyncio.create_task(old.take(start))
                await asyncio.sleep(number * 0.002)  # at another moment of the commit each time
                await new.decide_all()
                await committing

    asyncio.run(run())
    log_adds_up(cluster, TAKE_OVERS)


class Slowly:
    """Decides as ever, but what may take long takes until it is `released`, and fails then if it shall."""

    failure: Exception | None = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        monkeypatch.setattr(participant, "decision_on", self)

    def __call__(self, state: State, asked: Asked, partition: int, partitions: int, floor: int) -> Decision:
        if is_lengthy(asked):
            self.begun.set()
            assert self.released.wait(SOON_S), "what is on another group waits for a merge"
            if self.failure is not None:
                raise self.failure
        return decision_on(state, asked, partition, partitions, floor)


def merge(cluster: Cluster) -> list[Transaction]:
    """A merge, one transaction behind it on the same group, and one on another group of the partition."""
    other = next(name for name in map("other-{}".format, range(100)) if partition_of(name, cluster.partitions) == 0)
    return [
        Transaction(GROUP, id="main").put("t", "main", {"n": 1}),
        Transaction(GROUP, id="branch").operation("create-branch", name="plan"),
        Transaction(GROUP, id="planned", branch="plan").put("t", "planned", {"n": 1}),
        Transaction(GROUP, id="merge").operation("merge", source="plan"),
        count("after"),
        Transaction(other, id="other").put("t", "k", {"n": 1}),
    ]


def test_a_merge_holds_its_own_group_and_all_others_go_on(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = Slowly(monkeypatch)

    async def run() -> None:
        async with owner(cluster) as one:
            await one.take(await one.recover())
            assert await one.partition.until(lambda: one.outcome("other") is not None, SOON_S)
            assert one.outcome("planned") is not None
            assert one.outcome("merge") is one.outcome("after") is None
            slowly.released.set()
            assert await one.partition.until(lambda: one.outcome("after") is not None, SOON_S)
            versions = [one.outcome(tx.id) for tx in merge(cluster)]
            assert [outcome.version for outcome in versions if outcome is not None] == [1, 2, 3, 4, 5, 1]

    send(*merge(cluster))
    asyncio.run(run())


def test_a_batch_that_a_merge_has_cut_is_known_as_a_whole(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the merge looks at is a layer of its own, below what is decided beside it."""
    slowly, stored = Slowly(monkeypatch), threading.Event()

    async def run() -> None:
        async with owner(cluster) as one:
            start = await one.recover()
            apply = one.partition.apply
            monkeypatch.setattr(one.partition, "apply", lambda written: stored.wait(SOON_S) and apply(written))
            await one.take(start)
            assert await asyncio.to_thread(in_the_log, cluster)
            assert one.partition.store.head(GROUP) is None
            assert one.committer.committing(GROUP) is not None
            stored.set()
            slowly.released.set()
            assert await one.partition.until(lambda: one.outcome("after") is not None, SOON_S)
            assert one.committer.committing(GROUP) is None

    send(*merge(cluster))
    asyncio.run(run())


def test_a_merge_that_can_not_be_looked_at_ends_what_waits_for_room_behind_it(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = Slowly(monkeypatch)
    monkeypatch.setattr(committer, "UNDECIDED_MAX", 2)  # the merge, and what comes after it

    async def run() -> None:
        async with owner(cluster) as one:
            start = await one.recover()
            await one.take(start)
            send(count("more"))
            more = asyncio.create_task(one.take(start + len(merge(cluster))))
            await asyncio.sleep(0.2)
            assert not more.done(), "it waits for room"
            slowly.failure = Unavailable("the store failed on purpose", code="store-failed")
            slowly.released.set()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(more, SOON_S)
            assert await one.failed() is slowly.failure
            slowly.failure = None
            await one.decide_all()
            assert await one.partition.until(lambda: one.outcome("more") is not None, SOON_S)

    send(*merge(cluster))
    asyncio.run(run())
    log_adds_up(cluster, 2)


def test_an_owner_that_loses_its_partition_while_a_merge_is_decided_leaves_the_merge_to_the_next(
    cluster: Cluster, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = Slowly(monkeypatch)

    async def run() -> None:
        async with owner(cluster, "old") as old, owner(cluster, "new") as new:
            await old.take(await old.recover())
            assert await old.partition.until(lambda: old.outcome("other") is not None, SOON_S)
            await old.committer.stop()
            slowly.released.set()
            assert await new.recover() == 3, "the merge, which is the first that is undecided"
            await new.decide_all()
            assert await new.partition.until(lambda: new.outcome("after") is not None, SOON_S)
            assert new.outcome("merge") is not None
            assert old.outcome("merge") is None

    send(*merge(cluster))
    asyncio.run(run())


def test_a_refusal_before_a_crash_stays_a_refusal(cluster: Cluster, send: Send) -> None:
    refused = Transaction(GROUP, id="refused").put("t", "k", {"x": 1}).expect("t", "count", 1)

    async def run() -> None:
        async with owner(cluster, "first") as first:
            await first.decide_all()
            outcome = first.outcome("refused")
            assert outcome is not None
            assert outcome.code == "version-mismatch"
        send(count("a"), refused)  # now the row is as it was wanted
        async with owner(cluster, "second") as second:
            assert await second.recover() == 1
            await second.decide_all()
            assert second.outcome("refused") == outcome
            assert second.partition.store.row(GROUP, Level(branch=1, upto=9), "t", "k") is None

    send(refused)
    asyncio.run(run())
    history = LogReader(cluster).history()
    history.check()
    assert [outcome.code for outcome in history.outcomes["refused"]] == ["version-mismatch"] * 2


def test_an_owner_waits_for_the_end_of_a_strangers_transaction(cluster: Cluster, send: Send) -> None:
    """What stands behind its first record can't be seen, and may be the partition's own outcomes."""

    async def run() -> None:
        async with owner(cluster, "first") as first:
            await first.recover()
            stranger.produce(cluster.topics.outcomes, b"held open", partition=0)
            stranger.flush()
            send(count("a"))
            await first.take(0)
            failure = await first.failed()
            assert isinstance(failure, BrokenLog)
            assert "another writer" in str(failure)
        async with owner(cluster, "second") as second:
            with pytest.raises(Unavailable, match="has a transaction open"):
                await second.recover()
            stranger.abort_transaction(10)
            await second.decide_all()

    stranger = KafkaProducer({**cluster.kafka, "transactional.id": "stranger"})
    stranger.init_transactions(10)
    stranger.begin_transaction()
    asyncio.run(run())
    log_adds_up(cluster, 1)


def test_an_owner_lets_go_at_once_while_the_broker_is_away(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker, partitions=1)

    async def run() -> float:
        async with owner(cluster) as one:
            start = await one.recover()
            records = await asyncio.to_thread(one.read, start)
            own_broker.kill()
            await one.committer.take(records)
            begun = time.monotonic()
            await one.committer.stop()
            return time.monotonic() - begun

    with cluster.producer() as producer:
        producer.send(count("a"))
    assert asyncio.run(run()) < committer.STOP_TIMEOUT_S + committer.ABORT_TIMEOUT_S + 2 * committer.TURN_S
