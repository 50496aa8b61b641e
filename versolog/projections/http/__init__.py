"""The table API over HTTP: what a node knows and does, as documents and problems."""

from versolog.projections.http.application import app
from versolog.projections.http.proofs import Source

__all__ = ["Source", "app"]
