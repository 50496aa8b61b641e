"""The HTTP clients: the same calls on a thread of one's own (`Client`) and on an event loop (`AsyncClient`)."""

from __future__ import annotations

from versolog.client.answers import (
    BlamedField,
    Branch,
    Commit,
    Counts,
    Diff,
    FieldChange,
    Group,
    GroupHead,
    Heading,
    Past,
    Place,
    Rehearsal,
    Row,
    RowChange,
    RowState,
    TableChecks,
    TableSchema,
    Tag,
    Verified,
)
from versolog.client.asynchronous import AsyncClient, AsyncTransaction
from versolog.client.synchronous import Client, ClientTransaction

__all__ = [
    "AsyncClient",
    "AsyncTransaction",
    "BlamedField",
    "Branch",
    "Client",
    "ClientTransaction",
    "Commit",
    "Counts",
    "Diff",
    "FieldChange",
    "Group",
    "GroupHead",
    "Heading",
    "Past",
    "Place",
    "Rehearsal",
    "Row",
    "RowChange",
    "RowState",
    "TableChecks",
    "TableSchema",
    "Tag",
    "Verified",
]
