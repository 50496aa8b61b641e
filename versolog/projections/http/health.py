"""Whether this worker lives, whether it is ready, and what it measures."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer
from versolog.projections.metrics import PartitionState
from versolog.projections.node import Node

LAG_S_MAX = 30.0
"""A follower further behind than this makes the worker unready: it would be slow to take over."""


class Health:
    """The handlers of /livez, /readyz and /metrics."""

    def __init__(self, node: Node, metrics: CollectorRegistry) -> None:
        self._node, self._metrics = node, metrics

    async def live(self, request: Request) -> Response:
        """GET /livez: the loop turns."""
        return answer.document({"status": "live"}, headers={"cache-control": "no-store"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: every partition that this worker has is as it should be."""
        states = self._node.states()
        outage = self._node.outage()
        ready = outage is None and bool(states) and all(_is_ready(state) for state in states)
        told = {
            "status": "ready" if ready else "not ready",
            "read_only": self._node.read_only,
            "outage": outage,
            "away": [
                {"partition": one.partition, "transactions": one.transactions, "for_s": round(one.for_s, 3)}
                for one in self._node.away()
            ],
            "partitions": [_told(state) for state in states],
        }
        headers = {"cache-control": "no-store"} | ({} if ready else {"retry-after": str(answer.RETRY_AFTER_S)})
        return answer.document(told, status=200 if ready else 503, headers=headers)

    async def measured(self, request: Request) -> Response:
        """GET /metrics: for Prometheus."""
        return Response(generate_latest(self._metrics), media_type=CONTENT_TYPE_LATEST)


def _is_ready(state: PartitionState) -> bool:
    match state.role:
        case "owner" | "idle":
            return True
        case "follower":
            return state.lag_s is not None and state.lag_s <= LAG_S_MAX
        case _:
            return False


def _told(state: PartitionState) -> dict[str, Any]:
    return {
        "partition": state.number,
        "role": state.role,
        "error": state.error,
        "lag_offsets": state.lag_offsets,
        "undecided_offsets": state.undecided_offsets,
        "waiting": state.waiting,
        "lag_s": None if state.lag_s is None else round(state.lag_s, 3),
    }
