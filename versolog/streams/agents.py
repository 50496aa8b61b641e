"""The Faust app: its one agent takes whole fetched batches and hands each to its partition's lane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import faust
from faust.app.base import BootStrategy as FaustBootStrategy
from faust.tables.manager import TableManager
from faust.types import TP

from versolog.streams.lanes import Fetched, Lanes
from versolog.streams.transport import (
    BatchConsumer,
    BatchSchema,
    BatchTransport,
    Fetching,
    Membership,
    broker_urls,
)

COMMIT_INTERVAL_S = 3.0


class NoTables(TableManager):
    """Faust's tables are not used, and needn't be waited for."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class WorkerApp(faust.App):
    """A Faust app that consumes and does nothing else: no producer, no web pages, no directory of its own."""

    mundane_level = "debug"

    class BootStrategy(FaustBootStrategy):
        enable_kafka_producer = False
        enable_web = False

    def _create_directories(self) -> None: ...


def connected(app: faust.App) -> bool:
    """False while the group's coordinator is out of reach; the app itself then waits for it."""
    return cast(BatchConsumer, app.consumer).connected


def worker_app(
    *,
    app_id: str,
    bootstrap: str,
    security: Mapping[str, Any],
    transactions_topic: str,
    advertised_url: str,
    lanes: Lanes,
    membership: Membership,
    fetching: Fetching,
) -> faust.App:
    """The app of one worker: group `app_id` shares out the partitions of `transactions_topic`, batches go to `lanes`.

    `security` is as `security.security` makes it. `advertised_url` is the worker's client id in the group, by which
    others find a partition's owner. A topic whose partitions must come to the same workers needs only an agent of its
    own here: partitions are shared out by number.
    """
    app = WorkerApp(
        app_id,
        broker=broker_urls(bootstrap),
        broker_client_id=advertised_url,
        canonical_url=advertised_url,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_session_timeout=membership.session_timeout_s,
        broker_heartbeat_interval=membership.heartbeat_interval_s,
        broker_rebalance_timeout=membership.rebalance_timeout_s,
        broker_max_poll_interval=membership.poll_interval_max_s,
        broker_max_poll_records=fetching.records_max,
        consumer_max_fetch_size=fetching.partition_bytes_max,
        processing_guarantee="at_least_once",
        TableManager=NoTables,
        stream_wait_empty=False,  # lanes outlive rebalances
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
    )
    app.transport = BatchTransport(
        app,
        bootstrap=bootstrap,
        security=security,
        topic=transactions_topic,
        lanes=lanes,
        membership=membership,
        fetching=fetching,
    )
    transactions = app.topic(transactions_topic, schema=BatchSchema(), acks=False)

    @app.agent(transactions, name="decide")
    async def decide(fetches: faust.StreamT[list[Fetched]]) -> None:
        async for fetch in fetches:
            for fetched in fetch:
                lanes.take(fetched)

    async def assign(_: faust.App, assigned: set[TP], **_signal: Any) -> None:
        partitions = {tp.partition for tp in assigned if tp.topic == transactions_topic}
        lanes.assign(partitions, cast(BatchConsumer, app.consumer))

    cast(Any, app.on_partitions_assigned).connect(assign)
    return app
