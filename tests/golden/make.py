"""Make the golden queues: small ones that together have every kind of record, with a clock and tokens that are given.

``python -m tests.golden.make DIRECTORY NAME`` makes one; so those in ``tests/golden/1`` were made, of format version 1.
They are frozen: what a later version writes may differ only where the format version does, and then goes into a
directory of its own.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any, Callable, Dict, Iterator, Mapping
from unittest import mock

import lmdb

import persipubsub
from persipubsub import Durability, Envelope, Environment, HighWaterMark, Reject, Strategy, clock
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.rules import leases, message_log

DIRECTORY = pathlib.Path(__file__).parent / "1"
EXPECTED_FILE = "expected.json"
#: When the queues were made: 2026-11-01, in microseconds since the epoch; and since the machine was started.
START_US, SINCE_BOOT_US = 1_793_491_200_000_000, 3_600_000_000
#: The boot in which they were made, and one in which they are opened.
BOOT_ID, OTHER_BOOT_ID = bytes(range(16)), bytes(range(16, 32))
#: How much later they are opened.
LATER_US = 1_000_000_000
#: So long that nothing of it expires on whatever machine looks at it.
FOREVER_S = 10**10


class Clock:
    """The time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.passed_us = 0

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.passed_us += round(seconds * 1e6)


@contextlib.contextmanager
def standing_still(boot_id: bytes = BOOT_ID, passed_us: int = 0) -> Iterator[Clock]:
    """Have the clock, the boot and the tokens be given ones: no record depends on when and where it is made.

    A transaction deletes at most three messages, so that a small queue has some that wait for it.
    """
    moved = Clock()
    moved.passed_us = passed_us
    with contextlib.ExitStack() as stack:
        for module, name, value in ((clock, "boottime_us", lambda: SINCE_BOOT_US + moved.passed_us),
                                    (clock, "wall_us", lambda: START_US + moved.passed_us),
                                    (clock, "boot_id", lambda: boot_id), (message_log, "DELETIONS_MAX",
                                                                          3), (leases, "_tokens", itertools.count(1))):
            stack.enter_context(mock.patch.object(module, name, value))
        yield moved


def _mark(message_timeout: float = FOREVER_S, max_messages: int = 1000) -> HighWaterMark:
    return HighWaterMark(message_timeout, max_messages, 10**9)


def make_log(environment: Environment, moved: Clock) -> None:
    """Make runs, long messages, places, gaps, all counters, and messages that wait to be deleted."""
    control = environment.new_control(["a", "b", "größe"], _mark(10, 8), Strategy.prune_last, Durability.PROCESS_CRASH)
    publisher = environment.new_publisher()
    publisher.send(b"expires")
    moved.move(11)
    for number in range(10):  # an overflow takes some of the latest
        publisher.send(b"%d" % number)
        moved.move(0.004)
    control.set_hwm(_mark())
    control.set_strategy(Strategy.prune_first)
    publisher.send_many([b"", bytes([7]) * 5000])
    moved.move(1)
    publisher.send_many([*(b"many %d" % number for number in range(20)), bytes(range(256)) * 257])
    for identifier, count in (("a", 12), ("größe", 14)):
        with environment.new_subscriber(identifier).receive_many(count):
            pass
    control.remove_subscriber("b")


def make_deliveries(environment: Environment, moved: Clock) -> None:
    """Make what shared subscribers, and those that limit their deliveries, have in flight and outside the log."""
    control, publisher = environment.new_control([], _mark()), environment.new_publisher()
    control.add_subscriber("shared",
                           shared=True,
                           lease_s=30,
                           max_deliveries=2,
                           retry_delay_s=5,
                           retry_delay_max_s=20,
                           dead_letters_max=5)
    publisher.send_many([b"zero", bytes([1]) * 66_000])
    control.add_subscriber("plain")
    control.add_subscriber("limited", max_deliveries=2, dead_letters_max=2)
    publisher.send_many([b"two", b"three", b"four", b"five", b"six", b"seven"])
    for _ in range(2):
        for identifier in ("shared", "limited"):
            for _ in range(4):
                _fail(environment, identifier)
        moved.move(31)
    for _ in range(2):
        _claim(environment, 1)
        moved.move(31)
    _claim(environment, 2)
    for identifier in ("shared", "limited"):
        ids = [letter.id for letter in control.dead_letters(identifier)]
        control.requeue_dead_letters(identifier, ids[:1])
    _fail(environment, "limited")
    moved.move(2)
    _fail(environment, "shared")


def _claim(environment: Environment, max_messages: int) -> None:
    """Have a worker get messages and die."""
    receipt = environment.new_subscriber("shared").receive_many(max_messages, timeout=0)
    receipt.__enter__()  # pylint: disable=unnecessary-dunder-call  # the block never ends


def _fail(environment: Environment, identifier: str) -> None:
    with contextlib.suppress(ArithmeticError), environment.new_subscriber(identifier).receive(timeout=0):
        raise ArithmeticError("größe")


