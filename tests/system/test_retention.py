"""Old transactions go from the log; what was decided stays, and so does what is not decided yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.cluster import Cluster
from tests.conftest import RealBroker
from tests.owner import owner
from versolog.projections.retention import delete_decided
from versolog.projections.tail import Ends
from versolog.streams.participant import settled_at
from versolog.streams.transaction import Transaction

LATER_MS = 3_600_000
SOON_S = 20.0


def test_decided_transactions_are_deleted_once_they_are_old(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    cluster = new_cluster(broker, partitions=1)
    ends, topic = Ends(cluster.kafka), cluster.topics.transactions
    now_ms = int(time.time() * 1000)

    def delete(decided: int, before_ms: int) -> int:
        """The first offset that is there afterwards."""
        with ThreadPoolExecutor(1) as aside:
            deleting = aside.submit(delete_decided, cluster.kafka, ends, topic, {0: decided}, before_ms)
            deleting.result(SOON_S)
        return ends.first([(topic, 0)])[topic, 0]

    async def decided() -> int:
        async with owner(cluster) as one:
            await one.decide_all()
            found = one.outcome("t-0")
            assert found is not None
            assert (found.committed, found.transaction_offset) == (True, 0), "an id has its first outcome"
            return settled_at(one.partition.checkpoint).offset

    with cluster.producer() as producer:
        for number in range(3):
            producer.send(Transaction("a", id=f"t-{number}").put("t", "k", {"n": number}))
        producer.flush()
        assert asyncio.run(decided()) == 3
        producer.send(Transaction("a", id="t-3").put("t", "k", {"n": 3}))
        producer.flush()
        assert delete(3, now_ms - LATER_MS) == 0, "none is so old"
        assert delete(3, now_ms + LATER_MS) == 3, "what is not decided stays"
        producer.send(Transaction("a", id="t-0").put("t", "k", {"n": 0}))
        producer.flush()
        assert asyncio.run(decided()) == 5
    assert cluster.replay().commits == 4, "the log of commits is whole"
