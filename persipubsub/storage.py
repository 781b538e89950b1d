"""A queue's database behind its gate: transactions of many threads, and reopening it under them."""

import pathlib
from typing import Callable, Optional, TypeVar

from persipubsub import database, errors
from persipubsub.database import Database
from persipubsub.gate import Gate
from persipubsub.transaction import Transaction

T = TypeVar("T")


class Storage:
    """The database of one queue in this process. Every transaction, also a read, passes its gate."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._gate = Gate()
        # Opened to sync; a write transaction that finds the queue relaxed reopens it.
        self._database: Optional[Database] = Database(path, sync=True)

    def close(self) -> None:
        """Close the database once the transactions inside have ended."""
        with self._gate.closed():
            if self._database is not None:
                self._database.close()
                self._database = None

    def _open(self) -> Database:
        if self._database is None:
            raise errors.ClosedError(f"The queue at {self.path} is closed. Open it with a new Environment.")
        return self._database

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction, which sees one state of the queue."""
        return self._run(lambda: self._read(operation))

    def write(self, operation: Callable[[Transaction], T], durable: bool = False) -> T:
        """Run an operation in a write transaction: all of it is committed, or nothing.

        It may be run again where LMDB's map had to grow first.

        :param durable: bring it to the disk, whatever the durability of the queue
        """
        return self._run(lambda: self._write(operation, durable))

    def _read(self, operation: Callable[[Transaction], T]) -> T:
        self._gate.enter()
        try:
            txn = self._open().begin(write=False)
            try:
                return operation(txn)
            finally:
                txn.abort()
        finally:
            self._gate.leave()

    def _write(self, operation: Callable[[Transaction], T], durable: bool) -> T:
        while True:
            self._gate.enter()
            try:
                opened = self._open()
                txn = opened.begin(write=True)
                try:
                    # LMDB's flag is fixed at open: one relaxed writer beside durable ones can destroy the file.
                    if txn.syncs == opened.sync_commits:
                        result = operation(txn)
                        txn.commit()
                        if durable and not opened.sync_commits:
                            opened.sync()
                        return result
                    txn.abort()
                except BaseException:
                    txn.abort()
                    raise
            finally:
                self._gate.leave()
            self._reopen(sync=not opened.sync_commits)

    def _reopen(self, sync: bool) -> None:
        with self._gate.closed():
            if self._open().sync_commits != sync:
                self._open().sync()
                self._open().close()
                self._database = Database(self.path, sync)

    def _run(self, attempt: Callable[[], T]) -> T:
        """Run a transaction, again where the obstacle can be removed."""
        stale_readers_cleared = False
        while True:
            try:
                return attempt()
            except database.MapFullError:
                with self._gate.closed():
                    self._open().grow()
            except database.MapResizedError:
                with self._gate.closed():
                    self._open().adopt_size()
            except database.ReadersFullError as error:
                if stale_readers_cleared:
                    database.raise_translated(error, self.path)
                stale_readers_cleared = True
                with self._gate.closed():
                    self._open().clear_stale_readers()
            except database.LmdbError as error:
                database.raise_translated(error, self.path)

    def copy(self, path: str) -> None:
        """Write a compact, consistent copy of the queue into a directory."""
        self._gate.enter()
        try:
            self._open().copy(path)
        except database.LmdbError as error:
            database.raise_translated(error, pathlib.Path(path))
        finally:
            self._gate.leave()
