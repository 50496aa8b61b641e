"""The `where` language: conditions on a row's fields.

    status = "departed" and delay > 15
    gate in ("A1", "A2") or not exists crew.captain
    `odd name`.sub != 'x'

A field is a name, or names joined by dots for a field of a map; one with other characters stands in backquotes. A
value is a JSON number, `true`, `false`, `null`, text in double quotes (with JSON's escapes) or in single quotes (as it
stands), or a word, which is text. Conditions are `=`, `!=`, `<`, `<=`, `>`, `>=`, `in (…)` and `exists field`; they are
joined by `and`, `or`, `not` and parentheses, `and` before `or`.

Values compare with their own kind only: a number and a text are not equal, and neither is less than the other. Text
compares by code point. A field that is absent equals nothing, so that `!=` holds for it and any other condition fails.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from versolog.schemas.documents import Document
from versolog.schemas.errors import Malformed

CHARACTERS_MAX = 4_096
DEPTH_MAX = 50

Test = Callable[[Document], bool]


@dataclass(frozen=True, slots=True)
class Predicate:
    """A condition on a row. Call it with the row as a document."""

    text: str
    test: Test

    @classmethod
    def parse(cls, text: str) -> Predicate:
        """The condition that `text` says. Raises Malformed with the `position` (from 1) of what can't be read."""
        return cls(text, _Parser(text).whole())

    def __call__(self, document: Document) -> bool:
        return self.test(document)


class _Absent:
    """The value of a field that isn't there. Equal to nothing."""


_ABSENT: Any = _Absent()

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.:+-]))
      | (?P<text>"(?:[^"\\]|\\.)*"|'[^']*')
      | (?P<field>(?:[^\W\d][\w-]*|`[^`]+`)(?:\.(?:[\w-]+|`[^`]+`))*)
      | (?P<word>[\w.:+-]+)
      | (?P<sign>!=|<=|>=|=|<|>|\(|\)|,)
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_PART = re.compile(r"`([^`]+)`|([\w-]+)")
_RESERVED = {"and", "or", "not", "in", "exists"}
_CONSTANTS = {"true": True, "false": False, "null": None}
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Recursive descent, one method a rule."""

    def __init__(self, text: str) -> None:
        if len(text) > CHARACTERS_MAX:
            raise Malformed(
                f"a condition has at most {CHARACTERS_MAX:,} characters", field="where", limit=CHARACTERS_MAX
            )
        self._tokens = _tokens(text)
        self._token = next(self._tokens)
        self._depth = 0

    def whole(self) -> Test:
        test = self._any()
        if self._token.kind != "end":
            self._refuse("`and`, `or` or the end")
        return test

    def _any(self) -> Test:
        tests = [self._all()]
        while self._took("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda document: any(test(document) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._took("and"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda document: all(test(document) for test in tests)

    def _one(self) -> Test:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            self._refuse(f"at most {DEPTH_MAX} levels of `not` and parentheses")
        try:
            if self._took("not"):
                inner = self._one()
                return lambda document: not inner(document)
            if self._took("("):
                inner = self._any()
                self._take(")")
                return inner
            if self._took("exists"):
                read = _reader(self._field())
                return lambda document: read(document) is not _ABSENT
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Test:
        read = _reader(self._field())
        if self._took("in"):
            self._take("(")
            values = [self._value()]
            while self._took(","):
                values.append(self._value())
            self._take(")")
            return lambda document: any(_equal(read(document), value) for value in values)
        sign = self._token.text
        if self._token.kind != "sign" or sign in "(),":
            self._refuse("a comparison (= != < <= > >=) or `in`")
        self._next()
        value = self._value()
        if sign == "=":
            return lambda document: _equal(read(document), value)
        if sign == "!=":
            return lambda document: not _equal(read(document), value)
        order = _ORDERS[sign]
        return lambda document: _comparable(found := read(document), value) and order(found, value)

    def _field(self) -> tuple[str, ...]:
        token = self._token
        if token.kind != "field" or token.text in _RESERVED:
            self._refuse("a field")
        self._next()
        return tuple(quoted or plain for quoted, plain in _PART.findall(token.text))

    def _value(self) -> Any:
        token = self._token
        if token.kind not in ("number", "text", "field", "word") or token.text in _RESERVED or "`" in token.text[:1]:
            self._refuse("a value (text that is a reserved word, or has other characters, in quotes)")
        self._next()
        if token.kind == "number" or token.text[0] == '"':
            try:
                return orjson.loads(token.text)
            except orjson.JSONDecodeError:
                self._refuse("a number or a text as JSON has it", token)
        if token.kind == "text":
            return token.text[1:-1]
        return _CONSTANTS.get(token.text, token.text)

    def _took(self, text: str) -> bool:
        if self._token.kind == "text" or self._token.text != text:
            return False
        self._next()
        return True

    def _take(self, text: str) -> None:
        if not self._took(text):
            self._refuse(f"`{text}`")

    def _next(self) -> None:
        self._token = next(self._tokens)

    def _refuse(self, wanted: str, token: _Token | None = None) -> NoReturn:
        _refuse(token or self._token, wanted)


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            _refuse(_Token("", text[start : start + 1], start), "a field, a value or a sign")
        assert match.lastgroup is not None
        token = _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        position = match.end()
        yield token


def _refuse(token: _Token, wanted: str) -> NoReturn:
    found = f"`{token.text}`" if token.text else "the end"
    raise Malformed(
        f"the condition can't be read at character {token.start + 1}: {wanted} was expected, {found} was found",
        field="where",
        position=token.start + 1,
        expected=wanted,
        found=token.text,
    )


def _reader(path: tuple[str, ...]) -> Callable[[Document], Any]:
    """What finds the field at `path` of a document."""
    if len(path) == 1:
        name = path[0]
        return lambda document: document.get(name, _ABSENT)

    def read(document: Document) -> Any:
        value: Any = document
        for name in path:
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        return value

    return read


def _equal(found: Any, value: Any) -> bool:
    return bool(found == value) if _comparable(found, value) or value is None else found is value


def _comparable(found: Any, value: Any) -> bool:
    """Whether both are numbers, or both texts. To Python true is a number too, to JSON it isn't."""
    if isinstance(value, str):
        return isinstance(found, str)
    return _is_number(value) and _is_number(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
