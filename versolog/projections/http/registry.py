"""The read side of Confluent's Schema Registry API, so that any Avro-aware tool can read the topics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http.request import read_body, segment
from versolog.schemas.errors import Malformed, VersologError

CONTENT = "application/vnd.schemaregistry.v1+json"

_SCHEMA_NOT_FOUND, _SUBJECT_NOT_FOUND, _VERSION_NOT_FOUND, _INVALID_VERSION = 40403, 40401, 40402, 42202


class Registered(Protocol):
    """What was registered: `schemas.registry.TopicRegistry`."""

    def text_of(self, schema_id: int) -> str: ...
    def subjects(self) -> dict[str, list[int]]: ...
    def refresh(self) -> None: ...


Handler = Callable[["Registry", Request], Awaitable[Response]]


def _in_its_own_words(handler: Handler) -> Handler:
    """Errors in the shape that registry clients read."""

    @wraps(handler)
    async def answer(registry: Registry, request: Request) -> Response:
        try:
            return await handler(registry, request)
        except VersologError as error:
            status = int(error.status)
            return _mistake(status, status * 100 + 1, error.detail)

    return answer


class Registry:
    """The handlers of `/registry…`. Reading may wait for Kafka, so it's done in threads.

    Parameters that other registries know are passed over.
    """

    def __init__(self, registered: Registered) -> None:
        self._registered = registered

    @_in_its_own_words
    async def schema(self, request: Request) -> Response:
        """GET /registry/schemas/ids/{id}"""
        schema_id = _whole(segment(request, "id"))
        try:
            if schema_id is None:
                raise Malformed("not a schema id")
            text = await asyncio.to_thread(self._registered.text_of, schema_id)
        except Malformed:
            return _mistake(404, _SCHEMA_NOT_FOUND, "Schema not found")
        return _answer({"schema": text})

    @_in_its_own_words
    async def subjects(self, request: Request) -> Response:
        """GET /registry/subjects"""
        return _answer(sorted(await self._known()))

    @_in_its_own_words
    async def versions(self, request: Request) -> Response:
        """GET /registry/subjects/{subject}/versions"""
        subject = segment(request, "subject")
        ids = (await self._known(subject)).get(subject)
        return _no_subject(subject) if ids is None else _answer(list(range(1, len(ids) + 1)))

    @_in_its_own_words
    async def version(self, request: Request) -> Response:
        """GET /registry/subjects/{subject}/versions/{version}"""
        subject, wanted = segment(request, "subject"), segment(request, "version")
        ids = (await self._known(subject)).get(subject)
        if ids is None:
            return _no_subject(subject)
        version = len(ids) if wanted in ("latest", "-1") else _whole(wanted)
        if version is None or version == 0:
            return _mistake(
                422, _INVALID_VERSION, f"The specified version '{wanted}' is not a valid version id. "
                'Allowed values are between [1, 2^31-1] and the string "latest"',
            )  # fmt: skip
        if version > len(ids):
            return _mistake(404, _VERSION_NOT_FOUND, f"Version {version} not found.")
        return await self._told(subject, version, ids[version - 1])

    @_in_its_own_words
    async def lookup(self, request: Request) -> Response:
        """POST /registry/subjects/{subject}: whether the schema in the body is registered there"""
        subject = segment(request, "subject")
        try:
            wanted = orjson.loads(orjson.loads(await read_body(request))["schema"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _mistake(422, 42201, "Either the input schema or one of its references is invalid")
        ids = (await self._known(subject)).get(subject)
        if ids is None:
            return _no_subject(subject)
        for version, schema_id in enumerate(ids, start=1):
            if orjson.loads(await asyncio.to_thread(self._registered.text_of, schema_id)) == wanted:
                return await self._told(subject, version, schema_id)
        return _mistake(404, _SCHEMA_NOT_FOUND, "Schema not found")

    async def _known(self, subject: str | None = None) -> dict[str, list[int]]:
        """The subjects; asked anew where `subject` isn't among those known."""
        known = self._registered.subjects()
        if subject is None or subject not in known:
            await asyncio.to_thread(self._registered.refresh)
            known = self._registered.subjects()
        return known

    async def _told(self, subject: str, version: int, schema_id: int) -> Response:
        text = await asyncio.to_thread(self._registered.text_of, schema_id)
        return _answer({"subject": subject, "version": version, "id": schema_id, "schemaType": "AVRO", "schema": text})


def _no_subject(subject: str) -> Response:
    return _mistake(404, _SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")


def _mistake(status: int, code: int, message: str) -> Response:
    return Response(orjson.dumps({"error_code": code, "message": message}), status, media_type=CONTENT)


def _answer(value: object) -> Response:
    return Response(orjson.dumps(value), 200, media_type=CONTENT)


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
