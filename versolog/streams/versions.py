"""The commit graph of a group: which rows a version holds, what a reference names, and what two versions differ in.

Pure functions over `State`. They hold for any version ever reached: nothing that a group did later changes an answer
about an earlier version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

from versolog.schemas.documents import INT64_MAX
from versolog.schemas.errors import Invalid, Malformed, NotFound, VersologError, refusal
from versolog.schemas.limits import check_name
from versolog.schemas.times import micros_from_text, millis_to_text
from versolog.streams.state import MAIN, Branch, Head, Level, Row, State, Step

DROP_GROUP = "drop-group"
MERGE = "merge"
STEPS_MAX = 10_000
"""How far back `~n` may lead; each step costs one look-up."""
REF_CHARACTERS_MAX = 256


class At(NamedTuple):
    """An exact place to read at: a branch, up to a version of its group."""

    group: str
    branch: str
    branch_id: int
    version: int


class Difference(NamedTuple):
    """A row that two places differ in. A row that is absent or deleted at a place is None there."""

    table: str
    key: str
    before: Row | None
    after: Row | None


@dataclass(frozen=True, slots=True)
class VersionRef:
    """A version by its number."""

    version: int


@dataclass(frozen=True, slots=True)
class NameRef:
    """A branch or a tag by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class TimeRef:
    """The newest version with committed_at ≤ `time_ms`."""

    time_ms: int


@dataclass(frozen=True, slots=True)
class AncestorRef:
    """A version reached from `base` by one parent a step: 1 for a first parent (`~`), 2 for a second one (`^2`)."""

    base: VersionRef | NameRef | TimeRef
    steps: tuple[int, ...]


Ref = VersionRef | NameRef | TimeRef | AncestorRef


# Rows


def levels(state: State, group: str, branch: Branch, upto: int) -> list[Level]:
    """The way that a read of `branch` up to version `upto` takes: the branch itself, then each it falls through to."""
    way = [Level(branch.id, upto)]
    while branch.parent is not None:
        upto = min(upto, branch.fork)  # what the parent did after the fork must not shine through
        branch = _known_branch(state, group, branch.parent)
        way.append(Level(branch.id, upto))
    return way


def levels_at(state: State, at: At) -> list[Level]:
    """The way that a read at `at` takes."""
    return levels(state, at.group, _known_branch(state, at.group, at.branch_id), at.version)


def row_at(state: State, group: str, way: Iterable[Level], table: str, key: str) -> Row | None:
    """The row as reads along `way` see it: that of the first level that knows it. None where it's absent or deleted."""
    for level in way:
        row = state.row(group, level, table, key)
        if row is not None:
            return None if row.text is None else row
    return None


def rows_at(state: State, group: str, way: Sequence[Level], places: Sequence[tuple[str, str]]) -> list[Row | None]:
    """As `row_at`, for many (table, key) at once."""
    found = state.rows(group, way[0], places)
    for level in way[1:]:
        open_ = [index for index, row in enumerate(found) if row is None]
        below = state.rows(group, level, [places[index] for index in open_])
        for index, row in zip(open_, below, strict=True):
            found[index] = row
    return [None if row is None or row.text is None else row for row in found]


# References


def parse_ref(text: str) -> Ref:
    """What `text` refers to: a version number, a branch or tag name, an RFC 3339 time, or one of these and `~n`, `^n`.

    Raises Malformed where it can't be a reference, and Invalid for a time that is none.
    """
    if not text or len(text) > REF_CHARACTERS_MAX:
        raise Malformed(f"a reference has 1 to {REF_CHARACTERS_MAX} characters, not {len(text)}", field="at")
    if _is_number(text):
        return VersionRef(int(text))
    match = _ANCESTOR.fullmatch(text)
    if match is None:
        _refuse_ref(text, "after a version, a name or a time there may be only ~n (first parents) and ^n (a parent)")
    base = _parse_base(match["base"], text)
    if not match["steps"]:
        return base
    return AncestorRef(base, _parse_steps(match["steps"], text))


