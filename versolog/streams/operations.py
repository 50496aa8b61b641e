"""Version-control operations on a group: what each changes in rows and refs. Pure, and decided like any write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from versolog.schemas.codec import Record
from versolog.schemas.documents import from_text, to_bytes
from versolog.schemas.errors import VersologError, refusal
from versolog.schemas.limits import ROW_BYTES_MAX, check_name
from versolog.schemas.tables import incompatibility, table_schema
from versolog.streams import merging
from versolog.streams.changes import Line
from versolog.streams.checks import as_kept, is_constant, read_checks
from versolog.streams.graph import is_ancestor
from versolog.streams.invariants import sums_now
from versolog.streams.settings import merge_rules
from versolog.streams.state import DERIVED_TABLES, MAIN, SETTINGS_TABLE, Branch, Head, State
from versolog.streams.versions import DROP_GROUP, check_ref_name, diff, resolve, touched, unknown_branch

LENGTHY = frozenset({"merge", "revert", "cherry-pick", "rollback", "set-checks", "set-schema", "delete-branch"})
"""What may look at very many rows, and so take long to decide."""
REFS_MAX = 5_000
"""Branches and tags in a group, so that dropping it fits one record."""


class Ground:
    """Where an operation stands: the group, its head, the branch (None where it does not exist) and its rows."""

    __slots__ = ("branch", "branch_name", "group", "head", "line", "state")

    def __init__(
        self, state: State, group: str, head: Head | None, branch_name: str, branch: Branch | None, line: Line
    ) -> None:
        self.state = state
        self.group = group
        self.head = head
        self.branch_name = branch_name
        self.branch = branch
        self.line = line


@dataclass(slots=True)
class Effect:
    """What an operation does besides the rows changed on its line."""

    refs: list[Record] = field(default_factory=list)
    moves_head: bool = True
    """False for operations on refs: they take a version and belong to no line of commits."""
    branch: Branch | None = None
    """The branch that the commit names, where it is not the one asked for."""
    parents: tuple[int, ...] | None = None
    """The commit's parents, where they are not just the head of its branch."""


def perform(ground: Ground, operation: Record) -> Effect:
    """The effect of `operation`; row changes go onto `ground.line`. Raises its refusal."""
    kind = operation["kind"]
    found = KINDS.get(kind)
    if found is None:
        raise refusal("unknown-operation", f"there is no operation {kind!r}; known: {', '.join(sorted(KINDS))}")
    if (size := len(operation["arguments"].encode())) > ROW_BYTES_MAX:
        raise refusal(
            "too-large", f"the arguments of {kind} have {size:,} bytes; the limit is {ROW_BYTES_MAX:,}",
            limit=ROW_BYTES_MAX,
        )  # fmt: skip
    try:
        arguments = from_text(operation["arguments"])
    except VersologError as error:
        raise refusal("malformed", f"the arguments of {kind}: {error.detail}") from error
    function, known = found
    if not isinstance(arguments, dict):
        raise refusal("malformed", f"the arguments of {kind} are a JSON object")
    for name, value in arguments.items():
        if name not in known:
            raise refusal("invalid", f"{kind} takes no {name!r}; it takes {', '.join(known) or 'nothing'}", field=name)
        if value is not None and type(value) is not known[name]:
            raise refusal("invalid", f"{name} of {kind} is not a {known[name].__name__}", field=name)
    if ground.head is None or _is_dropped(ground.state, ground.group, ground.head):
        raise refusal(
            "unknown-group", f"there is no group {ground.group!r}, or it was dropped: write a row to begin it",
            group=ground.group,
        )  # fmt: skip
    return function(ground, ground.head, {name: arguments.get(name) for name in known})


def _is_dropped(state: State, group: str, head: Head) -> bool:
    newest = state.step(group, head.version)
    return newest is not None and newest.operation == DROP_GROUP


def _branch(ground: Ground) -> Branch:
    if ground.branch is None:
        raise unknown_branch(ground.group, ground.branch_name)
    return ground.branch


