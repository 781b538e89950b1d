"""What a queue stores for relays in one transaction: some records of ``queue_db``."""

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

from persipubsub.engine.values import Relayed, Route
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.layouts import IDENTITY_KEY, RELAYED_PREFIX, ROUTE_PREFIX

if TYPE_CHECKING:
    import lmdb


class Relays:
    """The identity of the queue, the routes of its subscribers, and how far relays have come that bring it messages."""

    __slots__ = ("_settings", )

    def __init__(self, settings: "lmdb.Cursor[bytes]") -> None:
        self._settings = settings

    def identity(self) -> Optional[bytes]:
        """Return the identity of the queue, or None if it has none yet."""
        return self._settings.get(IDENTITY_KEY)

    def put_identity(self, identity: bytes) -> None:
        """Store the identity of the queue."""
        self._settings.put(IDENTITY_KEY, identity)

    def route(self, identifier: bytes) -> Optional[Route]:
        """Return the route of a subscriber, or None if it has none yet."""
        value = self._settings.get(ROUTE_PREFIX + identifier)
        return None if value is None else layouts.decode_route(value)

    def put_route(self, identifier: bytes, route: Route) -> None:
        """Store the route of a subscriber."""
        self._settings.put(ROUTE_PREFIX + identifier, layouts.encode_route(route))

    def delete_route(self, identifier: bytes) -> None:
        """Delete the route of a subscriber, if it has one."""
        self._settings.pop(ROUTE_PREFIX + identifier)

    def routes(self) -> Iterator[Tuple[bytes, Route]]:
        """Iterate over the identifiers of subscribers with a route, and the routes."""
        for identifier, value in self._beginning_with(ROUTE_PREFIX):
            yield identifier, layouts.decode_route(value)

    def relayed(self, origin: bytes) -> Relayed:
        """Return how far a relay has come."""
        value = self._settings.get(RELAYED_PREFIX + origin)
        return Relayed() if value is None else layouts.decode_relayed(value)

    def put_relayed(self, origin: bytes, relayed: Relayed) -> None:
        """Store how far a relay has come."""
        self._settings.put(RELAYED_PREFIX + origin, layouts.encode_relayed(relayed))

    def all_relayed(self) -> Iterator[Tuple[bytes, Relayed]]:
        """Iterate over the origins of all relays, and how far each has come."""
        for origin, value in self._beginning_with(RELAYED_PREFIX):
            yield origin, layouts.decode_relayed(value)

    def _beginning_with(self, prefix: bytes) -> Iterator[Tuple[bytes, bytes]]:
        """Iterate over the rest of each key with a prefix, and the values."""
        found = self._settings.set_range(prefix)
        while found and self._settings.key().startswith(prefix):
            yield self._settings.key()[len(prefix):], self._settings.value()
            found = self._settings.next()
