"""What was asked: path segments, query, headers and body, each read once and strictly."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails
from starlette.requests import Request

from versolog.schemas.documents import from_text
from versolog.schemas.errors import Invalid, Malformed, TooLarge, VersologError

BODY_BYTES_MAX = 4 * 1024 * 1024
"""JSON can say in six bytes what Avro says in one, so a body may be larger than a transaction."""
WAIT_S = 5.0
WAIT_MAX_S = 30.0
STALENESS_MAX_S = 86_400.0
LIMIT_MAX = 10_000

_PARAMETERS_MAX = 50
_PLAIN = re.compile(r"[^=&%+]+=[^&%+]*")
"""A query of one parameter in which nothing is encoded."""
_WHOLE = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,99})?([eE][+-]?[0-9]{1,3})?")

Model = TypeVar("Model", bound=BaseModel)


def _whole(text: Any) -> Any:
    """Only digits: int() would also take ` 1_0`."""
    if isinstance(text, str) and not _WHOLE.fullmatch(text):
        raise ValueError("a whole number is wanted")
    return text


def _seconds(text: Any) -> Any:
    if isinstance(text, str) and not _DECIMAL.fullmatch(text):
        raise ValueError("a number of seconds is wanted")
    return text


def _flag(text: Any) -> Any:
    if isinstance(text, str) and text not in ("true", "false"):
        raise ValueError("true or false is wanted")
    return text


def _reference(given: Any) -> Any:
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str):
        raise ValueError("a version, a name or a time is wanted")
    return given


WHOLE = BeforeValidator(_whole)
Wait = Annotated[float, Field(ge=0, le=WAIT_MAX_S), BeforeValidator(_seconds)]
Staleness = Annotated[float, Field(ge=0, le=STALENESS_MAX_S), BeforeValidator(_seconds)]
Limit = Annotated[int, Field(ge=1, le=LIMIT_MAX), WHOLE]
Flag = Annotated[bool, BeforeValidator(_flag)]
Reference = Annotated[
    str,
    BeforeValidator(_reference),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}),
]
"""Where to read, in a JSON body: a version may be written as a number."""


class Asked(BaseModel):
    """A query or a JSON body of known fields; any other is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WaitQuery(Asked):
    """What every read may be asked with."""

    wait: Wait | None = Field(
        None, description="How many seconds to wait at most. Also as the header `Versolog-Wait`. Default 5."
    )


class Query(WaitQuery):
    """What every read of a group may be asked with."""

    stale: Staleness | None = Field(
        None,
        description="Let a node that only follows the group's partition answer, if what it has is no older than so "
        "many seconds. Also as the header `Versolog-Staleness`.",
    )


class AtQuery(Query):
    """A read at a place in the group's history."""

    at: str | None = Field(
        None,
        description="A version, a branch, a tag, one of these and `~n`, or an RFC 3339 time. "
        "Default: the head of `branch`.",
        examples=["41"],
    )
    branch: str | None = Field(None, description="The branch to read: alone, or beside a time. Default `main`.")


class PageQuery(AtQuery):
    """A listing in pages. A cursor names the version it began at, so pages fit together while others write."""

    limit: Limit = Field(100, description="The most to list in one answer.")
    cursor: str | None = Field(None, description="The `cursor` of the answer before, to go on there.")


def segment(request: Request, name: str) -> str:
    """A segment of the path, decoded once: `%2F` is a slash of the name, `%252F` is `%2F`."""
    raw: str = request.path_params[name]
    if "%" not in raw:
        return raw
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise Malformed(f"the {name} in the path is not UTF-8", field=name) from error


def read_query(request: Request, model: type[Model]) -> Model:
    """The query string as `model`. Raises Malformed or Invalid, naming the parameter; one given twice is neither."""
    raw: bytes = request.scope["query_string"]
    if not raw:
        return _read(model, {}, strict=False)
    try:
        text = raw.decode("ascii")
        if _PLAIN.fullmatch(text):  # by far the most, `at=41`, in a third of the time
            name, _, value = text.partition("=")
            return _read(model, {name: value}, strict=False)
        given = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_PARAMETERS_MAX)
    except UnicodeDecodeError as error:
        raise Malformed("the query string is not UTF-8, percent-encoded") from error
    except ValueError as error:
        raise Malformed(f"more than {_PARAMETERS_MAX} query parameters") from error
    fields = dict(given)
    if len(fields) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the query parameter {twice!r} is given twice", field=twice)
    return _read(model, fields, strict=False)


def seconds(request: Request, header: str, at_most: float) -> float | None:
    """A header that holds a number of seconds. Raises Malformed or Invalid."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not _DECIMAL.fullmatch(text):
        raise Malformed(f"{header}: a number of seconds is wanted, not {text[:64]!r}", field=header)
    value = float(text)
    if value > at_most:
        raise Invalid(f"{header}: at most {at_most:g} seconds", field=header)
    return value


def wait_s(request: Request, query_wait: float | None) -> float:
    """How long the answer may take."""
    if query_wait is not None:
        return query_wait
    header = seconds(request, "versolog-wait", WAIT_MAX_S)
    return WAIT_S if header is None else header


async def read_body(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The body. Raises TooLarge as soon as it's known to be, before the rest has been read."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
    return bytes(body)


async def read_json(request: Request) -> Any:
    """The JSON in the body. Raises Malformed."""
    body = await read_body(request)
    if not body:
        raise Malformed("the body is empty; JSON is wanted")
    return from_text(body)


def fields_in(body: bytes, model: type[Model]) -> Model:
    """The JSON object in a body as `model`; an empty body is an empty object."""
    value = from_text(body) if body else {}
    if not isinstance(value, dict):
        raise Malformed("the body is a JSON object here", field="")
    return _read(model, value, strict=True)


def version_tag(request: Request, header: str) -> int | None:
    """The version in an If-Match header of one strong entity tag: `"42"`. Raises Malformed."""
    text = request.headers.get(header)
    if text is None:
        return None
    tag = text.strip()
    if len(tag) < 3 or tag[0] != '"' or tag[-1] != '"' or not _WHOLE.fullmatch(tag[1:-1]):
        raise Malformed(f'{header} takes one version as an entity tag, such as "42", not {text[:64]!r}', field=header)
    return int(tag[1:-1])


def absent_wanted(request: Request) -> bool:
    """Whether `If-None-Match: *` is asked: write only where nothing is. Raises Malformed for anything else in it."""
    text = request.headers.get("if-none-match")
    if text is None:
        return False
    if text.strip() != "*":
        raise Malformed("If-None-Match on a write takes * only: the row must be absent", field="if-none-match")
    return True


def _read(model: type[Model], fields: dict[str, Any], *, strict: bool) -> Model:
    try:
        return model.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise _refusal_of(error.errors(include_url=False, include_context=False)[0], model) from None


_CANT_BE_READ = ("_type", "_parsing", "value_error", "json_invalid")


def _refusal_of(mistake: ErrorDetails, model: type[BaseModel]) -> VersologError:
    field = "/".join(str(step) for step in mistake["loc"])
    kind, words = mistake["type"], mistake["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = ", ".join(sorted(spec.alias or name for name, spec in model.model_fields.items())) or "none"
        return Invalid(f"there is no {field!r} here; known are: {known}", field=field)
    if kind == "missing":
        return Invalid(f"{field!r} is missing", field=field)
    detail = f"{field}: {words[:1].lower()}{words[1:]}"
    return (Malformed if kind.endswith(_CANT_BE_READ) else Invalid)(detail, field=field)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max:,} bytes", limit=bytes_max)
