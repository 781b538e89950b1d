"""Damages of the files of a queue, as disks, power cuts and strangers do them."""

import os
import pathlib
import random
import struct
from typing import Callable

import lmdb

from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records.delivery_layouts import DEAD_LETTER_KEY, DUE_KEY, ENTRY_KEY
from persipubsub.lmdb_engine.records.layouts import HEADERS_PART, SubDatabases

PAGE_BYTES = 4096

Damage = Callable[[pathlib.Path, random.Random], None]


def _edit(file: pathlib.Path, edit: Callable[[bytearray], None]) -> None:
    content = bytearray(file.read_bytes())
    edit(content)
    file.write_bytes(content)


def flip(file: pathlib.Path, rng: random.Random) -> None:
    """Flip a few bytes anywhere, most often where LMDB keeps its own."""

    def edit(content: bytearray) -> None:
        for _ in range(rng.choice((1, 1, 2, 5, 50))):
            page = rng.randrange(len(content) // PAGE_BYTES)
            offset = rng.choice((rng.randrange(16), rng.randrange(200), rng.randrange(PAGE_BYTES)))
            content[page * PAGE_BYTES + offset] = rng.choice((0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)))

    _edit(file, edit)


def swap_pages(file: pathlib.Path, rng: random.Random) -> None:
    """Make a page a copy of another, with its own number or not, or zeros or noise."""

    def edit(content: bytearray) -> None:
        for _ in range(rng.choice((1, 2, 10))):
            to, source = (rng.randrange(len(content) // PAGE_BYTES) * PAGE_BYTES for _ in range(2))
            page = content[source:source + PAGE_BYTES]
            kind = rng.randrange(4)
            if kind == 1:
                page[:8] = content[to:to + 8]
            elif kind == 2:
                page = bytearray(PAGE_BYTES)
            elif kind == 3:
                page = bytearray(rng.randbytes(PAGE_BYTES))
            content[to:to + PAGE_BYTES] = page

    _edit(file, edit)


def truncate(file: pathlib.Path, rng: random.Random) -> None:
    """Cut the end off."""
    os.truncate(file, rng.randrange(file.stat().st_size))


def break_meta(file: pathlib.Path, rng: random.Random) -> None:
    """Overwrite what the meta pages say but for the roots, which only verifying finds."""
    fields = (16, 20, 32, 40, 44, 46, 88 + 4, 88 + 6, 16 + 24 + 96)

    def edit(content: bytearray) -> None:
        for _ in range(rng.choice((1, 2, 4))):
            start = rng.randrange(2) * PAGE_BYTES + rng.choice(fields)
            content[start:start + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\1\0", rng.randbytes(2)))

    _edit(file, edit)


def craft(file: pathlib.Path, rng: random.Random) -> None:
    """Replace records by ones that no queue has, in sound pages."""
    with lmdb.Environment(os.fspath(file), subdir=False, lock=False, max_dbs=32, map_size=2**30) as environment:
        for _ in range(rng.choice((1, 1, 3))):
            name = rng.choice(SubDatabases._fields)
            sub_database = environment.open_db(name.encode(), create=False)
            with environment.begin(write=True, db=sub_database) as txn:
                _craft_record(txn, rng)


def _craft_record(txn: "lmdb.Transaction[bytes]", rng: random.Random) -> None:
    present = list(txn.cursor())
    numbers = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, rng.randrange(400))
    parts = (0, 1, 2, HEADERS_PART)
    keys = [
        struct.pack(">Q", rng.choice(numbers)),
        struct.pack(">QI", rng.choice(numbers), rng.choice(parts)),
        ENTRY_KEY.pack(rng.randrange(6), rng.choice(numbers)),
        DUE_KEY.pack(rng.randrange(6), rng.choice(numbers), rng.choice(numbers)),
        DEAD_LETTER_KEY.pack(rng.randrange(6), rng.choice(numbers), rng.choice(parts)), b"x" * 9
    ]
    key, value = rng.choice(present) if present else (rng.choice(keys), b"")
    kind = rng.randrange(6)
    if kind == 0:
        txn.delete(key)
    elif kind == 1:
        txn.put(key, value[:rng.randrange(len(value) + 1)])
    elif kind == 2:
        txn.put(rng.choice(keys), value)
    elif kind == 3:
        txn.put(key, rng.randbytes(rng.choice((1, 8, 12, 28, 64))))
    elif kind == 4 and len(value) >= 8:
        start = rng.randrange(len(value) - 7)
        changed = value[:start] + struct.pack(">Q", rng.choice(numbers)) + value[start + 8:]
        txn.put(key, changed)
    else:
        for key, _ in present:
            txn.delete(key)


def break_side_files(file: pathlib.Path, rng: random.Random) -> None:
    """Cut, overwrite, replace or hand over the files beside the data file."""
    for name in rng.sample(files.FILES[1:], rng.randrange(1, 3)):
        side = file.parent / name
        kind = rng.randrange(6)
        side.unlink(missing_ok=True)
        if kind == 0:
            side.mkdir()
        elif kind == 1:
            os.mkfifo(side)
        elif kind == 2:
            side.symlink_to(os.devnull)
        else:
            side.write_bytes(rng.randbytes(rng.choice((0, 1, 15, 16, 17, 100, 4096, 70_000))))
            if kind == 3:
                os.chmod(side, 0)


def break_type(file: pathlib.Path, rng: random.Random) -> None:
    """Put something else in place of the data file."""
    content = file.read_bytes()
    file.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to(os.devnull)
    elif kind == 3:
        file.write_bytes(rng.randbytes(rng.choice((0, 1, 4096, 100_000))))
    else:
        file.write_bytes(content)
        os.chmod(file, 0)
