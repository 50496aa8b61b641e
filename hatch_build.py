"""Compiles the modules that every transaction passes through, where there is a C compiler.

mypyc makes an extension module of each, from the same typed source. In a wheel they stand beside their sources; for an
editable installation `python hatch_build.py` puts them there, and does nothing while they are up to date. Without a
compiler, or with VERSOLOG_PURE=1, versolog runs from the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

MODULES = (
    "schemas/documents",
    "schemas/limits",
    "schemas/readings",
    "schemas/written",
    "streams/chain",
    "streams/changes",
    "streams/checks",
    "streams/decide",
    "streams/fields",
    "streams/graph",
    "streams/invariants",
    "streams/merge",
    "streams/merging",
    "streams/operations",
    "streams/overlay",
    "streams/settings",
    "streams/state",
    "streams/versions",
    "projections/evolve",
    "projections/keys",
    "projections/layout",
    "projections/recent",
)
"""`streams/participant`, `holds` and `shares` are left as they are: the simulator of the protocol runs broken variants
of them, and a compiled class has no interpreted subclasses. It would save about 1 µs of a transaction's 45."""

SOURCES = tuple(Path("versolog", f"{module}.py") for module in MODULES)
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
SHARED = Path(f"versolog__mypyc{SUFFIX}")
"""What the extension modules have in common; it has to be found as a module of its own."""


def wanted(root: Path) -> set[Path]:
    """Where the extension modules stand below `root`, when they are made."""
    return {root / SHARED, *(root / source.with_suffix(SUFFIX) for source in SOURCES)}


def found(root: Path) -> set[Path]:
    """Those that stand there, of modules that are no longer compiled too."""
    return {*root.glob(f"versolog__mypyc*{SUFFIX}"), *root.glob(f"versolog/**/*{SUFFIX}")}


def is_current(root: Path) -> bool:
    """Whether exactly those that are wanted are there, and no older than what they are made of."""
    there = found(root)
    newest = max(path.stat().st_mtime for path in (Path(__file__), *(root / source for source in SOURCES)))
    return there == wanted(root) and newest <= min(path.stat().st_mtime for path in there)


def can_be_made() -> bool:
    """Whether there is what it takes to make them."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def make(root: Path, target: Path) -> None:
    """Make those of the sources below `root` in `target`. Raises CalledProcessError, with what the compiler said."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, __file__, "--compile", scratch],
            cwd=root, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        remove(target)  # a process that runs keeps what it has loaded
        for path in wanted(Path(scratch)):
            place = target / path.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)


def remove(root: Path) -> None:
    """Have the sources used again."""
    for path in found(root):
        path.unlink()


def compile_into(scratch: str) -> None:
    """Compile the sources below the current directory into `scratch`, on all cores."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    class OnAllCores(build_ext):
        """distutils compiles the files of one extension one after another."""

        def build_extension(self, ext: Any) -> None:
            compile_one, link = self.compiler._compile, self.compiler.link_shared_object
            under_way: list[Future[None]] = []

            def link_compiled(*given: Any, **named: Any) -> None:
                for one in under_way:
                    one.result()
                link(*given, **named)

            with ThreadPoolExecutor(os.cpu_count()) as cores:
                self.compiler._compile = lambda *given: under_way.append(cores.submit(compile_one, *given))
                self.compiler.link_shared_object = link_compiled
                super().build_extension(ext)
            self.compiler._compile, self.compiler.link_shared_object = compile_one, link

    checks = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={scratch}/checked"]
    extensions = mypycify(
        [*checks, *map(str, SOURCES)],
        target_dir=f"{scratch}/c", group_name="versolog", multi_file=True, opt_level="2", debug_level="0",
    )  # fmt: skip
    distribution = Distribution({"ext_modules": extensions, "cmdclass": {"build_ext": OnAllCores}})
    command: Any = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = scratch, f"{scratch}/o"
    distribution.run_command("build_ext")


def main() -> None:
    root = Path(__file__).parent
    if sys.argv[1:2] == ["--compile"]:
        compile_into(sys.argv[2])
    elif os.environ.get("VERSOLOG_PURE"):
        print("· VERSOLOG_PURE is set: versolog runs from its sources, at about half the speed")
    elif not can_be_made():
        remove(root)
        print("· no C compiler, or no headers of Python: versolog runs from its sources, at about half the speed")
    elif not is_current(root):
        print("· compiling the modules that every transaction passes through: about a minute")
        try:
            make(root, root)
        except subprocess.CalledProcessError as error:
            remove(root)
            sys.exit(f"{error.output}\n· they could not be compiled; VERSOLOG_PURE=1 does without")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where the build's own tools are not installed
    pass
else:

    class CompiledModules(BuildHookInterface[Any]):
        """Puts the extension modules into a wheel, which is for one version of Python and one platform then."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if version == "editable" or os.environ.get("VERSOLOG_PURE"):
                return
            if not can_be_made():
                self.app.display_warning("no C compiler, or no headers of Python: the wheel has the sources alone")
                return
            target = Path(self.directory, "compiled")
            make(Path(self.root), target)
            build_data["pure_python"], build_data["infer_tag"] = False, True
            for path in wanted(target):
                build_data["force_include"][str(path)] = str(path.relative_to(target))


if __name__ == "__main__":
    main()
