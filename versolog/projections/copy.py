"""A restored copy: what `replay` made, opened read-only and served beside the live store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from versolog.projections.partition import Partition
from versolog.projections.store import Store
from versolog.schemas.errors import Misconfigured

MANIFEST = "replay.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a directory holds; written last, so that a directory with one is whole."""

    identity: str
    """Which log it was rebuilt from."""
    partitions: int
    at: str
    """What was asked for."""
    group: str | None
    """The one group that was restored; None for the whole store."""
    version: int | None
    """Of that group."""
    time_ms: int | None
    """The cut: everything with committed_at up to it is here and nothing after; None with `version`."""
    commits: int
    digest: str

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises Misconfigured where `directory` is not a whole replay."""
        try:
            return cls(**orjson.loads((directory / MANIFEST).read_bytes()))
        except FileNotFoundError:
            raise Misconfigured(f"{directory} holds no finished replay; make one with `versolog replay`") from None
        except (orjson.JSONDecodeError, TypeError, OSError) as error:
            raise Misconfigured(f"{directory / MANIFEST} can't be read: {error}") from error


class CopiedPartition(Partition):
    """One partition of a copy: as readable as an owned one, and it never changes."""

    def __init__(self, number: int, directory: Path, manifest: Manifest) -> None:
        path = directory / f"partition-{number}"
        store = Store.open(path, partition=number, identity=manifest.identity, read_only=True)
        super().__init__(number, store, "owner")
        self._time_ms = manifest.time_ms

    def clock(self, groups: Collection[str] | None = None) -> int:
        """Milliseconds: the copy answers for times below it."""
        return super().clock(groups) if self._time_ms is None else self._time_ms + 1

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Nothing is going to change: the answer is that of now."""
        return ready()


def open_copy(directory: Path) -> tuple[Manifest, dict[int, CopiedPartition]]:
    """The partitions that `directory` holds. Raises Misconfigured where it is not a whole replay."""
    manifest = Manifest.read(directory)
    numbers = [number for number in range(manifest.partitions) if (directory / f"partition-{number}").is_dir()]
    return manifest, {number: CopiedPartition(number, directory, manifest) for number in numbers}
