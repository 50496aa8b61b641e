"""Reading the log where Kafka is hurt meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from versolog.projections.tail import Ends
from versolog.schemas.errors import Unavailable

SOON_S = 20.0


def test_the_ends_of_the_log_are_known_again_soon_after_the_broker_was_killed(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker)
    ends, places = Ends(cluster.kafka), [(cluster.topics.commits, 0), (cluster.topics.outcomes, 1)]

    def known() -> bool:
        try:
            return ends.stable(places).keys() == set(places)
        except Unavailable:
            return False

    assert known()
    for _ in range(2):
        own_broker.kill()
        assert not known()
        own_broker.start()
        eventually(known, SOON_S, "Kafka says again how far its topics go")
