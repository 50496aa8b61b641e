"""docs/http-api.md is true: its examples are run in order, and nothing there is goes without mention."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import orjson
import pytest

from tests.inprocess import Served, house
from versolog.projections.metrics import Counted
from versolog.schemas.errors import REFUSALS

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"
TEXT = DOCUMENT.read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE = "localhost:8080"


def examples() -> Iterator[tuple[str, str | None]]:
    """Each command with the answer that stands below it."""
    blocks = BLOCK.findall(TEXT)
    for (kind, text), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "console":
            yield text, following[1] if following[0] == "json" else None


def request_of(command: str) -> httpx.Request:
    """The request that a curl command makes, by the few options that the examples use."""
    words = iter(shlex.split(command))
    assert next(words) == "curl"
    method, url, body, query = "", "", None, False
    headers: dict[str, str] = {}
    pairs: list[str] = []
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-G":
            query = True
        elif word in ("-d", "--data-binary"):
            pairs.append(next(words))
        elif word == "--data-urlencode":
            name, _, value = next(words).partition("=")
            pairs.append(urlencode({name: value}))
        elif word == "--json":
            pairs.append(next(words))
            headers["content-type"] = "application/json"
        else:
            assert not word.startswith("-"), f"the test knows no {word}"
            url = word
    if query:
        url += "?" + "&".join(pairs)
    elif pairs:
        body = "&".join(pairs)
    method = method or ("POST" if body is not None else "GET")
    return httpx.Request(method, f"http://{url.replace(HERE, 'node')}", headers=headers, content=body)


def matches(shown: Any, answered: Any) -> bool:
    """Whether an answer is what is shown, where `…` stands for anything."""
    if shown == "…":
        return True
    if isinstance(shown, dict) and isinstance(answered, dict):
        if "…" not in shown and shown.keys() != answered.keys():
            return False
        named = {name: value for name, value in shown.items() if name != "…"}
        return all(name in answered and matches(value, answered[name]) for name, value in named.items())
    if isinstance(shown, list) and isinstance(answered, list):
        return len(shown) == len(answered) and all(map(matches, shown, answered))
    return bool(shown == answered) and type(shown) is type(answered)


async def test_the_examples_answer_as_shown(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for command, shown in examples():
            response = await client.send(request_of(command))
            if shown is None:
                assert response.is_success, f"{command}\n{response.text}"
                continue
            expected = _documents(shown)
            answered = [orjson.loads(line) for line in response.content.splitlines()]
            assert len(expected) == len(answered), response.text
            for one, other in zip(expected, answered, strict=True):
                assert matches(one, other), f"{command}\nshown    {one}\nanswered {other}"


def test_the_python_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = [text for kind, text in BLOCK.findall(TEXT) if kind == "python" and "from versolog" in text]
    served = Served(tmp_path)
    try:
        for example in examples:
            exec(compile(example.replace("http://127.0.0.1:8080", served.url), str(DOCUMENT), "exec"), {})
    finally:
        served.stop()
    printed = capsys.readouterr().out
    assert "2 ops {'delay': 9}" in printed
    assert "{'delay': 5, 'gate': 'C3'}" in printed


def _documents(shown: str) -> list[Any]:
    """One document, or one a line."""
    try:
        return [orjson.loads(shown)]
    except orjson.JSONDecodeError:
        return [orjson.loads(line) for line in shown.splitlines()]


async def test_every_path_is_mentioned(tmp_path: Path) -> None:
    async with house(tmp_path) as (_, client):
        for path, item in (await client.get("/openapi.json")).json()["paths"].items():
            pattern = re.sub(r"\\\{\w+\\\}", r"[^ /`?']+", re.escape(path))
            assert re.search(pattern, TEXT), f"{path} is not in {DOCUMENT.name}"
            assert item


def test_every_code_is_in_the_table() -> None:
    source = Path(__file__).parents[2] / "versolog"
    files = [*(source / "projections" / "http").glob("*.py"), source / "projections" / "node.py"]
    codes = {code for file in files for code in re.findall(r'code="([a-z-]+)"', file.read_text())}
    codes |= set(REFUSALS)
    missing = sorted(code for code in codes if f"`{code}`" not in TEXT)
    assert not missing, f"codes that {DOCUMENT.name} does not name: {missing}"


async def test_every_metric_is_in_the_table(tmp_path: Path) -> None:
    async with house(tmp_path) as (built, client):
        Counted(built.metrics)
        text = (await client.get("/metrics")).text
        names = set(re.findall(r"^# HELP (versolog_\w+)", text, re.MULTILINE))
        names = {name for name in names if not name.endswith("_created")}
        missing = sorted(name for name in names if f"`{name}`" not in TEXT)
        assert not missing, f"metrics that {DOCUMENT.name} does not name: {missing}"
