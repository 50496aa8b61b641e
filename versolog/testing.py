"""For the tests of services that use versolog: a real Kafka, as long as the test needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from versolog.broker import Broker


@contextmanager
def embedded_broker(data: Path | None = None) -> Iterator[Broker]:
    """A running broker on a free port, stopped at the end. Without `data` it begins empty and leaves nothing behind.

    Needs `pip install 'versolog[broker]'`. The first use on a machine downloads Apache Kafka.
    """
    with (
        tempfile.TemporaryDirectory(prefix="versolog-broker-") if data is None else nullcontext(str(data)) as directory,
        Broker(Path(directory)) as broker,
    ):
        yield broker
