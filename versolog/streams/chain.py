"""The hash chain: each commit names the hash of the one before it in its group."""

from __future__ import annotations

import hashlib


def commit_hash(fingerprint: bytes, body: bytes) -> bytes:
    """The hash of a commit as written: SHA-256(0x00, fingerprint, body), an RFC 6962 leaf hash.

    `fingerprint` is the SHA-256 of its schema's JSON as registered, `body` its Avro body.
    """
    return hashlib.sha256(b"\x00" + fingerprint + body).digest()


def intent_hash(body: bytes) -> bytes:
    """The hash that tells a retry from another transaction under the same id: SHA-256 of the Avro body."""
    return hashlib.sha256(body).digest()
