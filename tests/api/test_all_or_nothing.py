"""A change that is refused for one of its arguments changes nothing, however right the others are."""

import pathlib
import shutil
import tempfile
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, errors
from tests.golden.make import records

MakeEnvironment = Callable[..., Environment]
Arguments = Dict[str, Any]

MARK = HighWaterMark(50, max_messages=100)


class Call(NamedTuple):
    """A public change: its arguments as they are right, and for each one values with which it is refused."""

    of: Callable[[Environment], Callable[..., object]]
    good: Arguments
    bad: Dict[str, List[Any]]


def of_control(name: str) -> Callable[[Environment], Callable[..., object]]:
    """Return a method of the queue's Control."""
    return lambda environment: getattr(environment.new_control(), name)


def of_publisher(name: str) -> Callable[[Environment], Callable[..., object]]:
    """Return a method of a Publisher."""
    return lambda environment: getattr(environment.new_publisher(), name)


def receive(environment: Environment) -> Callable[..., object]:
    """Return a function that receives messages and acknowledges them."""

    def call(identifier: str, max_messages: int, timeout: float, retries: int, max_bytes: int) -> None:
        with environment.new_subscriber(identifier).receive_many(max_messages, timeout, retries, max_bytes):
            pass

    return call


SUBSCRIBER: Arguments = {
    "shared": True,
    "lease_s": 3,
    "max_deliveries": 3,
    "retry_delay_s": 2,
    "retry_delay_max_s": 20,
    "dead_letters_max": 1
}
WRONG_SUBSCRIBER: Dict[str, List[Any]] = {
    "identifier": [5, ""],
    "shared": ["yes", False],  # not shared, it has no lease
    "lease_s": ["3", 0, float("nan")],
    "max_deliveries": [1.5, 0],
    "retry_delay_s": ["2", -1, 21],  # longer than the longest one
    "retry_delay_max_s": ["20", -1, 1],
    "dead_letters_max": [1.5, 0]
}

CALLS: Dict[str, Call] = {
    "new_control":
    Call(
        lambda environment: environment.new_control,
        {
            "subscriber_ids": ["new"],
            "high_watermark": MARK,
            "strategy": Strategy.prune_last,
            "durability": Durability.PROCESS_CRASH,
            "mode": 0o640,
            "message_type": "shop.Order",
            "retention_s": 2,
            "deduplication_window_s": 30,
            "deduplication_max": 7
        },
        {
            "subscriber_ids": [5, ["newer", ""]],
            "high_watermark": [5, HighWaterMark(1)],  # shorter than the retention
            "strategy": [1],
            "durability": ["POWER_LOSS"],
            "mode": ["600", 0o7],
            "message_type": [5, "no name"],
            "retention_s": ["2", -1, 60],  # longer than the timeout
            "deduplication_window_s": ["30", 0],
            "deduplication_max": [1.5, 0],
            "high_water_mark": [MARK],
            "create": [None]
        }),
    # What only the stored settings show to be wrong.
    "new_control without a high-water mark":
    Call(lambda environment: environment.new_control, {
        "subscriber_ids": ["new"],
        "message_type": "shop.Order",
        "mode": 0o640,
        "retention_s": 2
    }, {"retention_s": [60]}),
    "add_subscriber":
    Call(of_control("add_subscriber"), {
        "identifier": "new",
        "start": "earliest",
        **SUBSCRIBER
    }, {
        **WRONG_SUBSCRIBER, "start": [5, "later"]
    }),
    "add_subscriber, a known one":
    Call(of_control("add_subscriber"), {
        "identifier": "workers",
        **SUBSCRIBER
    }, WRONG_SUBSCRIBER),
    "rewind":
    Call(of_control("rewind"), {
        "identifier": "a",
        "to": "earliest"
    }, {
        "identifier": [5, "nobody"],
        "to": [1.5, "latest", 0]
    }),
    "requeue_dead_letters":
    Call(of_control("requeue_dead_letters"), {
        "identifier": "workers",
        "ids": [1]
    }, {
        "identifier": [5, "nobody"],
        "ids": [5, [1, "2"]]
    }),
    "discard_dead_letters":
    Call(of_control("discard_dead_letters"), {
        "identifier": "workers",
        "ids": [1]
    }, {
        "identifier": [5, "nobody"],
        "ids": [5, [1, "2"]]
    }),
    "set_hwm":
    Call(of_control("set_hwm"), {"hwm": MARK}, {"hwm": [5, HighWaterMark(0.5)]}),
    "set_strategy":
    Call(of_control("set_strategy"), {"strategy": Strategy.prune_last}, {"strategy": ["prune_last"]}),
    "set_retention":
    Call(of_control("set_retention"), {"retention_s": 2}, {"retention_s": ["2", 60]}),
    "remove_subscriber":
    Call(of_control("remove_subscriber"), {"identifier": "a"}, {"identifier": [5, "nobody"]}),
    "prune_all_messages_for":
    Call(of_control("prune_all_messages_for"), {"identifier": "a"}, {"identifier": [5, "nobody"]}),
    "send":
    Call(of_publisher("send"), {
        "msg": b"new",
        "deduplication_id": "new"
    }, {
        "msg": ["new", bytes(2**20)],
        "deduplication_id": [5, ""]
    }),
    "send_many":
    Call(of_publisher("send_many"), {"msgs": [b"new", b"newer"]},
         {"msgs": [5, [b"new", "newer"], [b"new", bytes(2**20)]]}),
    "send_later":
    Call(of_publisher("send_later"), {
        "msg": b"new",
        "delay_s": 0
    }, {
        "msg": ["new", bytes(2**20)],
        "delay_s": ["0", -1],
        "at": ["now"]
    }),
    "receive_many":
    Call(receive, {
        "identifier": "a",
        "max_messages": 2,
        "timeout": 0,
        "retries": 3,
        "max_bytes": 1000
    }, {
        "identifier": [5, "nobody"],
        "max_messages": [1.5, 0],
        "timeout": ["0", -1],
        "retries": [1.5, 0],
        "max_bytes": [1.5, 0]
    }),
}
#: They only make or close objects, and have no argument but an identifier.
WITHOUT_ARGUMENTS = {
    "backup", "check", "clear_all_subscribers", "clear_messages", "close", "closed", "dead_letters", "history",
    "is_initialized", "peek", "prune_dangling_messages", "status", "cancel", "stop"
}


