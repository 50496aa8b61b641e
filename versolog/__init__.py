"""versolog: an event-sourced, versioned, transactional table store on Apache Kafka.

What a service needs stands here: `Producer` writes straight into Kafka, `Client` goes over HTTP, both take the same
`Transaction` and answer with the same `Outcome` and the same errors.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from versolog.client import AsyncClient, Client
    from versolog.schemas.errors import MergeConflict, VersologError
    from versolog.schemas.outcome import Outcome
    from versolog.streams.producer import AsyncProducer, Producer
    from versolog.streams.transaction import Transaction

__all__ = [
    "AsyncClient",
    "AsyncProducer",
    "Client",
    "MergeConflict",
    "Outcome",
    "Producer",
    "Transaction",
    "VersologError",
]

_HOMES = {
    "AsyncClient": "versolog.client",
    "AsyncProducer": "versolog.streams.producer",
    "Client": "versolog.client",
    "MergeConflict": "versolog.schemas.errors",
    "Outcome": "versolog.schemas.outcome",
    "Producer": "versolog.streams.producer",
    "Transaction": "versolog.streams.transaction",
    "VersologError": "versolog.schemas.errors",
}


if os.environ.get("VERSOLOG_PURE"):
    from versolog import pure

    pure.install()


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used: a service that only produces never loads an HTTP client."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
