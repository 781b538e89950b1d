"""The life of one LMDB transaction, which its owner can end after an interrupt at any point."""

from typing import TYPE_CHECKING, Callable, Optional, Protocol, Tuple

from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.known import Known, known_by
from persipubsub.lmdb_engine.records.layouts import Header, SubDatabases
from persipubsub.lmdb_engine.records.turns import Turn, Turns

if TYPE_CHECKING:
    import lmdb

#: The key of the turns of transactions that open the sub-databases.
HANDLES = "handles"


class OpenDatabase(Protocol):
    """What a transaction needs of the database in which it begins."""

    environment: "lmdb.Environment"
    dbs: SubDatabases
    #: What the last transaction knew, for the next one.
    known: Optional[Known]


class Lifecycle:  # pylint: disable=too-many-instance-attributes  # its state, and what it tells its owner
    """The beginning and the end of one LMDB transaction.

    The object exists before the transaction begins, so that its owner can end it after an interrupt at any point.
    """

    published = False  # whether it has something new for waiting subscribers
    expired = 0  # the number of messages that expired
    overflowed = 0  # the number of messages that were dropped at the high-water mark
    unawaited = 0  # the number of messages that were not stored, since there was no subscriber
    durable = False  # whether it is synced to the disk, whatever the durability of the queue
    changed = False  # whether it has surely changed a record, so that LMDB gives the commit its number
    number = 0  # LMDB's number of the transaction
    header: Header
    known: Known
    _owns_known = False  # whether no other transaction has the same object
    _dbs: SubDatabases
    _txn: "lmdb.Transaction[bytes]" = None  # type: ignore[assignment]  # set while it is open
    commit_failed = False
    _committing = False
    _turn: Optional[Tuple[Turns[str], Turn]] = None  # which abort() must end

    def begin(self, database: "OpenDatabase", write: bool) -> None:
        """Begin; a write transaction waits for the other writers of all processes."""
        self._txn = txn = database.environment.begin(write=write)
        self._dbs = dbs = database.dbs
        self.number = number = txn.id()
        known = database.known
        # A read transaction has the number of the last commit, a write transaction that of the next one.
        if known is not None and known["number"] == (number - 1 if write else number):
            self.known = known
            self.header = known["header"]
        else:
            self._know_nothing(layouts.decode_header(txn.get(layouts.HEADER_KEY, b"", db=dbs.queue_db)))

    def _know_nothing(self, header: Header) -> None:
        self.header = header
        self.known = known_by(self.number, header)
        self._owns_known = True

    def own_known(self) -> Known:
        """Return what is known, to be changed."""
        if not self._owns_known:
            self.known = self.known.copy()
            self.known["number"] = self.number
            self._owns_known = True
        return self.known

    def begin_in_turn(self, environment: "lmdb.Environment", turns: Turns[str],
                      opened: "Callable[[lmdb.Environment, lmdb.Transaction[bytes]], SubDatabases]") -> None:
        """Begin a read that opens the sub-databases for itself. It waits for other reads that do so.

        :param turns: of the transactions that open sub-databases
        :param opened: opens the sub-databases
        """
        turn = Turn()
        self._turn = (turns, turn)  # before it begins, so that abort() ends it in any case
        turns.begin(HANDLES, turn)
        self._txn = txn = environment.begin()
        self._dbs = opened(environment, txn)
        self.number = txn.id()
        self._know_nothing(layouts.decode_header(txn.get(layouts.HEADER_KEY, b"", db=self._dbs.queue_db)))

    @property
    def has_begun(self) -> bool:
        """Return whether it is open, and no longer waits for others. Any thread may ask."""
        return self._txn is not None

    def commit(self) -> None:
        """Commit the changes. After an error none of them is stored, unless LMDB gives up the environment."""
        self._committing = True
        try:
            self._txn.commit()
        except Exception:
            self._committing = False
            self.commit_failed = True
            raise
        self._txn = None  # type: ignore[assignment]  # it has ended

    def abort(self) -> None:
        """Discard the changes, unless they are committed. It may be called repeatedly, and before the beginning."""
        txn = self._txn
        if txn is not None:
            if self._committing and _is_open(txn):
                self._committing = False  # an interrupt came before LMDB was called
            txn.abort()
            self._txn = None  # type: ignore[assignment]  # the last reference keeps a reader's slot
        if self._turn is not None:
            turns, turn = self._turn
            turns.end(HANDLES, turn)

    @property
    def committed(self) -> bool:
        """Return whether the changes are committed. It is valid once the transaction has ended."""
        return self._committing

    def disown(self) -> object:
        """Detach and return the LMDB transaction: a forked child must not end its copy."""
        txn = self._txn
        self._txn = None  # type: ignore[assignment]  # it is out of reach
        return txn


def _is_open(txn: "lmdb.Transaction[bytes]") -> bool:
    """Return whether an LMDB transaction is still open: it forgets its number when it ends."""
    try:
        txn.id()
    except Exception:  # pylint: disable=broad-exception-caught  # lmdb.Error, which only database.py imports
        return False
    return True
