"""Message types of each kind that is not protobuf, with messages of them; in a module, so that they can be pickled."""

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Any, Dict, Generic, List, NamedTuple, Optional, Tuple, TypeVar, Union

import msgspec
import pydantic
import pydantic.dataclasses

from persipubsub import Environment, Publisher, Subscriber

T = TypeVar("T")


class Status(enum.Enum):
    """How far an order is."""

    OPEN = "open"
    PAID = "paid"


@dataclasses.dataclass(frozen=True)
class Address:
    """A dataclass in others."""

    city: str
    lines: Tuple[str, ...] = ()


@dataclasses.dataclass
class Order:  # pylint: disable=too-many-instance-attributes  # a field of each type
    """A dataclass with fields of many types."""

    number: int
    address: Optional[Address] = None
    placed: Optional[datetime.datetime] = None
    price: decimal.Decimal = decimal.Decimal("0.10")
    key: uuid.UUID = uuid.UUID(int=5)
    status: Status = Status.OPEN
    counts: Dict[int, str] = dataclasses.field(default_factory=dict)
    photo: bytes = b""
    weight: float = 0.5
    next: Optional["Order"] = None
    anything: object = None


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    """A dataclass for the codec of a program."""

    x: int
    y: int


@dataclasses.dataclass
class Page(Generic[T]):
    """A dataclass with a parameter."""

    items: List[T]


class Orders(Page[Order]):
    """A class with a type for the parameter; it is a dataclass since its base is one."""


class Sent(msgspec.Struct, frozen=True, tag=True):
    """One of the structs in a union."""

    number: int


class Lost(msgspec.Struct, frozen=True, tag=True, rename="camel"):
    """Another one."""

    number: int
    reason_why: str


class Event(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    """A struct that is an array in JSON, with a union."""

    what: Union[Sent, Lost]
    at: datetime.datetime


class Line(pydantic.BaseModel):
    """A model in another one, with an alias."""

    article: str = pydantic.Field(alias="articleName")


class Invoice(pydantic.BaseModel):
    """A model with aliases that differ, a computed field that it would refuse, and a validator."""

    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=False)

    number: int = pydantic.Field(gt=0, alias="invoiceNumber")
    total: decimal.Decimal = pydantic.Field(default=decimal.Decimal("1.50"), serialization_alias="sum")
    lines: List[Line] = []
    code: str = "ab"

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy has no support for decorated properties
    @property
    def label(self) -> str:
        """Return a value that is not stored."""
        return f"{self.code}-{self.number}"

    @pydantic.field_validator("code")
    @classmethod
    def lower(cls, code: str) -> str:
        """Refuse what is not in lower case."""
        if code != code.lower():
            raise ValueError("it has capitals")
        return code


@pydantic.dataclasses.dataclass(frozen=True)
class Payment:
    """A dataclass of pydantic."""

    cents: int = pydantic.Field(ge=0)
    day: datetime.date = datetime.date(2026, 1, 2)


class Numbers(pydantic.RootModel[List[int]]):
    """A model of a list."""


class Counted(dict):  # type: ignore[type-arg]  # its values do not matter
    """A dict of a program."""


class PointCodec:
    """A codec of a program."""

    name = "geometry.Point"

    def encode(self, message: Point) -> bytes:
        """Return two numbers as text."""
        return f"{message.x},{message.y}".encode()

    def decode(self, payload: bytes) -> Point:
        """Return the point of two numbers."""
        x, y = payload.split(b",")
        return Point(int(x), int(y))


class Kind(NamedTuple):
    """A message type, with what else a test needs."""

    message_type: Any
    name: str
    messages: List[Any]
    wrong: Any  # what is not of the type
    #: What subscribers of the type cannot decode.
    payload: bytes = b'{"number": "one"'

    def __str__(self) -> str:
        return self.name


_NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, 789012, datetime.timezone.utc)

KINDS = [
    Kind(Order, "json:Order", [
        Order(1),
        Order(2**70, Address("Bern", ("a", "b")), _NOW, decimal.Decimal("1.10"), uuid.UUID(int=7), Status.PAID,
              {1: "b"}, b"\x00\xff", -1e-300, Order(3), {"a": [1, None]})
    ], Address("Bern")),
    Kind(Orders, "json:Orders", [Orders([Order(1)]), Orders([])], Page([Order(1)])),
    Kind(Event, "json:Event", [Event(Sent(1), _NOW), Event(Lost(2, "rain"), _NOW)], Sent(1)),
    Kind(Sent, "json:Sent", [Sent(1)], Lost(1, "rain")),
    Kind(Invoice, "json:Invoice", [
        Invoice(invoiceNumber=1),
        Invoice(invoiceNumber=2, total=decimal.Decimal("2.00"), lines=[Line(articleName="tea")])
    ], Line(articleName="tea")),
    Kind(Payment, "json:Payment", [Payment(5), Payment(0, datetime.date(1, 1, 1))], Point(1, 2)),
    Kind(Numbers, "json:Numbers", [Numbers([1, 2])], [1, 2]),
    Kind(dict, "json:dict", [{}, {
        "a": [1, -2.5, None, True, "ä\n\0\U0001f600", {
            "b": {}
        }],
        "": 2**70
    }], [1]),
    Kind(list, "json:list", [[], [[1], "a"]], {}),
    Kind(str, "json:str", ["", "ä\n"], b"a"),
    Kind(PointCodec(), "geometry.Point", [Point(1, -2)], "a", b"1"),
]


def opened(environment: Environment, message_type: Any) -> "Tuple[Publisher[Any], Subscriber[Any]]":
    """Return a publisher and a subscriber of a type."""
    return environment.new_publisher(message_type=message_type), environment.new_subscriber("a", message_type)
