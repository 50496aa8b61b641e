"""The short way to the busiest handlers: FastAPI's own takes three times as long as all that these do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from versolog.projections.http.envelope import ROUTE
from versolog.projections.http.relay import Relay
from versolog.projections.node import Elsewhere

Handler = Callable[[Request], Awaitable[Response]]

ROWS = "/v1/groups/{group}/tables/{table}/rows"
ROW = ROWS + "/{key}"
TRANSACTIONS = "/v1/transactions"


class Direct:
    """Calls the handlers of rows and transactions, and leaves the rest to `otherwise`.

    They stand in FastAPI's routes as well, which document them and answer 405 for their other methods.
    """

    def __init__(
        self,
        otherwise: ASGIApp,
        relay: Relay,
        *,
        row: Mapping[str, Handler],
        rows: Mapping[str, Handler],
        transactions: Mapping[str, Handler],
    ) -> None:
        self._otherwise, self._relay = otherwise, relay
        self._row, self._rows, self._transactions = row, rows, transactions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._find(scope) if scope["type"] == "http" else None
        if handler is None:
            await self._otherwise(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Elsewhere as elsewhere:
            response = await self._relay.pass_on(request, elsewhere)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Handler | None:
        path: str = scope["path"]
        if path == TRANSACTIONS:
            scope[ROUTE] = TRANSACTIONS
            return self._transactions.get(scope["method"])
        match path.split("/", 7):
            case ["", "v1", "groups", group, "tables", table, "rows", key] if group and table and key:
                scope[ROUTE] = ROW
                scope["path_params"] = {"group": group, "table": table, "key": key}
                return self._row.get(scope["method"])
            case ["", "v1", "groups", group, "tables", table, "rows"] if group and table:
                scope[ROUTE] = ROWS
                scope["path_params"] = {"group": group, "table": table}
                return self._rows.get(scope["method"])
            case _:
                return None