def check_ref_name(what: str, name: str) -> str:
    """`name`, where a branch or a tag may be called so. Raises Invalid or TooLarge."""
    check_name(what, name)
    if found := sorted(set("~^/") & set(name)):
        raise Invalid(f"a {what} name may not hold {' or '.join(found)}: {name!r}", field=what)
    if _is_number(name):
        raise Invalid(f"the {what} name {name!r} would read as a version number; add a letter", field=what)
    if _TIME_START.match(name):
        raise Invalid(f"the {what} name {name!r} would read as a time; begin it with a letter", field=what)
    return name


def resolve(state: State, group: str, text: str | None = None, branch: str | None = None) -> At:
    """The place that `text` names, read now; without it, the head of `branch` (default: main).

    `branch` goes with a time, or with no reference; a version or a name is where it is, whatever `branch` says. Whether
    a time is closed is the caller's to know. Raises Malformed, Invalid and NotFound (`unknown-group`, `unknown-branch`,
    `unknown-version`, `unknown-ref`), each with what to ask for instead.
    """
    return resolve_ref(state, group, None if text is None else parse_ref(text), branch)


def resolve_ref(state: State, group: str, ref: Ref | None, branch: str | None = None) -> At:
    """As `resolve`, for a reference already parsed."""
    if state.head(group) is None:
        raise unknown_group(group)
    if ref is None:
        return _head_of(state, group, branch or MAIN)
    return _place(state, group, ref, branch or MAIN)


def unknown_branch(group: str, name: str) -> VersologError:
    """The refusal of what names a branch that there is not."""
    detail = f"the group {group!r} has no branch {name!r}: list its branches to see which there are, or create it"
    return refusal("unknown-branch", detail, group=group, branch=name)


def unknown_version(group: str, version: int, head: Head) -> VersologError:
    """The refusal of what names a version that there is not; `head` is the group's."""
    detail = f"group {group!r} has no version {version}; the newest is {head.version}"
    facts = {"version": version} if version <= INT64_MAX else {}  # no larger number is ever written down
    return refusal("unknown-version", detail, group=group, **facts, newest=head.version)


def unknown_group(group: str) -> VersologError:
    """The refusal of what reads a group that there never was."""
    return refusal("unknown-group", f"no group {group!r}: nothing was ever written to it", group=group)


def parents_told(step: Step) -> str:
    """How many parents a commit has, in words."""
    match len(step.parents):
        case 0:
            return f"version {step.version} is the first of its line, and has no parent"
        case 1:
            return f"version {step.version} is no merge, and has only one parent"
        case count:
            return f"version {step.version} is a merge, and has {count} parents"


# The graph


def moves_head(record: dict[str, Any]) -> bool:
    """Whether the commit becomes the head of its branch. Operations on refs take a version and leave heads alone."""
    if record["parents"]:
        return True
    # The first write of a branch that begins with nothing, such as a group's first: it has no parent to name.
    creates = (ref["kind"] == "branch" and ref["version"] is not None for ref in record["refs"])
    return bool(record["branch_id"] == record["version"]) and not any(creates)


def joined(record: dict[str, Any]) -> int | None:
    """The version that the commit merged into its branch; None where it is no merge."""
    return _joined(record["parents"], record["operation"])


def joined_at(step: Step) -> int | None:
    """As `joined`, of a commit's place in the graph."""
    return _joined(step.parents, step.operation)


def _joined(parents: Sequence[int], operation: str) -> int | None:
    return parents[-1] if parents and (operation == MERGE or len(parents) > 1) else None


class Branches(Protocol):
    """The part of `State` that tells of branches."""

    def branch(self, group: str, name: str) -> Branch | None: ...
    def branch_by_id(self, group: str, branch_id: int) -> Branch | None: ...


