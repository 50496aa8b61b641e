"""What a table was given: a schema, merge functions and checks, a row of the system table `$tables` under the table's name."""

from __future__ import annotations

from versolog.schemas.documents import Document, to_bytes
from versolog.schemas.errors import refusal
from versolog.schemas.tables import table_schema
from versolog.streams.checks import read_checks
from versolog.streams.fields import field_path
from versolog.streams.merge import FIELD_FUNCTIONS, ROW_FUNCTIONS, Rules

OTHERS = "*"
"""Stands for all fields that have no function of their own."""
RULES_OF_SETTINGS = Rules(fields={("schema",): "schema"}, whole=("checks",))


def merge_rules(settings: Document) -> Rules:
    """The merge functions in a table's settings. Raises the refusal of what is not of their form."""
    given = settings.get("merge", {})
    if not isinstance(given, dict) or given.keys() - {"row", "fields"}:
        raise refusal("invalid", "merge functions are a `row` and `fields`", field="merge")
    row, fields = given.get("row"), given.get("fields", {})
    if row is not None and row not in ROW_FUNCTIONS:
        raise refusal("invalid", f"{row!r} is not one of {', '.join(ROW_FUNCTIONS)}", field="row")
    if not isinstance(fields, dict):
        raise refusal("invalid", "`fields` is an object: functions by the paths of fields", field="fields")
    for path, function in fields.items():
        if not path or function not in FIELD_FUNCTIONS:
            raise refusal(
                "invalid", f"{path!r}: {function!r} is not one of {', '.join(FIELD_FUNCTIONS)}", field="fields"
            )
    named = {field_path(path): function for path, function in fields.items() if path != OTHERS}
    return Rules(row, named, fields.get(OTHERS))


def check_settings(table: str, settings: Document) -> None:
    """Refuse settings that no operation would have left: merging takes what a resolution says."""
    if unknown := settings.keys() - {"schema", "merge", "checks"}:
        raise refusal("invalid", f"{table!r} can't be given {', '.join(sorted(unknown))}", table=table)
    merge_rules(settings)
    read_checks(settings)
    if "schema" in settings:
        table_schema(to_bytes(settings["schema"]))
