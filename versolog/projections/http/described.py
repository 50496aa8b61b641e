"""How handlers are written into the OpenAPI document: what they take and answer, from the models that read it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, shapes
from versolog.projections.http.registry import CONTENT as REGISTRY_JSON

Handler = Callable[[Request], Awaitable[Response]]
Parameter = dict[str, Any]
Told = type[BaseModel] | Parameter | str | None

_NAME = {"type": "string", "minLength": 1}
_EXAMPLES = {"group": "UA", "table": "flights", "key": "k1", "version": "1", "name": "before", "id": "t-1"}
_COMPONENT = "#/components/schemas/{model}"

PATH = {
    "group": "The group, percent-encoded: a slash in it is `%2F`.",
    "table": "The table, percent-encoded.",
    "key": "The row's key, percent-encoded; a slash in it may stand as it is.",
    "version": "A version of the group.",
    "name": "The name.",
    "id": "The id.",
    "subject": "The subject.",
}


def header(name: str, description: str, schema: Any = None) -> Parameter:
    """A header that a handler reads."""
    shape = schema or {"type": "string"}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": shape}


TAG = {"type": "string", "pattern": '^"[0-9]{1,18}"$'}
SECONDS = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"}

WAITS = (header("Versolog-Wait", "As `wait`.", SECONDS),)
READS = (
    header("Versolog-Token", "A write's token: the answer holds that write, or is 503."),
    *WAITS,
    header("Versolog-Staleness", "As `stale`.", SECONDS),
)
WRITES = (
    header("Idempotency-Key", "The transaction's id. Sent again, it has the outcome that it had first."),
    header("Versolog-Wait", "As `wait`.", SECONDS),
)


class Described:
    """A router whose routes say what they take and answer. Handlers read their requests themselves, strictly, from the
    same models; FastAPI finds and describes them."""

    def __init__(self) -> None:
        self.router = APIRouter()
        self._models: dict[str, type[BaseModel]] = {
            model.__name__: model for model in (shapes.Problem, shapes.RegistryProblem)
        }

    def __call__(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        tag: str,
        summary: str,
        answers: Mapping[int, Told],
        description: str = "",
        query: type[BaseModel] | None = None,
        headers: tuple[Parameter, ...] = (),
        body: type[BaseModel] | Parameter | None = None,
        media: str = answer.JSON,
        told_as: str = answer.JSON,
        problems: Mapping[int, type[BaseModel]] | None = None,
    ) -> None:
        """Add one route. `answers` gives for each status the body's model or schema, or its content type where it isn't
        JSON; None where there is no body. `body` is a model or a schema, `told_as` the content type of answers, and
        `problems` are those errors that have more to tell than any."""
        extra: dict[str, Any] = {"parameters": [*_path_parameters(path), *_query_parameters(query), *headers]}
        if body is not None:
            extra["requestBody"] = {"required": True, "content": {media: {"schema": self._schema(body)}}}
        responses: dict[int | str, dict[str, Any]] = {
            status: self._answer(status, told, told_as) for status, told in answers.items()
        }
        for status, problem in (problems or {}).items():
            responses[status] = self._answer(status, problem, answer.PROBLEM)
        self.router.add_api_route(
            path,
            handler,
            methods=[method],
            tags=[tag],
            summary=summary,
            description=description,
            status_code=min(answers),
            responses=responses,
            response_class=Response,
            response_model=None,
            openapi_extra=extra,
            operation_id=_operation_id(method, path),
        )

    def complete(self, openapi: dict[str, Any]) -> dict[str, Any]:
        """FastAPI's document with the models that are named, and the problem that every operation may answer."""
        _, schemas = models_json_schema(
            [(model, "validation") for model in self._models.values()], ref_template=_COMPONENT
        )
        openapi.setdefault("components", {})["schemas"] = schemas["$defs"]
        problems: dict[str, Any] = {answer.PROBLEM: self._schema(shapes.Problem)}
        for path, item in openapi["paths"].items():
            told = problems
            if path.startswith("/registry"):
                told = problems | {REGISTRY_JSON: self._schema(shapes.RegistryProblem)}
            content = {media: {"schema": schema} for media, schema in told.items()}
            for operation in item.values():
                operation["responses"]["default"] = {"description": "What went wrong", "content": content}
        return openapi

    def _answer(self, status: int, told: Told, media: str) -> dict[str, Any]:
        described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if isinstance(told, str):
            described["content"] = {told: {"schema": {"type": "string"}}}
        elif told is not None:
            described["content"] = {media: {"schema": self._schema(told)}}
        return described

    def _schema(self, of: type[BaseModel] | Parameter) -> Parameter:
        if isinstance(of, dict):
            return of
        self._models[of.__name__] = of
        return {"$ref": _COMPONENT.format(model=of.__name__)}


def _path_parameters(path: str) -> list[Parameter]:
    return [
        {"name": name, "in": "path", "required": True, "description": PATH[name], "schema": _NAME}
        | ({"example": _EXAMPLES[name]} if name in _EXAMPLES else {})
        for name in re.findall(r"\{(\w+)", path)
    ]


def _query_parameters(query: type[BaseModel] | None) -> list[Parameter]:
    if query is None:
        return []
    schema = query.model_json_schema()
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": field.pop("description", ""),
            "schema": _without_null(field),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def _without_null(schema: Parameter) -> Parameter:
    """The schema of what a query parameter says when it is there; a query can't say null."""
    given = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    plain = dict(schema)
    if len(given) == 1:
        plain.pop("anyOf")
        plain |= given[0]
    if plain.get("default", ...) is None:
        plain.pop("default")
    plain.pop("title", None)
    return plain


def _operation_id(method: str, path: str) -> str:
    words = re.findall(r"[A-Za-z]+", path.removeprefix("/v1"))
    return "_".join([method.lower(), *words])