def make(environment: Environment) -> None:
    """Set up a queue that has messages, retained ones, one in flight, a dead letter, and a delayed message."""
    control = environment.new_control(["a"], HighWaterMark(40, hwm_db_size=2**19), retention_s=30)
    control.add_subscriber("workers", shared=True, lease_s=1000, max_deliveries=1)
    publisher = environment.new_publisher()
    publisher.send_many([b"1", b"2", b"3"])
    environment.new_subscriber("a").pop()
    workers = environment.new_subscriber("workers")
    with pytest.raises(ZeroDivisionError), workers.receive(timeout=0):
        raise ZeroDivisionError
    workers.receive(timeout=0).__enter__()  # pylint: disable=unnecessary-dunder-call  # the block never ends
    publisher.send_later(b"4", delay_s=1000)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Iterator[Environment]:
    """Set up a queue of all kinds of records."""
    environment = new_environment()
    make(environment)
    yield environment


def state(path: pathlib.Path) -> Tuple[object, ...]:
    """Return all that a queue has: its records, and the modes of its files."""
    with tempfile.TemporaryDirectory() as directory:
        # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
        shutil.copyfile(path / "data.mdb", pathlib.Path(directory) / "data.mdb")
        modes = {file.name: file.stat().st_mode for file in [path, *path.iterdir()]}
        return modes, records(pathlib.Path(directory))


def test_every_change_is_tried() -> None:
    """Every public method of Control and Publisher is among those that are tried, or has nothing that can be wrong."""
    public = {name for kind in (Control, Publisher) for name in dir(kind) if not name.startswith("_")}
    assert public == {name for name in CALLS if hasattr(Control, name) or hasattr(Publisher, name)} | WITHOUT_ARGUMENTS


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_change_changes_nothing(name: str, environment: Environment) -> None:
    """A call with one wrong argument raises an error of ours and leaves all records and modes; without it, it works."""
    call, before = CALLS[name], state(environment.path)
    for argument, values in call.bad.items():
        for value in values:
            with pytest.raises(errors.PersipubsubError):
                call.of(environment)(**{**call.good, argument: value})
            assert state(environment.path) == before, (argument, value)
    call.of(environment)(**call.good)
    assert state(environment.path) != before


def test_a_type_that_does_not_fit_changes_nothing(environment: Environment) -> None:
    """Where binding a queue with messages to another type fails, new_control changes nothing else."""
    environment.new_control(message_type="shop.Order")
    before = state(environment.path)
    with pytest.raises(errors.MessageTypeError):
        environment.new_control(["new"], MARK, message_type="shop.Invoice", mode=0o640)
    assert state(environment.path) == before


def test_a_retention_is_measured_by_the_stored_timeout(new_environment: MakeEnvironment) -> None:
    """A retention over the default timeout is accepted if the queue's own is longer."""
    environment = new_environment(high_watermark=HighWaterMark(1000))
    environment.new_control(retention_s=700)
    assert environment.new_control().status().retention_s == 700
