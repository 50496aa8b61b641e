"""A real Git repository as an oracle: commits of whole rows, and Git's own merges of them.

Objects are written as Git keeps them, loose; whatever is merged, and every merge base, is Git's own answer.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versolog.schemas.documents import from_text, to_text

Rows = Mapping[str, dict[str, Any]]
"""By key."""

MERGE_TREE = ["git", "merge-tree", "--write-tree", "--stdin", "--no-messages"]
UNBUFFERED = shutil.which("stdbuf")  # Git before 2.40 keeps answers back until its input ends
WHO = "t <t@example.org>"
ABSENT = "~"
MAP = "{}"


@dataclass
class Merged:
    """What Git made of a merge."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those in no conflict."""
    files: dict[str, str] = field(default_factory=dict)
    """The conflicting files by key, with Git's marks in them."""
    stages: dict[str, set[int]] = field(default_factory=dict)
    """Of the conflicting files: 1 for the base, 2 for ours, 3 for theirs, where they are there."""
    impossible: set[str] = field(default_factory=set)
    """Keys of files that Git merged, and that no row has: with a field within what is no map."""


class ImpossibleRowError(Exception):
    """A file that no row has."""


class GitRepository:
    """Rows as files: one file a row, one line a field, with lines between that never change."""

    def __init__(self, path: Path, slots: Sequence[str]) -> None:
        """`slots` are the paths of all fields that rows can have, maps before what is in them."""
        self.path, self.slots = path, slots
        subprocess.run(["git", "init", "--quiet", "--bare", str(path)], check=True)
        self._trees: dict[str, dict[str, str]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.made = 0

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait(timeout=10)

    # Commits

    def commit(self, rows: Rows, parents: Sequence[str]) -> str:
        return self.commit_tree(self.tree(rows), parents)

    def tree(self, rows: Rows) -> str:
        entries = {key: self._write("blob", self.file(key, row).encode()) for key, row in rows.items()}
        lines = (b"100644 " + key.encode() + b"\0" + bytes.fromhex(entries[key]) for key in sorted(entries))
        name = self._write("tree", b"".join(lines))
        self._trees[name] = entries
        return name

    def commit_tree(self, tree: str, parents: Sequence[str]) -> str:
        """Each commit is another, and later than those before it."""
        self.made += 1
        when = f"{WHO} {1_000_000_000 + self.made} +0000"
        lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {when}", f"committer {when}"]
        return self._write("commit", ("\n".join(lines) + f"\n\n{self.made}\n").encode())

    def tree_of(self, commit: str) -> str:
        return self._read(commit).split(b"\n", 1)[0].removeprefix(b"tree ").decode()

    def parents(self, commit: str) -> list[str]:
        lines = self._read(commit).decode().splitlines()
        return [line.removeprefix("parent ") for line in lines if line.startswith("parent ")]

    def rows(self, commit: str) -> dict[str, dict[str, Any]]:
        entries = self._entries(self.tree_of(commit))
        return {key: self.row(self._read(blob).decode()) for key, blob in entries.items()}

    # Questions

    def merge_bases(self, one: str, other: str) -> set[str]:
        return set(self._run("merge-base", "--all", one, other).split())

    def apart(self, one: str, other: str) -> tuple[int, int]:
        """How many commits lead to one and not to the other, and the other way round."""
        ahead, behind = self._run("rev-list", "--left-right", "--count", f"{one}...{other}").split()
        return int(ahead), int(behind)

    def merge(self, ours: str, theirs: str) -> Merged:
        status, tree, *conflicts = self._ask(f"{ours} {theirs}\n")
        merged = Merged()
        for line in conflicts:
            about, key = line.split("\t")
            merged.stages.setdefault(key, set()).add(int(about[-1]))
        assert (status == "1") is not bool(merged.stages), (status, conflicts)
        for key, blob in self._entries(tree).items():
            text = self._read(blob).decode()
            if key in merged.stages:
                merged.files[key] = text
                continue
            try:
                merged.rows[key] = self.row(text)
            except ImpossibleRowError:
                merged.impossible.add(key)
        return merged

    def apply(self, base: Rows | str, ours: str, theirs: Rows | str) -> Merged:
        """What the changes from `base` to `theirs` make of `ours`: how Git reverts and picks."""
        trees = [self.tree_of(side) if isinstance(side, str) else self.tree(side) for side in (base, ours, theirs)]
        root = self.commit_tree(trees[0], [])
        return self.merge(*(self.commit_tree(tree, [root]) for tree in trees[1:]))

    def _run(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _ask(self, line: str) -> list[str]:
        if UNBUFFERED is None:
            done = subprocess.run(MERGE_TREE, cwd=self.path, input=line.encode(), check=True, stdout=subprocess.PIPE)
            return done.stdout.decode().split("\0")[:-2]
        if self._process is None:
            command = [UNBUFFERED, "-o0", *MERGE_TREE]
            self._process = subprocess.Popen(
                command, cwd=self.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode())
        answer = b""
        while not answer.endswith(b"\0\0"):
            more = self._process.stdout.read(65_536)
            assert more, "git merge-tree ended"
            answer += more
        return answer.decode().split("\0")[:-2]

    # Rows as files

    def file(self, key: str, row: dict[str, Any]) -> str:
        """Each field's line stands apart, so that changes of two are apart for Git; and what is between is of this row
        alone, so that Git does not take one file for another that was renamed."""
        fields = (f"{slot} = {_spelled(row, slot.split('.'))}\n" for slot in self.slots)
        between = ("".join(f"line {line} of {key} after {slot}\n" for line in range(1, 5)) for slot in self.slots)
        return "".join(line for pair in zip(fields, between, strict=True) for line in pair)

    def row(self, file: str) -> dict[str, Any]:
        """Raises ImpossibleRowError."""
        row: dict[str, Any] = {}
        for line in file.splitlines():
            slot, is_field, value = line.partition(" = ")
            if not is_field or value == ABSENT:
                continue
            *outer, name = slot.split(".")
            inner: Any = row
            for step in outer:
                inner = inner.get(step)
                if not isinstance(inner, dict):
                    raise ImpossibleRowError(slot)
            inner[name] = {} if value == MAP else from_text(value)
        return row

    @staticmethod
    def conflicting(file: str) -> set[str]:
        """The fields between Git's marks."""
        found, within = set(), False
        for line in file.splitlines():
            if line.startswith(("<<<<<<<", ">>>>>>>")):
                within = line.startswith("<")
            elif within and " = " in line:
                found.add(line.partition(" = ")[0])
        return found

    @staticmethod
    def settled(file: str, sides: Mapping[str, str]) -> str:
        """The file with each conflicting field as `sides` says: ours or theirs."""
        lines, side = [], ""
        for line in file.splitlines(keepends=True):
            if line.startswith("<<<<<<<"):
                side = "ours"
            elif line.startswith("======="):
                side = "theirs"
            elif line.startswith(">>>>>>>"):
                side = ""
            elif not side or sides[line.partition(" = ")[0]] == side:
                lines.append(line)
        return "".join(lines)

    # Objects

    def _entries(self, tree: str) -> dict[str, str]:
        known = self._trees.get(tree)
        if known is None:
            known, rest = {}, self._read(tree)
            while rest:
                head, rest = rest.split(b"\0", 1)
                known[head.split(b" ", 1)[1].decode()], rest = rest[:20].hex(), rest[20:]
            self._trees[tree] = known
        return known

    def _write(self, kind: str, content: bytes) -> str:
        whole = f"{kind} {len(content)}".encode() + b"\0" + content
        name = hashlib.sha1(whole).hexdigest()
        place = self.path / "objects" / name[:2] / name[2:]
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(zlib.compress(whole, 1))
        return name

    def _read(self, name: str) -> bytes:
        stored = (self.path / "objects" / name[:2] / name[2:]).read_bytes()
        return zlib.decompress(stored).split(b"\0", 1)[1]


def _spelled(row: Any, path: Sequence[str]) -> str:
    for name in path:
        if not isinstance(row, dict) or name not in row:
            return ABSENT
        row = row[name]
    return MAP if isinstance(row, dict) else to_text(row)
