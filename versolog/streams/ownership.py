"""Who owns which partition, as any node can ask the group's coordinator."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from versolog.schemas.errors import Unavailable

DESCRIBE_TIMEOUT_S = 5.0


def owners(admin: AdminClient, app_id: str, topic: str, *, timeout_s: float = DESCRIBE_TIMEOUT_S) -> dict[int, str]:
    """The advertised URL of the worker that the group `app_id` has given each partition of `topic` to. Blocks.

    A partition is missing while nobody owns it: no worker runs, or a rebalance is going on. The answer is already old
    when it comes, so who is asked must know for himself whether he owns the partition. Raises `Unavailable` if the
    coordinator doesn't answer in time, as for some seconds after a broker's start.
    """
    try:
        group = admin.describe_consumer_groups([app_id], request_timeout=timeout_s)[app_id].result(timeout_s)
    except (KafkaException, TimeoutError) as error:
        raise Unavailable(f"the owners of {topic} are not known: {error}", group=app_id) from error
    return {
        assigned.partition: member.client_id
        for member in group.members
        if member.assignment is not None
        for assigned in member.assignment.topic_partitions
        if assigned.topic == topic
    }