def branches_after(state: Branches, record: dict[str, Any]) -> list[Branch]:
    """The branches that the commit creates, moves or deletes, as they stand after it; `state` is that before it."""
    group, version = record["group"], record["version"]
    after: dict[int, Branch] = {}
    for ref in record["refs"]:
        if ref["kind"] != "branch":
            continue
        name, fork = ref["name"], ref["version"]
        if fork is not None:
            after[version] = Branch(version, name, head=fork, parent=ref["parent"], fork=fork, live=True)
        elif (gone := state.branch(group, name)) is not None:
            after[gone.id] = gone._replace(live=False)
    if moves_head(record):
        moved = after.get(record["branch_id"]) or state.branch_by_id(group, record["branch_id"])
        if moved is None:
            assert record["branch_id"] == version, f"commit {version} of {group!r} is on a branch that never was"
            moved = Branch(version, record["branch"], head=version, parent=None, fork=0, live=True)
        after[moved.id] = moved.at_head(version)
    return list(after.values())


def standing(state: State, group: str, version: int) -> Step | None:
    """The commit whose rows a read of `version` sees: itself, or the head that an operation on refs found. None where
    nothing was committed on its branch by then."""
    step = state.step(group, version)
    while step is not None and step.tip != step.version:
        step = state.step(group, step.tip)
    return step


def first_parent(state: State, group: str, step: Step) -> Step | None:
    """The commit that `step` was made upon; None for the first of a line."""
    return standing(state, group, step.parents[0]) if step.parents else None


# Differences


class Touched(NamedTuple):
    """The rows named by the commits that lead to one of two places and not to the other."""

    rows: set[tuple[str, str]]
    """(table, key)"""
    complete: bool
    """False where the limit of changes was reached first; `rows` is then of no use."""


def touched(state: State, group: str, before: int, after: int, *, changes_max: int | None = None) -> Touched:
    """Every (table, key) that can differ between versions `before` and `after` of the group.

    Walks first parents from both until they meet, so the cost is that of the changes since, whatever the size of the
    group. A merge's changes are those it made to the branch merged into, so first parents tell all. `changes_max`
    bounds the commits and changes that are looked at.
    """
    rows: set[tuple[str, str]] = set()
    left, right = standing(state, group, before), standing(state, group, after)
    looked_at = 0
    while (left and left.version) != (right and right.version):
        if changes_max is not None and looked_at > changes_max:
            return Touched(rows, complete=False)
        if right is None or (left is not None and left.version > right.version):
            assert left is not None
            newest, left = left, first_parent(state, group, left)
        else:
            newest, right = right, first_parent(state, group, right)
        record = state.commit(group, newest.version)
        assert record is not None, f"version {newest.version} of {group!r} has a place in the graph and no record"
        rows.update((change["table"], change["key"]) for change in record["changes"])
        looked_at += 1 + len(record["changes"])
    return Touched(rows, complete=True)


def diff(state: State, before: At, after: At, rows: Iterable[tuple[str, str]] | None = None) -> list[Difference]:
    """The rows that differ between two places of one group, by table and key.

    `rows` are the candidates; without them, all that can differ. A row that was changed and changed back is no
    difference, though its version is another.
    """
    if rows is None:
        rows = touched(state, before.group, before.version, after.version).rows
    old, new = levels_at(state, before), levels_at(state, after)
    differences = []
    for table, key in sorted(rows):
        one, other = row_at(state, before.group, old, table, key), row_at(state, after.group, new, table, key)
        if (one and one.text) != (other and other.text):
            differences.append(Difference(table, key, one, other))
    return differences


# Below: how a reference is read and followed

_ANCESTOR = re.compile(r"(?P<base>[^~^]+)(?P<steps>[~^0-9]*)", re.DOTALL)
_STEP = re.compile(r"(?P<kind>[~^])(?P<count>[0-9]{0,9})")
_TIME_START = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:")


