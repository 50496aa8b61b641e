"""How large things may be. The defaults fit a Kafka with its own default record limit (1,048,588 bytes)."""

from __future__ import annotations

from versolog.schemas.errors import Invalid, TooLarge

GROUP_BYTES_MAX = 256
TABLE_BYTES_MAX = 128
KEY_BYTES_MAX = 1_024
NAME_BYTES_MAX = 128
ID_BYTES_MAX = 128
AUTHOR_BYTES_MAX = 256
TYPE_BYTES_MAX = 256
MESSAGE_BYTES_MAX = 4_096
ROW_BYTES_MAX = 512 * 1024
CHANGES_MAX = 10_000
GROUPS_MAX = 500
"""Groups in one transaction: each of its commits names all others, so that these grow with the square."""
TRANSACTION_BYTES_MAX = 1_000_000
RECORD_BYTES_MAX = 1_000_000
"""No record of ours is larger: a larger commit is cut into pieces, a longer list of outcomes into records."""

DETAIL_CHARACTERS_MAX = 2_000
FACTS_BYTES_MAX = 512 * 1024
"""What an outcome tells of a refusal. Callers' own words are in it, and it must fit a record whatever they sent."""

_NAMES = {
    "group": GROUP_BYTES_MAX,
    "table": TABLE_BYTES_MAX,
    "key": KEY_BYTES_MAX,
    "id": ID_BYTES_MAX,
    "branch": NAME_BYTES_MAX,
    "tag": NAME_BYTES_MAX,
}


def check_name(what: str, name: str) -> str:
    """`name`, or Invalid where it is empty and TooLarge where its UTF-8 is over the limit for a `what`."""
    if not name:
        raise Invalid(f"an empty {what} is not a name; give at least one character", field=what)
    # A character is at most four bytes, so most names are passed without encoding them.
    if len(name) * 4 > _NAMES[what] and (size := len(name.encode())) > _NAMES[what]:
        raise TooLarge(f"the {what} has {size:,} bytes; the limit is {_NAMES[what]:,}", field=what, limit=_NAMES[what])
    return name
