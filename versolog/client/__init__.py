"""The HTTP clients: the same calls on a thread of one's own (`Client`) and on an event loop (`AsyncClient`)."""

from __future__ import annotations

from versolog.client.answers import (
    Apart,
    BlamedField,
    Branch,
    Commit,
    Counts,
    Diff,
    FieldChange,
    GraphPlace,
    Group,
    GroupHead,
    Heading,
    LoggedCommit,
    MergeFunctions,
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
from versolog.schemas.conflicts import ABSENT, Conflict, Resolution
from versolog.schemas.errors import MergeConflict

__all__ = [
    "ABSENT",
    "Apart",
    "AsyncClient",
    "AsyncTransaction",
    "BlamedField",
    "Branch",
    "Client",
    "ClientTransaction",
    "Commit",
    "Conflict",
    "Counts",
    "Diff",
    "FieldChange",
    "GraphPlace",
    "Group",
    "GroupHead",
    "Heading",
    "LoggedCommit",
    "MergeConflict",
    "MergeFunctions",
    "Past",
    "Place",
    "Rehearsal",
    "Resolution",
    "Row",
    "RowChange",
    "RowState",
    "TableChecks",
    "TableSchema",
    "Tag",
    "Verified",
]