def _parse_base(base: str, text: str) -> VersionRef | NameRef | TimeRef:
    if _is_number(base):
        return VersionRef(int(base))
    if _TIME_START.match(base):
        return TimeRef(micros_from_text(base) // 1_000)
    if "/" in base:
        _refuse_ref(text, "no branch or tag has a / in its name")
    return NameRef(base)


def _parse_steps(steps: str, text: str) -> tuple[int, ...]:
    if _STEP.sub("", steps):
        _refuse_ref(text, "after a version, a name or a time there may be only ~n (first parents) and ^n (a parent)")
    parents: list[int] = []
    for step in _STEP.finditer(steps):
        count = int(step["count"] or 1)
        if step["kind"] == "~":
            if len(parents) + count > STEPS_MAX:
                _refuse_ref(text, f"~n leads back {STEPS_MAX:,} commits at most; name a version instead")
            parents += [1] * count
        elif count:  # name^0 is the commit itself, as in Git
            parents.append(count)
    return tuple(parents)


def _refuse_ref(text: str, why: str) -> NoReturn:
    raise Malformed(f"not a reference: {text!r}; {why}", field="at")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _place(state: State, group: str, ref: Ref, branch: str) -> At:
    match ref:
        case VersionRef(version):
            return _at_version(state, group, version)
        case NameRef(name):
            return _at_name(state, group, name)
        case TimeRef(time_ms):
            return _at_time(state, group, time_ms, branch)
        case AncestorRef(base, steps):
            return _at_ancestor(state, group, _place(state, group, base, branch).version, steps)


def _head_of(state: State, group: str, name: str) -> At:
    branch = state.branch(group, name)
    if branch is None:
        _refuse_dropped(state, group)
        raise unknown_branch(group, name)
    return At(group, name, branch.id, branch.head)


def _at_version(state: State, group: str, version: int) -> At:
    head = state.head(group)
    assert head is not None
    step = state.step(group, version) if 0 < version <= head.version else None
    if step is None:
        raise unknown_version(group, version, head)
    if step.operation == DROP_GROUP:
        raise _dropped(group, version)
    return At(group, _known_branch(state, group, step.branch).name, step.branch, version)


def _at_name(state: State, group: str, name: str) -> At:
    if state.branch(group, name) is not None:
        return _head_of(state, group, name)
    version = state.tag(group, name)
    if version is not None:
        return _at_version(state, group, version)
    _refuse_dropped(state, group)
    raise refusal(
        "unknown-ref",
        f"the group {group!r} has no branch or tag {name!r}: list them to see which there are",
        group=group,
        ref=name,
    )


def _at_time(state: State, group: str, time_ms: int, name: str) -> At:
    version = state.version_at(group, time_ms)
    step = state.step(group, version) if version else None
    if step is None:
        first = state.step(group, 1)
        since = f"; its first commit is at {millis_to_text(first.committed_at)}" if first else ""
        raise refusal("unknown-version", f"group {group!r} had no version then{since}", group=group)
    level = state.line(group, name, version)
    if level is not None:
        return At(group, name, level.branch, level.upto)
    if step.operation == DROP_GROUP:
        raise _dropped(group, version)
    raise refusal("unknown-branch", f"group {group!r} had no branch {name!r} then", group=group, branch=name)


def _at_ancestor(state: State, group: str, version: int, steps: Sequence[int]) -> At:
    step = standing(state, group, version)
    for taken, parent in enumerate(steps):
        if step is None or parent > len(step.parents):
            found = parents_told(step) if step else "nothing stands before it"
            after = f", after {taken} of {len(steps)} steps" if len(steps) > 1 else ""
            raise refusal("unknown-version", f"group {group!r} has no such ancestor: {found}{after}", group=group)
        step = standing(state, group, step.parents[parent - 1])
    if step is None:
        raise refusal("unknown-version", f"no commit stands before that in group {group!r}", group=group)
    return _at_version(state, group, step.version)


def _refuse_dropped(state: State, group: str) -> None:
    """Raises NotFound where the group was dropped and not written to again."""
    head = state.head(group)
    step = state.step(group, head.version) if head else None
    if step is not None and step.operation == DROP_GROUP:
        raise _dropped(group, step.version)


def _dropped(group: str, version: int) -> NotFound:
    error = refusal(
        "unknown-group",
        f"group {group!r} was dropped at version {version}; its earlier versions can still be read by number or time",
        group=group,
        dropped_at=version,
    )
    assert isinstance(error, NotFound)
    return error


def _known_branch(state: State, group: str, branch_id: int) -> Branch:
    branch = state.branch_by_id(group, branch_id)
    assert branch is not None, f"group {group!r} has no branch with id {branch_id}"
    return branch
