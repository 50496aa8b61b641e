"""/docs: the OpenAPI document as one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import orjson

_METHODS = ("get", "post", "put", "patch", "delete")
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:2.5rem;border-bottom:1px solid #8884}
details{border:1px solid #8884;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer} code,pre{font:13px/1.45 ui-monospace,monospace}
pre{overflow:auto;background:#8881;padding:.6rem;border-radius:6px}
.m{display:inline-block;min-width:4.2rem;font-weight:700}.get{color:#2a7}.post{color:#27c}.put{color:#a60}
.patch{color:#a0a}.delete{color:#c33}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}
td:first-child{white-space:nowrap}
"""


def page(openapi: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    about = openapi["info"]
    sections = "".join(_section(openapi, tag) for tag in openapi.get("tags", []))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(about['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(about['title'])} <small>{escape(about['version'])}</small></h1>"
        f"{_prose(about.get('description', ''))}"
        f'<p><a href="openapi.json">openapi.json</a> is the same for programs.</p>{sections}</html>'
    )


def _section(openapi: dict[str, Any], tag: dict[str, Any]) -> str:
    operations = "".join(
        _operation(openapi, method, path, operation)
        for path, item in openapi["paths"].items()
        for method, operation in item.items()
        if method in _METHODS and tag["name"] in operation.get("tags", [])
    )
    return f"<h2>{escape(tag['name'])}</h2>{_prose(tag.get('description', ''))}{operations}"


def _operation(openapi: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    return (
        f'<details><summary><span class="m {method}">{method.upper()}</span> <code>{escape(path)}</code> '
        f"— {escape(operation.get('summary', ''))}</summary>{_prose(operation.get('description', ''))}"
        f"{_parameters(operation.get('parameters', []))}{''.join(_body(openapi, operation))}"
        f"{''.join(_answers(openapi, operation))}</details>"
    )


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code> <small>{escape(one['in'])}</small></td>"
        f"<td>{_code(one.get('description', ''))}</td></tr>"
        for one in parameters
        if one["in"] != "path"
    )
    return f"<table>{rows}</table>" if rows else ""


def _body(openapi: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<h4>Body <small>{escape(media)}</small></h4>{_example(openapi, content)}"


def _answers(openapi: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    for status, told in operation.get("responses", {}).items():
        if not status.isdigit():
            continue
        yield f"<h4>{escape(status)} <small>{escape(told.get('description', ''))}</small></h4>"
        for content in told.get("content", {}).values():
            yield _example(openapi, content)


def _example(openapi: dict[str, Any], content: dict[str, Any]) -> str:
    example = content.get("example", _first_example(openapi, content.get("schema", {})))
    if example is None:
        return ""
    text = example if isinstance(example, str) else orjson.dumps(example, option=orjson.OPT_INDENT_2).decode()
    return f"<pre>{escape(text)}</pre>"


def _first_example(openapi: dict[str, Any], schema: dict[str, Any]) -> Any:
    reference = schema.get("$ref", "")
    if reference.startswith("#/components/schemas/"):
        schema = openapi["components"]["schemas"][reference.rsplit("/", 1)[1]]
    examples = schema.get("examples")
    return examples[0] if examples else None


def _prose(text: str) -> str:
    return "".join(f"<p>{_code(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())


def _code(text: str) -> str:
    """Escaped, with `what stands in backticks` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if odd % 2 else part for odd, part in enumerate(parts))
