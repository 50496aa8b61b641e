"""What is written from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from versolog.cli.writing import _text_in
from versolog.schemas.errors import Invalid, Malformed


def test_a_file_is_read_as_utf_8_whatever_the_terminal_speaks(tmp_path: Path) -> None:
    file = tmp_path / "transactions"
    with pytest.raises(Invalid, match="can't be read"):
        _text_in(file)
    file.write_bytes("\u65e5".encode())
    assert _text_in(file) == "\u65e5"
    file.write_bytes(b"\xff")
    with pytest.raises(Malformed, match="not UTF-8"):
        _text_in(file)
