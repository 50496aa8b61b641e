"""Serving a restored copy: the same HTTP table API, read-only, beside the live store."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from versolog.projections.copy import open_copy
from versolog.projections.http import app
from versolog.projections.lag import Lag
from versolog.projections.node import Node
from versolog.streams.runtime import HttpServer


async def serve(directory: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve what `replay` made in `directory` until a signal ends it. Raises Misconfigured where it is not whole."""
    manifest, partitions = open_copy(directory)
    node = Node(
        partitions,
        count=manifest.partitions,
        codec=next(iter(partitions.values())).store.codec,
        intake=None,
        owners=_nobody,
        own_url="",
        lag=Lag(partitions),
    )
    http = HttpServer(app(node, metrics=CollectorRegistry()), host, port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, http.stop)
    ready(f"http://{host}:{http.port}")
    try:
        await http.serve()
    finally:
        for partition in partitions.values():
            partition.close()


async def _nobody(*, refresh: bool = False) -> Mapping[int, str]:
    """A copy asks no other node."""
    return {}
