"""Where a replay puts what it makes: into a place of its own, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from versolog.projections.replay import _fresh_directory
from versolog.schemas.errors import Misconfigured


def test_only_what_replays_left_is_taken_away(tmp_path: Path) -> None:
    kept = tmp_path / ".backup-2024"
    left = tmp_path / ".backup.versolog-replay-killed"
    for directory in (kept, left):
        directory.mkdir()
        (directory / "file").touch()
    with _fresh_directory(tmp_path / "backup") as directory:
        (directory / "made").touch()
    assert (kept / "file").exists()
    assert not left.exists()
    assert (tmp_path / "backup" / "made").exists()


def test_an_empty_directory_is_replaced_and_a_full_one_kept(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with _fresh_directory(into) as directory:
        (directory / "made").touch()
    with pytest.raises(Misconfigured, match="is not empty"), _fresh_directory(into):
        raise AssertionError("it was begun")
    assert [path.name for path in tmp_path.rglob("*")] == ["into", "made"]


def test_what_can_not_be_made_is_said_before_anything_is_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for into, match in ((file, "is a file"), (here, "where you stand"), (file / "below", "Name a directory")):
        with pytest.raises(Misconfigured, match=match), _fresh_directory(into):
            raise AssertionError("it was begun")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LookupError), _fresh_directory(tmp_path / "into"):
        raise LookupError
    assert list(tmp_path.iterdir()) == []
