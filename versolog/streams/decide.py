"""Deciding: a transaction and the state before it, to commits or a refusal. No I/O, no clock, no randomness."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from versolog.schemas import codec
from versolog.schemas.codec import Record
from versolog.schemas.documents import to_text
from versolog.schemas.errors import NOT_OF_THE_TRANSACTION, VersologError, refusal
from versolog.schemas.limits import (
    AUTHOR_BYTES_MAX,
    CHANGES_MAX,
    DETAIL_CHARACTERS_MAX,
    FACTS_BYTES_MAX,
    GROUPS_MAX,
    MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX,
    RECORD_BYTES_MAX,
    TYPE_BYTES_MAX,
    check_name,
)
from versolog.schemas.readings import read_outcome
from versolog.schemas.times import MICROS_MAX, MICROS_MIN
from versolog.schemas.topics import partition_of
from versolog.schemas.written import commit_body, outcome_body
from versolog.streams.chain import commit_hash
from versolog.streams.changes import Line
from versolog.streams.invariants import keep_checks
from versolog.streams.operations import LENGTHY, Effect, Ground, perform
from versolog.streams.overlay import Overlay, Rows, rows_of
from versolog.streams.shares import Share, VotedPart, fault_of, too_many_groups
from versolog.streams.state import MAIN, NO_HASH, Branch, Head, State
from versolog.streams.turns import give_way
from versolog.streams.versions import levels, unknown_branch

COMMIT = codec.schema("Commit")
OUTCOME = codec.schema("Outcome")

ID_REUSED = "id-reused"
SPARE_BYTES = 256
"""Left in a piece for what is not counted: its numbers, the counts of its lists."""


_MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What pure code raises of its own accord; a broken invariant (AssertionError) or store stops the partition instead."""


class Asked(NamedTuple):
    """One record of the transactions topic, as deciding sees it."""

    offset: int
    clock: int
    """Milliseconds: the greatest LogAppendTime of the partition up to and including this record."""
    intent_hash: bytes
    transaction: Record | None
    """None for a record that could not be read; `fault` says why."""
    fault: VersologError | None = None
    """Why it is refused whatever the state."""
    share: Share | None = None
    """Its place in the order over partitions, where it is one partition's share of a transaction; `transaction` then has
    the parts of this partition."""
    size: int = 0
    """The bytes of the record."""


def asked_by_share(offset: int, clock: int, share: Record, size: int) -> Asked:
    """The share in a record of the transactions topic as deciding sees it; `size` is the record's."""
    place = Share(share["sequence_offset"], share["previous"], tuple(share["participants"]))
    return Asked(offset, clock, share["intent_hash"], share["transaction"], fault_of(share), place, size)


_WRITE = Effect()
"""That of changes to rows alone."""


class Piece:
    """One record of the commits topic."""

    __slots__ = ("body", "hash", "record")

    def __init__(self, record: Record, body: bytes, hash: bytes) -> None:
        self.record = record
        self.body = body
        self.hash = hash


class Sealed:
    """A commit with its place in the chain: whole, and as the pieces that are written."""

    __slots__ = ("hash", "pieces", "rows", "whole")

    def __init__(self, whole: Record, pieces: list[Piece], hash: bytes) -> None:
        self.whole = whole
        self.rows: Rows | None = None
        """As a layer holds them, where they are many: made ahead, so that folding them takes a moment."""
        self.pieces = pieces
        self.hash = hash


class Decision:
    """The end of one transaction. A repeated one has the outcome that its id had first, and no commits."""

    __slots__ = ("code", "commits", "error", "intent_hash", "outcome", "repeated", "transaction_id")

    def __init__(
        self, transaction_id: str, intent_hash: bytes, outcome: bytes, commits: list[Sealed], code: str = "",
        repeated: bool = False, error: VersologError | None = None,
    ) -> None:  # fmt: skip
        self.transaction_id = transaction_id
        self.intent_hash = intent_hash
        self.outcome = outcome
        """The Avro body of its Outcome."""
        self.commits = commits
        self.code = code
        """Empty where it was committed."""
        self.repeated = repeated
        self.error = error
        """Why it was refused just now; None for the first outcome again."""


