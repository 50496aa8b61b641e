"""Every error that a caller can meet: a code for programs, words for people, and the facts of the case."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar

from versolog.schemas import conflicts

PROBLEM_TYPE = "https://versolog.dev/problems/"


class VersologError(Exception):
    """A typed failure: `code` names its kind, `detail` says what was wrong and what to do, `facts` hold the values.

    `retriable` is true where sending the same again can end otherwise.
    """

    code: str = "error"
    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    retriable: ClassVar[bool] = False

    def __init__(self, detail: str, /, *, code: str | None = None, status: int | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object, the facts as its extension members."""
        return {
            "type": PROBLEM_TYPE + self.code,
            "title": self.code.replace("-", " ").capitalize(),
            "status": int(self.status),
            "detail": self.detail,
            "code": self.code,
            **self.facts,
        }


class Malformed(VersologError):
    """What was sent can't be read: not JSON, not Avro, not of the documented form."""

    code = "malformed"
    status = HTTPStatus.BAD_REQUEST


class Invalid(VersologError):
    """What was sent can be read and can't be meant: an unknown field, an empty key, a time to come."""

    code = "invalid"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class TooLarge(VersologError):
    """Over one of the limits in `versolog.schemas.limits`."""

    code = "too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class NotFound(VersologError):
    """No such group, row, version, branch, tag or transaction."""

    code = "not-found"
    status = HTTPStatus.NOT_FOUND


class Conflict(VersologError):
    """What is asked for contradicts what was already decided."""

    code = "conflict"
    status = HTTPStatus.CONFLICT


class MergeConflict(Conflict):
    """Both sides of a merge, a revert or a cherry-pick changed the same, each in its own way; nothing was changed.

    `conflicts` are the first of `total`; the clients list them all. Send it again with a resolution for each, or a
    policy, as a new transaction.
    """

    code = "merge-conflict"
    asked: Any = None
    """The transaction that was refused, where a client knows it, to ask for the pages that follow."""

    @property
    def total(self) -> int:
        """How many conflicts there are."""
        return int(self.facts.get("total", 0))

    @property
    def conflicts(self) -> tuple[conflicts.Conflict, ...]:
        """The conflicts that are told."""
        return tuple(map(conflicts.Conflict.from_json, self.facts.get("conflicts", ())))

    @property
    def cursor(self) -> str | None:
        """Where the listing goes on; None where all were told, or by whom there are no pages."""
        found: str | None = self.facts.get("cursor")
        return found

    def problem(self) -> dict[str, Any]:
        """As for every error; each conflict is spelled alike, whether it was decided or rehearsed."""
        return super().problem() | {"conflicts": [conflict.to_json() for conflict in self.conflicts]}


class PreconditionFailed(VersologError):
    """The caller expected a version that is not the one found; both are in `facts`."""

    code = "precondition-failed"
    status = HTTPStatus.PRECONDITION_FAILED


class Unavailable(VersologError):
    """The log or the partition's owner can't be reached just now. Nothing is known to have failed: ask again."""

    code = "unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    retriable = True


class TooMany(VersologError):
    """More is under way than is allowed at once; wait and send again."""

    code = "too-many-requests"
    status = HTTPStatus.TOO_MANY_REQUESTS
    retriable = True


class Undecided(VersologError):
    """The transaction was sent and its outcome did not come in time. Ask for it by id, or send the same id again."""

    code = "undecided"
    status = HTTPStatus.ACCEPTED
    retriable = True


class BrokenLog(VersologError):
    """A broken invariant of log or store: a gap, a wrong hash, a record lost. The partition stops rather than guess."""

    code = "broken-log"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class Misconfigured(VersologError):
    """A setting, a topic or a directory that doesn't fit; `detail` names it and what it should be."""

    code = "misconfigured"


NOT_OF_THE_TRANSACTION = (Unavailable, BrokenLog, Misconfigured)
"""What fails here and now, and is no answer to a transaction: another worker, or this one later, would decide it. Deciding
stops at these; a refusal for one of them would stand for ever, and beside a commit of the same transaction elsewhere."""

# The kinds of refusal a decided transaction may end in, with the HTTP status that each answers.
REFUSALS: dict[str, type[VersologError]] = {
    "malformed": Malformed,
    "wrong-partition": Invalid,
    "too-large": TooLarge,
    "invalid": Invalid,
    "version-mismatch": PreconditionFailed,
    "head-mismatch": PreconditionFailed,
    "id-reused": Conflict,
    "overflow": Invalid,
    "not-a-number": Invalid,
    "schema-mismatch": Invalid,
    "schema-incompatible": Invalid,
    "check-failed": Conflict,
    "unknown-operation": Invalid,
    "unknown-group": NotFound,
    "unknown-branch": NotFound,
    "unknown-version": NotFound,
    "unknown-ref": NotFound,
    "ref-exists": Conflict,
    "merge-conflict": MergeConflict,
    "nothing-to-merge": Conflict,
    "not-merged": Conflict,
    "parent-needed": Invalid,
}


def refusal(code: str, detail: str, /, **facts: Any) -> VersologError:
    """The error that a refusal of kind `code` is."""
    kind = REFUSALS.get(code, VersologError)
    return kind(detail, code=code, **facts)
