"""Append what a relay brings from another queue, each message once; on an open transaction.

The transaction that appends messages also stores how far the relay has come in its source. So a relay that dies between
this commit and its acknowledgement there finds out that the messages are here, however much later that is.
"""

import os

from persipubsub.engine.values import Batch, Relayed, Route
from persipubsub.lmdb_engine.records.layouts import IDENTITY_BYTES
from persipubsub.lmdb_engine.records.relays import Relays
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending, cursors


def of(txn: Transaction) -> Relays:
    """Return what the queue stores for relays."""
    return Relays(txn.lmdb_cursor("queue_db"))


def put(txn: Transaction, batch: Batch, origin: bytes, after: Relayed, last: Relayed) -> Relayed:
    """Append messages that a relay brings, if it has come as far as it knows; return how far it has come then."""
    relays = of(txn)
    if relays.relayed(origin) == after:
        appending.put(txn, *batch)
        relays.put_relayed(origin, last)
        return last
    return relayed(txn, origin)


def relayed(txn: Transaction, origin: bytes) -> Relayed:
    """Return how far a relay has come.

    It is written again, so that this commit syncs: the sync of the commit that stored it may have failed.
    """
    relays = of(txn)
    found = relays.relayed(origin)
    if found != Relayed():
        relays.put_relayed(origin, found)
    return found


def identity(txn: Transaction) -> bytes:
    """Return the identity of the queue, which is made unless it has one."""
    relays = of(txn)
    found = relays.identity()
    if found is None:
        found = os.urandom(IDENTITY_BYTES)
        relays.put_identity(found)
    return found


def route(txn: Transaction, identifier: bytes, target: bytes) -> Route:
    """Return the route of a subscriber, which is made unless it has one.

    :param target: where it leads to if it is made now
    :raise UnknownSubscriberError: there is no such subscriber
    """
    cursors.subscribe(txn, identifier)
    relays = of(txn)
    found = relays.route(identifier)
    if found is None:
        found = Route(os.urandom(IDENTITY_BYTES), target)
        relays.put_route(identifier, found)
    return found
