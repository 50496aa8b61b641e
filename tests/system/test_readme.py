"""The README's blocks are run as they stand, against a worker of this test's in place of the one they name."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from tests.cluster import Cluster

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SAID = re.compile(r"print\(.*#\s*(.+)$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README.read_text()) if kind == language]


def test_the_python_blocks_do_what_their_comments_say(cluster: Cluster) -> None:
    worker = cluster.start("w1")
    cluster.owned()
    ran = 0
    for block in blocks("python"):
        here = block.replace("http://127.0.0.1:8080", worker.url)
        here = here.replace('Producer("127.0.0.1:9092"', f'Producer("{cluster.kafka["bootstrap.servers"]}"')
        here = here.replace(") as producer", f', prefix="{cluster.topics.prefix}") as producer')
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(here, str(README), "exec"), {})
        for expected, line in zip(SAID.findall(block), said.getvalue().splitlines(), strict=False):
            assert line == expected.strip()
        ran += 1
    assert ran == 2


def test_the_readme_names_what_there_is() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / link).exists(), link