def _rollback(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Make the branch, or a part of its rows, equal a past version."""
    branch = _branch(ground)
    if arguments["to"] is None:
        raise refusal("invalid", "rollback needs `to`: the version, tag or time to go back to", field="to")
    state, group = ground.state, ground.group
    now = resolve(state, group, branch.name, None)
    then = resolve(state, group, arguments["to"], branch.name)
    rows = touched(state, group, now.version, then.version).rows
    wanted = {row for row in rows if _asked_for(row, arguments)}
    for changed in diff(state, now, then, wanted):
        ground.line.changed[changed.table, changed.key] = changed.after.text if changed.after else None
    return Effect()


def _asked_for(row: tuple[str, str], arguments: dict[str, Any]) -> bool:
    table, key = row
    if table in DERIVED_TABLES:
        return False
    if table == SETTINGS_TABLE and arguments["table"] is None and (arguments["key"], arguments["prefix"]) != (None, None):
        return False  # its keys are tables, and rows are asked for
    return (
        (arguments["table"] is None or table == arguments["table"])
        and (arguments["key"] is None or key == arguments["key"])
        and (arguments["prefix"] is None or key.startswith(arguments["prefix"]))
    )


def _tag(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Name a version."""
    name = check_ref_name("tag", arguments["name"] or "")
    state, group = ground.state, ground.group
    if state.branch(group, name) is not None:
        raise refusal("ref-exists", f"{name!r} is a branch of {group!r}; choose another name", group=group, name=name)
    found = state.tag(group, name)
    at = resolve(state, group, arguments["at"], ground.branch_name)
    if found is not None and not arguments["move"]:
        raise refusal(
            "ref-exists", f"the tag {name!r} names version {found}; say `move` to move it",
            group=group, name=name, expected=0, found=found,
        )  # fmt: skip
    if found is None:
        _refuse_too_many_refs(state, group)
    return Effect([_ref("tag", name, at.version)], moves_head=False)


def _delete_tag(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    name = check_ref_name("tag", arguments["name"] or "")
    if ground.state.tag(ground.group, name) is None:
        raise refusal(
            "unknown-ref", f"the group {ground.group!r} has no tag {name!r}: list its tags to see which there are",
            group=ground.group, name=name,
        )  # fmt: skip
    return Effect([_ref("tag", name, None)], moves_head=False)


def _create_branch(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Begin a line of commits at a version: nothing is copied, reads fall through to where it began."""
    name = check_ref_name("branch", arguments["name"] or "")
    state, group = ground.state, ground.group
    if state.branch(group, name) is not None or state.tag(group, name) is not None:
        raise refusal("ref-exists", f"{name!r} is taken in {group!r}; choose another name", group=group, name=name)
    _refuse_too_many_refs(state, group)
    at = resolve(state, group, arguments["from"], ground.branch_name)
    branch = Branch(head.version + 1, name, at.version, at.branch_id, at.version, live=True)
    return Effect([_ref("branch", name, at.version, at.branch_id)], moves_head=False, branch=branch)


def _delete_branch(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Take a branch's name away. Its commits stay, and can be read by version."""
    name = check_ref_name("branch", arguments["name"] or "")
    state, group = ground.state, ground.group
    branch = state.branch(group, name)
    if branch is None:
        raise unknown_branch(group, name)
    if name == MAIN:
        raise refusal("invalid", f"{MAIN!r} can't be deleted; drop-group takes the whole group away", branch=name)
    others = [other.head for other in state.branches(group) if other.name != name]
    if not arguments["force"] and not is_ancestor(state, group, branch.head, others):
        raise refusal(
            "not-merged", f"{name!r} has commits that no other branch has: merge it, or say `force`",
            group=group, branch=name, head=branch.head,
        )  # fmt: skip
    return Effect([_ref("branch", name, None)], moves_head=False, branch=branch)


def _merge(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Bring what another branch, tag or version has onto this branch."""
    branch = _branch(ground)
    if arguments["source"] is None:
        raise refusal("invalid", "merge needs `source`: the branch, tag or version to merge", field="source")
    ours = resolve(ground.state, ground.group, branch.name)
    no_ff, settling = bool(arguments["no_ff"]), merging.read_settling(arguments)
    parents = merging.merge(ground.state, ground.line, ours, arguments["source"], no_ff=no_ff, settling=settling)
    return Effect(parents=parents)


def _revert(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Undo commits by a new one."""
    ours = resolve(ground.state, ground.group, _branch(ground).name)
    versions, settling = _versions(ground, arguments), merging.read_settling(arguments)
    merging.revert(ground.state, ground.line, ours, versions, arguments["parent"], settling)
    return Effect()


def _cherry_pick(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Do again here what commits of another branch did."""
    ours = resolve(ground.state, ground.group, _branch(ground).name)
    versions, settling = _versions(ground, arguments), merging.read_settling(arguments)
    merging.cherry_pick(ground.state, ground.line, ours, versions, arguments["parent"], settling)
    return Effect()


def _versions(ground: Ground, arguments: dict[str, Any]) -> list[int]:
    """The commits that are meant: each by its version, or those of a range."""
    versions = arguments["versions"] or []
    if arguments["from"] is not None or arguments["to"] is not None:
        if versions:
            raise refusal("invalid", "`versions` and a range say the same twice: leave one out", field="versions")
        last = arguments["to"] or ground.branch_name
        return merging.in_range(ground.state, ground.group, arguments["from"], last, ground.branch_name)
    if not versions or not all(type(version) is int and version > 0 for version in versions):
        raise refusal("invalid", "`versions` is a list of the commits' versions, at least one; or give `from` and `to`", field="versions")
    return versions


def _set_merge(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Say how conflicts in a table are settled before anyone is asked: a function for rows, and for fields by path."""
    _branch(ground)
    table = _table(arguments)
    row, fields = arguments["row"], arguments["fields"]
    settings = ground.line.settings(table)
    settings.pop("merge", None)
    rules = ({"row": row} if row is not None else {}) | ({"fields": fields} if fields else {})
    settings |= {"merge": rules} if rules else {}
    merge_rules(settings)
    ground.line.give(table, settings)
    return Effect()


def _table(arguments: dict[str, Any]) -> str:
    table = arguments["table"]
    if table is None or not table or table.startswith("$"):
        raise refusal("invalid", "the name of a table is needed, and not of a system table", field="table")
    return check_name("table", str(table))


def _set_schema(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Give a table the Avro schema that rows written from now on must fit; null takes it away."""
    _branch(ground)
    table, definition = _table(arguments), arguments["schema"]
    previous = ground.line.schema(table)
    settings = ground.line.settings(table)
    settings.pop("schema", None)
    if definition is not None:
        schema = table_schema(to_bytes(definition))
        if previous is not None and (reason := incompatibility(schema, previous)) is not None:
            raise refusal(
                "schema-incompatible", f"rows of {table!r} might not fit the new schema at {reason}",
                group=ground.group, table=table, reason=reason,
            )  # fmt: skip
        settings["schema"] = definition
    ground.line.give(table, settings)
    return Effect()


def _set_checks(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Say what the table's rows are held to, those that stand first; these checks take the place of the former ones."""
    _branch(ground)
    table, checks = _table(arguments), arguments["checks"] or {}
    settings = ground.line.settings(table)
    settings.pop("checks", None)
    if checks:
        settings["checks"] = given = {name: as_kept(check) for name, check in checks.items()}
        found = read_checks(settings)
        constant = {name: found[name] for name, check in checks.items() if is_constant(check)}
        for name, total in sums_now(ground.line, table, constant).items():
            given[name]["equals"] = total
    ground.line.give(table, settings)
    return Effect()


def _drop_group(ground: Ground, head: Head, arguments: dict[str, Any]) -> Effect:
    """Take the group away: its branches and tags end here; its log, and its numbering, go on."""
    branch = _branch(ground)
    state, group = ground.state, ground.group
    refs = [_ref("branch", live.name, None) for live in state.branches(group)]
    refs += [_ref("tag", name, None) for name in state.tags(group)]
    return Effect(refs, moves_head=False, branch=branch)


def _refuse_too_many_refs(state: State, group: str) -> None:
    if len(state.tags(group)) + len(state.branches(group)) >= REFS_MAX:
        raise refusal("too-large", f"the group {group!r} has {REFS_MAX:,} branches and tags, the most it can have")


def _ref(kind: str, name: str, version: int | None, parent: int | None = None) -> Record:
    return {"kind": kind, "name": name, "version": version, "parent": parent}


COMMITS: dict[str, type] = {"versions": list, "from": str, "to": str, "parent": int}
SETTLING: dict[str, type] = {"policy": str, "resolutions": list}

_Perform = Callable[[Ground, Head, dict[str, Any]], Effect]
KINDS: dict[str, tuple[_Perform, dict[str, type]]] = {
    "rollback": (_rollback, {"to": str, "table": str, "key": str, "prefix": str}),
    "tag": (_tag, {"name": str, "at": str, "move": bool}),
    "delete-tag": (_delete_tag, {"name": str}),
    "set-schema": (_set_schema, {"table": str, "schema": dict}),
    "drop-group": (_drop_group, {}),
    "create-branch": (_create_branch, {"name": str, "from": str}),
    "delete-branch": (_delete_branch, {"name": str, "force": bool}),
    "merge": (_merge, {"source": str, "no_ff": bool} | SETTLING),
    "revert": (_revert, COMMITS | SETTLING),
    "cherry-pick": (_cherry_pick, COMMITS | SETTLING),
    "set-checks": (_set_checks, {"table": str, "checks": dict}),
    "set-merge": (_set_merge, {"table": str, "row": str, "fields": dict}),
}
