"""Values with units on the command line, such as ``15m`` or ``2GiB``, and ``none`` for no limit."""

import re
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Union

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # not generic in all versions of click

Number = Union[int, float]

#: Seconds in each unit of time.
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
#: Bytes in each unit of size.
BYTES = {"": 1, "B": 1, "kB": 1000}
for _power, _prefix in enumerate("KMGT", 1):
    BYTES[f"{_prefix}B"], BYTES[f"{_prefix}iB"] = 1000**_power, 1024**_power
#: The word for no limit.
NONE = "none"
# A longer number is over every limit.
_QUANTITY = re.compile(r"([0-9]{1,30})(\.[0-9]{1,30})? ?([A-Za-z]*)")


def seconds(text: str) -> Number:
    """Return a time such as ``500``, ``30s``, ``15m``, ``12h`` or ``7d``, in seconds.

    :raise ValueError: it is not a time
    """
    return _value(text, SECONDS, "a time: write seconds, or a number with s, m, h or d, such as 15m")


def size_bytes(text: str) -> int:
    """Return a size such as ``1048576``, ``64KiB``, ``2GiB`` or ``10MB``, in bytes.

    :raise ValueError: it is not a size
    """
    return round(
        _value(text, BYTES, "a size: write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, such as 2GiB"))


def count(text: str) -> int:
    """Return a whole number.

    :raise ValueError: it is not one
    """
    if not re.fullmatch("[0-9]{1,30}", text):
        raise ValueError(f"{text!r:.40} is not a whole number of at most 30 digits.")
    return int(text)


def _value(text: str, units: Dict[str, int], form: str) -> Number:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[3] not in units:
        raise ValueError(f"{text!r:.40} is not {form}.")
    whole, fraction, unit = match.groups()
    if fraction is None:
        return int(whole) * units[unit]
    value = float(whole + fraction) * units[unit]
    return int(value) if value.is_integer() else value


class Quantity(ParamType):
    """The type of an option whose value has a unit."""

    def __init__(self, name: str, read: Callable[[str], Number], or_none: bool = False, least: float = 0) -> None:
        """Make a type.

        :param name: of what the option takes
        :param read: returns the value of a text
        :param or_none: whether the option also takes the word for no limit, which is the value None
        :param least: the least value
        """
        self.name = name
        self._read = read
        self._or_none = or_none
        self._least = least

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        """Return the value of a text; a default stays as it is."""  # Any: as in click
        if not isinstance(value, str):
            return value
        if self._or_none and value.lower() == NONE:
            return None
        try:
            found = self._read(value)
            if found < self._least:
                raise ValueError(f"{value!r:.40} is less than {self._least}.")
            return found
        except ValueError as error:
            self.fail(f"{str(error)[:-1]}; or none for no limit." if self._or_none else str(error), param, ctx)


DURATION = Quantity("duration", seconds)
DURATION_LIMIT = Quantity("duration", seconds, or_none=True)
SIZE_LIMIT = Quantity("size", size_bytes, or_none=True)
COUNT = Quantity("count", count)
COUNT_LIMIT = Quantity("count", count, or_none=True)
