"""Who owns which partition, as any node can ask the group's coordinator.

Asked by aiokafka: librdkafka's admin client ends the process where the connection to a coordinator breaks while it is
asked (confluentinc/librdkafka#5397), as it does when a broker dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import KafkaError, for_code

from versolog.schemas.errors import Unavailable
from versolog.streams.security import security

DESCRIBE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0


async def owners(
    settings: Mapping[str, str], group_id: str, topic: str, *, timeout_s: float = DESCRIBE_TIMEOUT_S
) -> dict[int, str]:
    """The advertised URL of the worker that the group has given each partition of `topic` to; `settings` are those of
    the Kafka clients.

    A partition is missing while nobody owns it: no worker runs, or a rebalance is going on. The answer is already old
    when it comes, so who is asked must know for himself whether he owns the partition. Raises `Unavailable` if the
    coordinator doesn't answer in time, as for some seconds after a broker's start.
    """
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings["bootstrap.servers"].split(","), request_timeout_ms=int(timeout_s * 1_000),
        **security(settings),
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            await admin.start()
            (response,) = await admin.describe_consumer_groups([group_id])
    except (KafkaError, OSError, TimeoutError) as error:
        raise Unavailable(f"the owners of {topic} are not known: {error!r}", group=group_id) from error
    finally:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await admin.close()
    found: dict[int, str] = {}
    for group in response.groups:
        code, members = group[0], group[5]
        if code:
            raise Unavailable(f"the owners of {topic} are not known: {for_code(code).__name__}", group=group_id)
        for member in members:
            found |= _assigned(topic, client_id=member[1], assignment=member[4])
    return found


def _assigned(topic: str, *, client_id: str, assignment: bytes) -> dict[int, str]:
    if not assignment:
        return {}
    decoded: Any = ConsumerProtocol.ASSIGNMENT.decode(assignment)
    return {number: client_id for name, numbers in decoded.assignment if name == topic for number in numbers}