class Prepared:
    """What a transaction would do, its preconditions met. It holds for as long as nothing else touches its groups."""

    __slots__ = ("clock", "effects", "grounds", "schemas")

    def __init__(
        self, grounds: list[Ground], effects: list[Effect | None], schemas: list[list[Record]], clock: int
    ) -> None:
        self.grounds = grounds
        self.effects = effects
        """None where the part holds only preconditions."""
        self.schemas = schemas
        self.clock = clock
        """Milliseconds: the least committed_at that the partition can give it."""

    def parts(self) -> list[VotedPart]:
        """What each part would make of its group."""
        return [
            VotedPart(ground.group, ground.branch_name, 0 if effect is None else _next_version(ground.head))
            for ground, effect in zip(self.grounds, self.effects, strict=True)
        ]


def decide(overlay: Overlay, asked: Asked, partition: int, partitions: int, floor: int = 0) -> Decision:
    """Decide one transaction and fold what was decided into the top layer of `overlay`."""
    decision = decision_on(overlay, asked, partition, partitions, floor)
    fold(overlay, decision)
    return decision


def decision_on(state: State, asked: Asked, partition: int, partitions: int, floor: int = 0) -> Decision:
    """How one transaction of this partition alone ends, decided on `state`."""
    prepared = prepare(state, asked, partition, partitions, floor)
    return commit(asked, prepared, prepared.clock) if isinstance(prepared, Prepared) else prepared


def is_lengthy(asked: Asked) -> bool:
    """Whether it may look at very many rows, and so take long to decide."""
    parts = () if asked.transaction is None else asked.transaction["parts"]
    return any(part["operation"] is not None and part["operation"]["kind"] in LENGTHY for part in parts)


def prepare(state: State, asked: Asked, partition: int, partitions: int, floor: int = 0) -> Prepared | Decision:
    """What `asked` would do now, or the end that it comes to without doing anything. It is not committed before `floor`
    (milliseconds), whatever the clocks say."""
    transaction = asked.transaction
    if transaction is None:
        assert asked.fault is not None, "a record is read or has a fault"
        return refuse(asked, asked.fault, asked.clock)
    transaction_id = transaction["id"]
    try:
        check_name("id", transaction_id)
    except VersologError as error:
        return refuse(asked, error, asked.clock)
    known = state.outcome(transaction_id)
    if known is not None:
        return _repeated(asked, transaction, known)
    if asked.fault is not None:
        return refuse(asked, asked.fault, asked.clock)
    parts: list[Record] = transaction["parts"]
    try:
        _check_form(transaction, partition, partitions)
        grounds = [_ground(state, part) for part in parts]
        effects = [_effect(ground, part) for ground, part in zip(grounds, parts, strict=True)]
        schemas = [_held(ground) for ground in grounds]
    except NOT_OF_THE_TRANSACTION:
        raise
    except VersologError as error:
        return refuse(asked, error, asked.clock)
    except _MISTAKES as mistake:
        # A mistake of ours, met by this transaction: refusing it is a fact like any other, and the partition goes on.
        reason = f"deciding it failed with {type(mistake).__name__}: {mistake}; please report this"
        return refuse(asked, refusal("undecidable", reason), asked.clock)
    clock = max(asked.clock, floor)
    for ground in grounds:
        if ground.head is not None and ground.head.committed_at > clock:
            clock = ground.head.committed_at
    return Prepared(grounds, effects, schemas, clock)


def refuse(asked: Asked, error: VersologError, decided_at: int, elsewhere: Sequence[VotedPart] = ()) -> Decision:
    """The end of a transaction that is refused, at `decided_at` on the store's clock (milliseconds). `elsewhere` are
    its parts in other partitions."""
    transaction = asked.transaction
    if transaction is None or not _is_name("id", transaction["id"]):
        return _refused(asked, "", (), error, decided_at)
    parts = unchanged(transaction)
    if elsewhere:
        parts = sorted([*parts, *(part._replace(version=0) for part in elsewhere)], key=_bytes_of_group)
    return _refused(asked, transaction["id"], parts if len(parts) <= GROUPS_MAX else (), error, decided_at)


def unchanged(transaction: Record) -> list[VotedPart]:
    """The parts of a transaction that is refused, for its outcome to name: none where they are too many, and only those
    that can be names. So no outcome and no vote is too large for a record, whatever somebody wrote into the log."""
    parts: list[Record] = transaction["parts"]
    if len(parts) > GROUPS_MAX:
        return []
    return [
        VotedPart(part["group"], part["branch"], 0)
        for part in parts
        if _is_name("group", part["group"]) and _is_name("branch", part["branch"])
    ]


