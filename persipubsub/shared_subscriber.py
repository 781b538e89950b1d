"""Receiving as one of the workers that share a subscriber."""

import os
from typing import Callable, Dict, FrozenSet, Optional, Sequence

from persipubsub import errors
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import Failure, Found, Msg, Settled, failure_of
from persipubsub.subscriber import LEFT, Receipt, Subscriber


class SharedSubscriber(Subscriber[Msg]):
    """A worker's access to a shared subscriber, each message of which goes to one worker at a time.

    A message is the worker's own for as long as the lease of the subscriber. It is acknowledged when the block that
    received it ends, and given back when the block raises.
    """

    # The messages that this object was handed out and has neither acknowledged nor given back, by their claim.
    _claims: Dict[bytes, Sequence[int]] = {}
    _process = 0  # whose they are: of none yet
    _inherited: FrozenSet[bytes] = frozenset()  # the tokens of the parent's claims, in a forked child

    def _own_claims(self) -> Dict[bytes, Sequence[int]]:
        """Give the claims of this process. Those that a forked child inherits are its parent's."""
        process = os.getpid()
        if self._process != process:
            self._inherited = frozenset(self._claims)
            self._claims, self._process = {}, process
        return self._claims

    def _next(self, max_messages: int, max_bytes: int = RECEIVE_BYTES_MAX) -> Callable[[], Found]:

        def claim() -> Found:
            found = self._engine.claim(self._subscription, max_messages, max_bytes)
            if found.ids:
                self._own_claims()[found.token] = found.ids
            self._warn(found.dropped)
            return found if self._codec is None else self._read(found)

        return claim

    def _read(self, found: Found) -> Found:
        """Put messages in the place of payloads; give back what is no message, and what comes behind it."""
        try:
            decoded = self._decoded(found)
        except errors.DecodeError as error:
            self._give_back(found, 1, len(found.ids), None)
            self._give_back(found, 0, 1, failure_of(error))
            raise
        if len(decoded.ids) < len(found.ids):
            self._give_back(found, len(decoded.ids), len(found.ids), None)
            self._own_claims()[found.token] = decoded.ids
        return decoded

    def _take(self, found: Found, count: int) -> None:
        self._own_claims().pop(found.token, None)
        self._require_open()
        if found.token in self._inherited:
            raise errors.LeaseLostError(
                f"{count} messages of the subscriber {self._identifier!r} came before this process was forked: "
                "they are its parent's. Receive them after the fork.")
        self._end(self._engine.acknowledge(self._subscription, found.ids[:count], found.token))

    def _fail(self, found: Found, error: BaseException) -> None:
        self._give_back(found, 0, len(found.ids), failure_of(error) if isinstance(error, Exception) else None)

    def _give_back(self, found: Found, start: int, stop: int, failure: Optional[Failure]) -> None:
        self._own_claims().pop(found.token, None)
        if found.token in self._inherited:
            return  # a forked child leaves what its parent works on
        if start < stop and not self._closed:  # once it is closed, the lease ends by itself
            self._end(self._engine.give_back(self._subscription, found.ids[start:stop], found.token, failure))

    def _abandon(self, found: Found, finished: int, begun: int) -> None:
        self._give_back(found, begun, len(found.ids), None)
        self._give_back(found, finished, begun, LEFT)

    def extend_lease(self) -> None:
        """Have the lease of all messages that this object holds begin again now."""
        self._require_open()
        claims = dict(self._own_claims())
        if claims:
            lost = set(self._engine.extend(self._subscription, claims).lost)
            # Not what another thread was just acknowledging.
            self._end(
                Settled(lost=[
                    message_id for ids in list(self._own_claims().values()) for message_id in ids if message_id in lost
                ]))

    def receive_to_top(self, timeout: Optional[float] = 60, retries: int = 10) -> Receipt[Optional[Msg]]:
        """Raise SubscriberKindError: what is before the latest message may be at other workers."""
        raise self._kind_error("receive_to_top")

    def front(self) -> Optional[Msg]:
        """Raise SubscriberKindError: another worker may be given the message before this one does anything with it."""
        raise self._kind_error("front")

    def pop(self) -> None:
        """Raise SubscriberKindError: it would not be the message that front() showed."""
        raise self._kind_error("pop")

    def _kind_error(self, method: str) -> Exception:
        self._require_open()
        return errors.SubscriberKindError(
            f"The subscriber {self._identifier!r} is shared, so {method}() makes no sense: other workers take messages "
            "at the same time. Use receive, receive_many or messages.")
