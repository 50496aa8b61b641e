"""What the HTTP API answers, read as a service would read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from versolog.schemas.errors import Unavailable, VersologError
from versolog.schemas.outcome import Outcome

PAGE_ROWS = 5_000
TIMEOUT_S = 120.0
"""Verifying and digests take as long as reading everything."""


class Answers:
    """Asks one worker, which answers for all groups, and never with less than what was `seen`."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._tokens: dict[str, str] = {}

    def seen(self, outcome: Outcome) -> None:
        """Every read from now on waits until this outcome can be read: the log has it before the views do."""
        self._tokens |= {part.group: outcome.token for part in outcome.parts}

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at `path`. Raises VersologError with the problem that the answer tells, and Unavailable."""
        return self._asked("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """As `get`, for a request with a body."""
        return self._asked("POST", path, json=body)

    def rows(self, group: str, table: str, at: str | int) -> dict[str, dict[str, Any]]:
        """All rows of a table as they stood, by key."""
        rows: dict[str, dict[str, Any]] = {}
        query: dict[str, Any] = {"at": at, "limit": PAGE_ROWS}
        while True:
            page = self.get(f"/v1/groups/{quote(group)}/tables/{quote(table)}/rows", **query)
            rows |= {row["key"]: row["row"] for row in page["rows"]}
            if page["cursor"] is None:
                return rows
            query["cursor"] = page["cursor"]

    def _asked(self, method: str, path: str, **request: Any) -> Any:
        try:
            headers = {"versolog-token": ",".join(self._tokens.values())}
            answer = self._http.request(method, path, headers=headers, **request)
        except httpx.TransportError as error:
            raise Unavailable(f"{method} {path}: {error!r}") from error
        told = answer.json()
        if answer.is_error:
            raise VersologError(f"{method} {path}: {told['detail']}", code=told["code"], status=answer.status_code)
        return told
