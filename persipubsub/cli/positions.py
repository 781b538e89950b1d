"""Points in time, and in a queue, on the command line: a time, a message id or a word."""

import datetime
from typing import Any, Optional

import click

from persipubsub.cli.quantities import ParamType


def moment(text: str, *others: str) -> datetime.datetime:
    """Return a time that is written as in ISO 8601, with a timezone.

    :param others: what else the text could be, for the error
    :raise ValueError: it is not such a time
    """
    try:
        found = datetime.datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text)
    except ValueError as error:
        forms = ", ".join(["a time such as 2026-01-31T12:00:00Z", *others])
        raise ValueError(
            f"{text!r:.40} is none of these: {forms}." if others else f"{text!r:.40} is not {forms}.") from error
    if found.utcoffset() is None:
        raise ValueError(f"{text!r:.40} has no timezone. Write {found.isoformat()}Z for UTC, or add an offset such as "
                         "+01:00.")
    return found


class Position(ParamType):
    """The type of a parameter that takes a time with a timezone, and perhaps a message id or a word."""

    name = "position"

    def __init__(self, *words: str, ids: bool = False) -> None:
        self._words = words
        self._ids = ids

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        """Return the word, the message id or the time of a text."""  # Any: as in click
        if value in self._words or not isinstance(value, str):
            return value
        if self._ids and value.isascii() and value.isdigit() and len(value) <= 30:
            return int(value)
        try:
            return moment(value, *(["a message id"] if self._ids else []), *self._words)
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: A time alone.
MOMENT = Position()