def _is_name(what: str, name: str) -> bool:
    try:
        check_name(what, name)
    except VersologError:
        return False
    return True


def fold(overlay: Overlay, decision: Decision) -> None:
    """Fold what was decided into the top layer of `overlay`."""
    for sealed in decision.commits:
        rows, sealed.rows = sealed.rows, None  # the layer's from here on
        overlay.apply(sealed.whole, sealed.hash, rows)
    if decision.transaction_id and not decision.repeated:
        overlay.remember(decision.transaction_id, decision.outcome)


def plan(state: State, part: Record) -> tuple[Line, Effect]:
    """What `part` would do if it were decided now, for a dry run. Raises its refusal."""
    ground = _ground(state, part)
    effect = _effect(ground, part)
    _held(ground)
    return ground.line, effect or _WRITE


def _check_form(transaction: Record, partition: int, partitions: int) -> None:
    """Refuse what no honest builder would send, before any state is asked."""
    for field, limit in (("author", AUTHOR_BYTES_MAX), ("message", MESSAGE_BYTES_MAX), ("type", TYPE_BYTES_MAX)):
        text = transaction[field]
        if len(text) * 4 > limit and len(text.encode()) > limit:
            raise refusal("too-large", f"{field} has over {limit:,} bytes", field=field, limit=limit)
    occurred_at = transaction["occurred_at"]
    if occurred_at is not None and not MICROS_MIN <= occurred_at <= MICROS_MAX:
        raise refusal("invalid", "occurred_at is not within the years 1 to 9999", field="occurred_at")
    parts = transaction["parts"]
    if not parts:
        raise refusal("invalid", "the transaction names no group", field="parts")
    if len(parts) > GROUPS_MAX:
        raise too_many_groups(len(parts))
    if len(parts) > 1 and len({part["group"] for part in parts}) < len(parts):
        raise refusal("invalid", "a group is named twice; put all its changes into one part", field="parts")
    changes = 0
    for part in parts:
        group = part["group"]
        check_name("group", group)
        if (wanted := partition_of(group, partitions)) != partition:
            if len(parts) > 1:
                raise refusal(
                    "wrong-partition", "its groups are of several partitions; append it to the sequence topic instead",
                    group=group, expected=wanted, found=partition,
                )  # fmt: skip
            raise refusal(
                "wrong-partition", f"the group {group!r} belongs to partition {wanted}, not {partition}: "
                "key the record with the group and partition by murmur2", group=group, expected=wanted, found=partition,
            )  # fmt: skip
        changes += _check_part(part)
    if changes > CHANGES_MAX:
        raise refusal("too-large", f"{changes:,} changes; the limit is {CHANGES_MAX:,}", limit=CHANGES_MAX)


def _check_part(part: Record) -> int:
    check_name("branch", part["branch"])
    for named in part["expect"]:
        check_name("table", named["table"])
        check_name("key", named["key"])
    for change in part["changes"]:
        table = change["table"]
        check_name("table", table)
        check_name("key", change["key"])
        if table.startswith("$"):
            raise refusal("invalid", f"{table!r} is a system table; its rows are changed by operations", table=table)
    operation = part["operation"]
    if operation is not None and part["changes"]:
        raise refusal("invalid", f"{operation['kind']} and changes can't stand in one part", group=part["group"])
    asks = part["changes"] or part["expect"] or operation or part["expect_head"] is not None
    if not asks:
        raise refusal("invalid", f"nothing is asked of the group {part['group']!r}", group=part["group"])
    return len(part["changes"])


def _ground(state: State, part: Record) -> Ground:
    """The part's branch as it stands, its preconditions met."""
    group, name = part["group"], part["branch"]
    head = state.head(group)
    branch = state.branch(group, name) if head is not None else None
    steps = levels(state, group, branch, head.version) if branch is not None and head is not None else []
    line = Line(state, group, steps, has_settings=head is not None and head.settings > 0)
    if branch is None and name != MAIN:
        raise unknown_branch(group, name)
    expected, found = part["expect_head"], branch.head if branch is not None else 0
    if expected is not None and expected != found:
        raise refusal(
            "head-mismatch", f"the head of {name!r} in {group!r} is version {found}, not {expected}: see what came since",
            group=group, branch=name, expected=expected, found=found,
        )  # fmt: skip
    for row in part["expect"]:
        found = line.version(row["table"], row["key"])
        if found != row["version"]:
            raise refusal(
                "version-mismatch", _mismatch(row["key"], row["table"], row["version"], found),
                group=group, table=row["table"], key=row["key"], expected=row["version"], found=found,
            )  # fmt: skip
    return Ground(state, group, head, name, branch, line)


