"""The table API over HTTP: what a node knows and does, as documents and problems."""

from versolog.projections.http.application import app

__all__ = ["app"]
