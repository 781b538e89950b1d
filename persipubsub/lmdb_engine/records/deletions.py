"""Delete messages: the oldest, or the latest."""

from typing import TYPE_CHECKING, Tuple

from persipubsub.lmdb_engine.records.layouts import pack_id, unpack_id
from persipubsub.lmdb_engine.records.transaction import Transaction

if TYPE_CHECKING:
    import lmdb


def delete_below(txn: Transaction, bound: int, limit: int) -> Tuple[int, bool]:
    """Delete the messages below an id.

    :param limit: the maximum number of messages, and of parts of long ones
    :return: the number of deleted messages, and whether all below the bound are deleted
    """
    txn.forget_below(bound)
    data, chunks = txn.lmdb_cursor("data_db"), txn.lmdb_cursor("chunk_db")
    reached = key_bound = pack_id(bound)
    if chunks.first():
        _delete_while_below(chunks, key_bound, limit)
        # A message stays until all its parts are deleted.
        reached = min(key_bound, chunks.key()[:len(key_bound)] or key_bound)
    deleted = 0
    if data.last() and data.key() < reached:
        latest = data.key()
        txn.mark_end(txn.next_id())
        data.first()
        if data.key() != latest and txn.stored_messages() <= limit:
            # All can be deleted, as when a subscriber has caught up.
            deleted = txn.stored_messages()
            txn.drop_messages()
    if not deleted:
        data.first()
        deleted = _delete_while_below(data, reached, limit)
    rest = data.key()
    all_deleted = not rest or rest >= key_bound
    txn.log().delete_below(bound if all_deleted else unpack_id(rest))
    return deleted, all_deleted


def delete_last(txn: Transaction, count: int) -> None:
    """Delete the latest messages, by their number."""
    log = txn.changing_log()
    first_id = log.id_of(log.messages_before(log.next_id()) - count)
    log.truncate(first_id)
    txn.own_known()["ahead"] = None
    for cursor in map(txn.lmdb_cursor, ("data_db", "chunk_db")):
        if cursor.set_range(pack_id(first_id)):
            while cursor.key():
                cursor.delete()


def _delete_while_below(cursor: "lmdb.Cursor[bytes]", bound: bytes, limit: int) -> int:
    """Delete the records below a key, from the cursor on; return their number.

    The cursor is then at the first record that is left. At the end there is no key.
    """
    deleted = 0
    key, delete = cursor.key, cursor.delete
    while deleted < limit and b"" < key() < bound:
        delete()
        deleted += 1
    return deleted