def _mismatch(key: str, table: str, expected: int, found: int) -> str:
    if found == 0:
        return f"the row {key!r} of {table!r} is absent; version {expected} was expected"
    if expected == 0:
        return f"the row {key!r} of {table!r} exists since version {found}; it was expected to be absent"
    return f"the row {key!r} of {table!r} was last changed by version {found}, not {expected}"


def _effect(ground: Ground, part: Record) -> Effect | None:
    """What the part does; None where it holds only preconditions."""
    if part["operation"] is not None:
        return perform(ground, part["operation"])
    if not part["changes"]:
        return None
    ground.line.change(part["changes"])
    return _WRITE


def commit(asked: Asked, prepared: Prepared, committed_at: int, elsewhere: Sequence[VotedPart] = ()) -> Decision:
    """The end of a transaction that is committed. `elsewhere` is what other partitions make of their parts of it."""
    transaction = asked.transaction
    assert transaction is not None, "what could not be read can't be prepared"
    parts: list[Record] = transaction["parts"]
    versions: list[Record] = []
    if len(parts) > 1 or elsewhere:
        told = [*prepared.parts(), *elsewhere]
        versions = [{"group": part.group, "version": part.version} for part in told if part.version]
    sealed: list[Sealed] = []
    results: list[Record] = []
    for index, ground in enumerate(prepared.grounds):
        effect = prepared.effects[index]
        version, hash_ = 0, NO_HASH
        if effect is not None:
            others = [other for other in versions if other["group"] != ground.group]
            met = prepared.schemas[index]
            made = _seal(asked, transaction, parts[index], ground, effect, committed_at, others, met)
            sealed.append(made)
            version, hash_ = _next_version(ground.head), made.hash
        results.append({"group": ground.group, "branch": ground.branch_name, "version": version, "hash": hash_})
    if elsewhere:
        results += [{**part._asdict(), "hash": NO_HASH} for part in elsewhere]
        results.sort(key=itemgetter("group"))  # by code point, which is by UTF-8 byte
    outcome = _outcome(asked, transaction["id"], committed_at, "committed", results)
    return Decision(transaction["id"], asked.intent_hash, outcome, sealed)


def _held(ground: Ground) -> list[Record]:
    """Hold what the part would leave to the tables' schemas and checks; answers the schemas that were met."""
    schemas = ground.line.check_schemas()
    keep_checks(ground.line)
    return schemas


def _bytes_of_group(part: VotedPart) -> bytes:
    return part.group.encode()


def _next_version(head: Head | None) -> int:
    return 1 if head is None else head.version + 1


def _seal(
    asked: Asked, transaction: Record, part: Record, ground: Ground, effect: Effect,
    committed_at: int, others: list[Record], schemas: list[Record],
) -> Sealed:  # fmt: skip
    """The commit of one part with its place in the group's chain."""
    version = _next_version(ground.head)
    branch = effect.branch or ground.branch or Branch(version, ground.branch_name, 0, None, 0, live=True)
    operation = part["operation"]
    whole: Record = {
        "group": ground.group,
        "version": version,
        "branch": branch.name,
        "branch_id": branch.id,
        "parents": _parents(effect, branch, version),
        "previous_hash": NO_HASH if ground.head is None else ground.head.hash,
        "transaction_id": transaction["id"],
        "intent_hash": asked.intent_hash,
        "transaction_offset": asked.offset,
        "sequence_offset": None if asked.share is None else asked.share.sequence_offset,
        "others": others,
        "author": transaction["author"],
        "message": transaction["message"],
        "type": transaction["type"],
        "committed_at": committed_at,
        "occurred_at": transaction["occurred_at"],
        "operation": "write" if operation is None else operation["kind"],
        "arguments": "" if operation is None else operation["arguments"],
        "changes": [
            {"table": table, "key": key, "row": None if text is None else text.decode()}
            for rows in (ground.line.changed, ground.line.derived)
            for (table, key), text in rows.items()
        ],
        "refs": effect.refs,
        "schemas": schemas,
        "piece": 1,
        "pieces": 1,
    }
    body = commit_body(whole)
    if len(body) <= RECORD_BYTES_MAX:
        hash_ = commit_hash(COMMIT.fingerprint, body)
        return Sealed(whole, [Piece(whole, body, hash_)], hash_)
    pieces = _cut(whole)
    sealed = Sealed(whole, pieces, pieces[-1].hash)
    sealed.rows = rows_of(whole)
    return sealed


