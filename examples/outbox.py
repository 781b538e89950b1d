"""An outbox: each change of a database is announced in a queue, never one without the other.

Run it with ``python examples/outbox.py``. It uses SQLite; every database with transactions will do.

No transaction spans a database and a queue. Whoever commits to the one and then dies has not told the other: either an
order that nobody hears of, or news of an order that does not exist. So the message is first a row in a table of the
same database, the *outbox*, written in the transaction that makes the change. A *relay* moves the rows into the queue:
it sends them, and deletes them once ``send_many`` has returned.

A relay that dies between the two has sent rows that are still there, and its successor sends them again. So each
message arrives *at least once*. A consumer that must not act twice keeps the ids that it has handled, in the database
in which it acts, and in the same transaction. This program kills its relay at the worst moment and shows that both
hold.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import sqlite3
import tempfile
from typing import Iterator

import persipubsub

ORDERS = 10
ROWS_AT_ONCE = 1000

SHOP = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT NOT NULL);
"""
STORE = """
CREATE TABLE handled (id INTEGER PRIMARY KEY);
CREATE TABLE parcels (item TEXT NOT NULL);
"""


@contextlib.contextmanager
def database(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """Open a database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def place_order(shop: sqlite3.Connection, item: str) -> None:
    """Store an order and its announcement: both or none."""
    with shop:
        order = shop.execute("INSERT INTO orders (item) VALUES (?)", (item, )).lastrowid
        shop.execute("INSERT INTO outbox (payload) VALUES (?)", (json.dumps({"order": order, "item": item}), ))


def relay(root: pathlib.Path, dies: bool) -> None:
    """Move what is in the outbox into the queue: the main function of a process. There must be only one at a time.

    :param dies: whether this one dies between sending and deleting
    """
    with database(root / "shop.db") as shop, persipubsub.new_environment(root / "queue") as env:
        publisher = env.new_publisher()
        while True:
            rows = shop.execute("SELECT id, payload FROM outbox ORDER BY id LIMIT ?", (ROWS_AT_ONCE, )).fetchall()
            if not rows:
                return  # a permanent relay would sleep here, or wait for a signal
            # The id travels with the message: it stays the same when the message is sent again.
            publisher.send_many(json.dumps({"id": row, **json.loads(payload)}).encode() for row, payload in rows)
            if dies:
                os._exit(1)  # as if it were killed
            with shop:
                # Exactly those that were sent: in some databases a row with a smaller id may be committed later.
                shop.executemany("DELETE FROM outbox WHERE id = ?", [(row, ) for row, _ in rows])


def pack(root: pathlib.Path) -> int:
    """Receive the messages and pack one parcel for each order; return how many messages were repeated."""
    repeated = 0
    with database(root / "store.db") as store, persipubsub.new_environment(root / "queue") as env:
        for msg in env.new_subscriber("store").messages(timeout=0):
            order = json.loads(msg)
            with store:  # committed first: after a crash in between, the message comes again
                try:
                    store.execute("INSERT INTO handled (id) VALUES (?)", (order["id"], ))
                except sqlite3.IntegrityError:
                    repeated += 1
                    continue
                store.execute("INSERT INTO parcels (item) VALUES (?)", (order["item"], ))
    return repeated


def run_relay(root: pathlib.Path, dies: bool) -> None:
    """Run a relay in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=relay, args=(root, dies))
    process.start()
    process.join()
    assert process.exitcode == (1 if dies else 0)


def main() -> None:
    """Set up the databases and the queue, order, relay and pack."""
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name, tables in (("shop.db", SHOP), ("store.db", STORE)):
            with database(root / name) as connection:
                connection.executescript(tables)
        with persipubsub.new_environment(root / "queue") as env:
            env.new_control(subscriber_ids=["store"])
        with database(root / "shop.db") as shop:
            for number in range(ORDERS):
                place_order(shop, f"cup {number}")
        run_relay(root, dies=True)
        run_relay(root, dies=False)
        repeated = pack(root)
        with database(root / "store.db") as store:
            parcels = [item for (item, ) in store.execute("SELECT item FROM parcels ORDER BY rowid")]
        assert parcels == [f"cup {number}" for number in range(ORDERS)]
        assert repeated == ORDERS
        print(len(parcels), "parcels;", repeated, "messages came again, and nothing was packed twice")


if __name__ == "__main__":
    main()
