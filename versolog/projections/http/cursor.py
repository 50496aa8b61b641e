"""Where a listing goes on: opaque to callers, refused when broken, cut short or brought to another listing."""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import Any

import orjson

from versolog.schemas.errors import Invalid, Malformed

_SEAL_KEY = b"versolog cursor 1"
"""Finds mistakes, keeps nothing secret: any node takes the cursor of any other, and a forged one reads nothing that its
listing would not show."""
_SEAL_BYTES = 8
_LISTING_BYTES = 8


def listing(*parts: object) -> bytes:
    """The name of the listing that is asked for: all that must be the same on its next page."""
    return blake2b(orjson.dumps(parts), digest_size=_LISTING_BYTES).digest()


def seal(of: bytes, position: list[Any]) -> str:
    """The cursor that leads to `position` in the listing `of`; only JSON goes into a position."""
    body = of + orjson.dumps(position)
    return base64.urlsafe_b64encode(_seal(body) + body).rstrip(b"=").decode()


def unseal(of: bytes, cursor: str) -> list[Any]:
    """The position in `cursor`. Raises Malformed where it's broken, Invalid where it belongs to another listing."""
    try:
        sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _broken() from error
    body = sealed[_SEAL_BYTES:]
    if len(body) <= _LISTING_BYTES or sealed[:_SEAL_BYTES] != _seal(body):
        raise _broken()
    if not body.startswith(of):
        raise Invalid(
            "the cursor belongs to another query; send it with the parameters that it came from (`limit` may differ)",
            code="foreign-cursor",
            field="cursor",
        )
    position: list[Any] = orjson.loads(body[_LISTING_BYTES:])
    return position


def _seal(body: bytes) -> bytes:
    return blake2b(body, digest_size=_SEAL_BYTES, key=_SEAL_KEY).digest()


def _broken() -> Malformed:
    detail = "not a cursor of ours; send `cursor` back as it came, or leave it out"
    return Malformed(detail, code="bad-cursor", field="cursor")
