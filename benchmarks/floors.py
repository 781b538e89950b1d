"""The floors: what the hardware and LMDB alone can do. No Python program that stores messages on disk is faster."""

import contextlib
import itertools
import os
import pathlib
import struct
from typing import Iterator, List

import lmdb

from benchmarks.measure import Bounds, Steps
from benchmarks.results import Setting

RAW_LMDB = "raw py-lmdb"
NAMED_LMDB = "py-lmdb with names and ids"
DISK = "pwrite + fdatasync"
PIPE = "multiprocessing.Pipe"

MAP_BYTES = 40 * 1024**3
#: The messages of one transaction while a backlog is created.
FILL_MESSAGES = 10_000
FILL_BYTES = 16 * 1024**2

pack_key = struct.Struct(">Q").pack


def payload(setting: Setting) -> bytes:
    """Make a message that nothing can compress."""
    return os.urandom(setting.payload_bytes or 0)


def fill_count(size_bytes: int) -> int:
    """Return how many messages of a size go into one transaction while a backlog is created."""
    return max(1, min(FILL_MESSAGES, FILL_BYTES // max(1, size_bytes)))


def backlog(setting: Setting, bounds: Bounds) -> int:
    """Return how many messages a receiver finds when it starts, and after each refill."""
    if setting.backlog_messages is not None:
        return setting.backlog_messages
    return min(bounds.messages_max, max(100, 2 * fill_count(setting.payload_bytes or 0)))


def open_raw(directory: pathlib.Path, durable: bool) -> "lmdb.Environment":
    """Open LMDB as simply as possible."""
    return lmdb.Environment(os.fspath(directory), map_size=MAP_BYTES, sync=durable, lib_version=0)


def fill_raw(environment: "lmdb.Environment", ids: "itertools.count[int]", message: bytes, count: int) -> None:
    """Put a backlog."""
    while count:
        part = min(count, fill_count(len(message)))
        with environment.begin(write=True) as txn:
            txn.cursor().putmulti(zip(map(pack_key, itertools.islice(ids, part)), itertools.repeat(message)),
                                  append=True)
        count -= part


@contextlib.contextmanager
def disk_sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Write to the end of a file and wait for the disk."""
    count = setting.batch_messages or 1
    content = payload(setting) * count
    fd = os.open(directory / "log", os.O_RDWR | os.O_CREAT)
    offsets = itertools.count(step=len(content))

    def step() -> int:
        os.pwrite(fd, content, next(offsets))
        os.fdatasync(fd)
        return count

    try:
        yield Steps(step)
    finally:
        os.close(fd)


@contextlib.contextmanager
def raw_sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Put one message per write transaction, or one batch by putmulti."""
    count, message = setting.batch_messages or 1, payload(setting)
    batch = [message] * count
    ids = itertools.count(1)
    with open_raw(directory, durable=False) as environment:
        fill_raw(environment, ids, message, setting.backlog_messages or 0)
        environment.sync(True)
    with open_raw(directory, setting.durability == "durable") as environment:

        def step_one() -> int:
            with environment.begin(write=True) as txn:
                txn.put(pack_key(next(ids)), message, append=True)
            return 1

        def step_many() -> int:
            with environment.begin(write=True) as txn:
                # The keys are made here, since ids are assigned in the transaction.
                txn.cursor().putmulti(zip(map(pack_key, itertools.islice(ids, count)), batch), append=True)
            return count

        yield Steps(step_one if count == 1 else step_many)


@contextlib.contextmanager
def named_sending(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Steps]:
    """Put one message per write transaction into a named database, and do what every ordered queue must do.

    That is: read a configuration, and find the id of the next message.
    """
    message = payload(setting)
    with lmdb.Environment(os.fspath(directory),
                          map_size=MAP_BYTES,
                          sync=setting.durability == "durable",
                          lib_version=0,
                          max_dbs=2) as environment:
        configuration, messages = environment.open_db(b"configuration"), environment.open_db(b"messages")
        with environment.begin(write=True) as txn:
            txn.put(b"header", bytes(64), db=configuration)
            txn.put(pack_key(0), message, db=messages)

        def step() -> int:
            with environment.begin(write=True) as txn:
                txn.get(b"header", db=configuration)
                cursor = txn.cursor(messages)
                cursor.last()
                next_id = int.from_bytes(cursor.key(), "big") + 1
                txn.put(pack_key(next_id), message, append=True, db=messages)
            return 1

        yield Steps(step)


@contextlib.contextmanager
def raw_taking(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Steps]:
    """Read and delete the first messages in a write transaction."""
    count, message, pending = setting.batch_messages or 1, payload(setting), backlog(setting, bounds)
    ids = itertools.count(1)
    with open_raw(directory, setting.durability == "durable") as environment:

        def step_one() -> int:
            with environment.begin(write=True) as txn:
                cursor = txn.cursor()
                if not cursor.first():
                    return 0
                cursor.value()
                cursor.delete()
            return 1

        def step_many() -> int:
            with environment.begin(write=True) as txn:
                return len(take_raw(txn.cursor(), count))

        fill_raw(environment, ids, message, pending)
        yield Steps(step_one if count == 1 else step_many, lambda: fill_raw(environment, ids, message, pending))


def take_raw(cursor: "lmdb.Cursor[bytes]", count: int) -> List[bytes]:
    """Read the first messages and delete them."""
    cursor.first()
    messages = [message for _, message in itertools.islice(cursor, count)]
    cursor.first()
    delete = cursor.delete
    for _ in messages:
        delete()
    return messages