def _parents(effect: Effect, branch: Branch, version: int) -> list[int]:
    if effect.parents is not None:
        return list(effect.parents)
    return [branch.head] if effect.moves_head and branch.id != version else []


def _cut(whole: Record) -> list[Piece]:
    """The commit as pieces that each fit a record, every one naming the hash of the one before. The first alone has the
    operation's arguments and the refs; a schema that rows met stands beside the first row of its table."""
    changed = {change["table"] for change in whole["changes"]}
    met = {one["table"]: one for one in whole["schemas"] if one["table"] in changed}
    first = {**whole, "changes": [], "schemas": [one for one in whole["schemas"] if one["table"] not in changed]}
    rest = {**first, "arguments": "", "refs": [], "schemas": []}
    rest_bytes = len(commit_body(rest)) + SPARE_BYTES
    runs = [first]
    size = len(commit_body(first)) + SPARE_BYTES
    for change in whole["changes"]:
        table = change["table"]
        change_bytes = len(table) * 4 + len(change["key"]) * 4 + len((change["row"] or "").encode()) + 16
        schema = met.pop(table, None)
        if schema is not None:
            change_bytes += len(table) * 4 + len(schema["fingerprint"]) + 4
        if size + change_bytes > RECORD_BYTES_MAX and size > rest_bytes:
            runs.append({**rest, "changes": [], "schemas": []})
            size = rest_bytes
        runs[-1]["changes"].append(change)
        if schema is not None:
            runs[-1]["schemas"].append(schema)
        size += change_bytes
    pieces: list[Piece] = []
    previous = whole["previous_hash"]
    for number, record in enumerate(runs, start=1):
        give_way()
        record |= {"previous_hash": previous, "piece": number, "pieces": len(runs)}
        body = commit_body(record)
        previous = commit_hash(COMMIT.fingerprint, body)
        pieces.append(Piece(record, body, previous))
    return pieces


def _refused(
    asked: Asked, transaction_id: str, parts: Sequence[VotedPart], error: VersologError, decided_at: int
) -> Decision:
    results = [{"group": part.group, "branch": part.branch, "version": 0, "hash": NO_HASH} for part in parts]
    outcome = _outcome(asked, transaction_id, decided_at, "refused", results, error)
    # An id that was used before keeps its first outcome.
    return Decision(transaction_id, asked.intent_hash, outcome, [], error.code, error.code == ID_REUSED, error)


def _repeated(asked: Asked, transaction: Record, known: bytes) -> Decision:
    """The first outcome again; another content under the same id is refused, and the first outcome stands."""
    first = read_outcome(known)
    transaction_id = transaction["id"]
    if first["intent_hash"] != asked.intent_hash:
        error = refusal(
            ID_REUSED, f"the id {transaction_id!r} was decided before with another content; send a new id",
            id=transaction_id, decided=first["outcome"],
        )  # fmt: skip
        return refuse(asked, error, asked.clock)
    return Decision(transaction_id, asked.intent_hash, known, [], first["code"], repeated=True)


def _outcome(
    asked: Asked, transaction_id: str, decided_at: int, verdict: str, parts: list[Record],
    error: VersologError | None = None,
) -> bytes:  # fmt: skip
    record: dict[str, Any] = {
        "transaction_id": transaction_id,
        "intent_hash": asked.intent_hash,
        "transaction_offset": asked.offset,
        "committed_at": decided_at,
        "outcome": verdict,
        "parts": parts,
        "code": "" if error is None else error.code,
        "detail": "" if error is None else _detail(error),
        "facts": "" if error is None else _facts(error),
    }
    return outcome_body(record)


def _detail(error: VersologError) -> str:
    detail = error.detail
    return detail if len(detail) <= DETAIL_CHARACTERS_MAX else f"{detail[: DETAIL_CHARACTERS_MAX - 1]}…"


def _facts(error: VersologError) -> str:
    """The facts as JSON, where they can be told: what can't be written down or is too long is left out as a whole."""
    try:
        facts = to_text(error.facts) if error.facts else ""
    except VersologError:
        return ""
    return facts if len(facts) <= FACTS_BYTES_MAX and len(facts.encode()) <= FACTS_BYTES_MAX else ""