def make_lasting(environment: Environment, moved: Clock) -> None:
    """Make what is retained, delayed, and remembered; bound to a message type."""
    environment.new_control(["a"],
                            _mark(),
                            message_type="shop.Order",
                            retention_s=FOREVER_S,
                            deduplication_window_s=FOREVER_S,
                            deduplication_max=3)
    publisher = environment.new_publisher()
    for number in range(5):
        publisher.send(b"%d" % number, deduplication_id=f"order-{number}")
        moved.move(0.5)
    publisher.send_later(bytes([3]) * 66_000, delay_s=10**9)
    publisher.send_later(b"later", delay_s=10**9)
    publisher.send_later(b"sooner", delay_s=10**9 - 1)
    with environment.new_subscriber("a").receive_many(3):
        pass


def make_headers(environment: Environment, moved: Clock) -> None:
    """Make headers in the log, of delayed messages, dead letters and requeued ones, in a queue without limits."""
    control = environment.new_control(["plain"], strategy=Strategy.refuse, deduplication_window_s=FOREVER_S)
    control.add_subscriber("limited", max_deliveries=3)
    publisher = environment.new_publisher()
    headers = [{"trace": "1"}, {}, {"text": "größe \N{SNOWMAN}", "long": "x" * 5000}, None, {"a": "1", "b": '"\\\n'}]
    publisher.send_many([Envelope(b"%d" % number, each) for number, each in enumerate(headers)])
    moved.move(1)
    for number, each in enumerate(headers, len(headers)):
        size_bytes = 66_000 if number == len(headers) + 2 else 1
        publisher.send(bytes([number]) * size_bytes, headers=each, deduplication_id=f"message-{number}")
    publisher.send_later(Envelope(b"later", headers[0], "later"), delay_s=10**9)
    publisher.send_later(bytes([3]) * 66_000, delay_s=10**9, headers=headers[2])
    for _ in range(9):
        with environment.new_subscriber("limited").receive(timeout=0):
            raise Reject("größe")
    control.requeue_dead_letters("limited", [1, 2, 3])
    with contextlib.suppress(ArithmeticError), environment.new_subscriber("limited").receive(timeout=0):
        raise ArithmeticError("größe")


MAKERS: Dict[str, Callable[[Environment, Clock], None]] = {
    "log": make_log,
    "deliveries": make_deliveries,
    "lasting": make_lasting,
    "headers": make_headers,
}


def make(name: str, path: pathlib.Path) -> None:
    """Make a queue in a directory that is empty or not there."""
    with standing_still() as moved, persipubsub.new_environment(path) as environment:
        MAKERS[name](environment, moved)


def records(path: pathlib.Path) -> Dict[str, Dict[bytes, bytes]]:
    """Read all records of a queue without the library, each sub-database for itself."""
    with lmdb.Environment(str(path), readonly=True, lock=False, max_dbs=len(SubDatabases._fields)) as raw:
        with raw.begin() as txn:
            names = sorted(key for key, _ in txn.cursor())
            return {name.decode(): dict(txn.cursor(raw.open_db(name, txn=txn, create=False))) for name in names}


def found(path: pathlib.Path) -> Dict[str, Any]:
    """Tell what a queue has, as users see it, without what depends on the size of its file."""
    with persipubsub.new_environment(path) as environment, environment.new_control() as control:
        status = _plain(control.status())
        assert isinstance(status, dict)
        del status["path"], status["size_bytes"], status["reader_lag"]
        return {
            "check": [str(violation) for violation in control.check()],
            "status": status,
            "history": [[one.id, one.time.isoformat(), _digest(one.payload)] for one in control.history()],
            "headers": {
                str(one.id): dict(one.headers)
                for one in control.history() if one.headers
            },
            "dead_letters": {
                name: [{
                    **vars(letter), "payload": _digest(letter.payload)
                } for letter in control.dead_letters(name)]
                for name in status["subscribers"]
            },
            "messages": {
                name: [_digest(payload) for payload in environment.new_subscriber(name).messages(timeout=0)]
                for name in status["subscribers"]
            },
        }


def _digest(payload: bytes) -> str:
    """Give a short message as it is, and of a long one its size and a digest."""
    return repr(payload) if len(payload) < 100 else f"{len(payload)} bytes {hashlib.sha256(payload).hexdigest()}"


def _plain(value: object) -> object:
    """Give what JSON can say."""
    if isinstance(value, (Strategy, Durability)):
        return value.name
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, HighWaterMark):
        return [value.message_timeout, value.max_messages, value.hwm_db_size]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value) if isinstance(value, pathlib.Path) else value


def main() -> None:
    """Make some of them."""
    for name in sys.argv[2:]:
        path = pathlib.Path(sys.argv[1]) / name
        make(name, path)
        # A copy has no free pages, and no files of locks.
        with lmdb.Environment(str(path), readonly=True, lock=False, max_dbs=32) as raw:
            raw.copy(str(path.parent), compact=True)
        for entry in path.iterdir():
            entry.unlink()
        (path.parent / "data.mdb").replace(path / "data.mdb")
        with tempfile.TemporaryDirectory() as copy:
            shutil.copyfile(path / "data.mdb", pathlib.Path(copy) / "data.mdb")
            with standing_still(OTHER_BOOT_ID, LATER_US):
                text = json.dumps(found(pathlib.Path(copy)), indent=1, sort_keys=True)
        (path / EXPECTED_FILE).write_text(text + "\n")


if __name__ == "__main__":
    main()
