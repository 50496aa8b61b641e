"""Runs versolog from its sources although compiled modules stand beside them; VERSOLOG_PURE=1 asks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType


class SourcesOnly(MetaPathFinder):
    """Finds versolog's own modules, and never an extension module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not fullname.startswith("versolog."):
            return None
        finders = (FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES)) for directory in path)
        return next((spec for finder in finders if (spec := finder.find_spec(fullname)) is not None), None)


def install() -> None:
    """Once, before any other module of versolog is imported."""
    sys.meta_path.insert(0, SourcesOnly())
