"""What workers that share the messages of one subscriber do differently: they lease, extend and give back."""

import os
from typing import Dict, FrozenSet, List, Optional, Sequence

from persipubsub import errors
from persipubsub.endpoints import spans
from persipubsub.endpoints.receiving import LEFT, Receiver
from persipubsub.engine import checks
from persipubsub.engine.commands import AcknowledgeClaimed, Extend, GiveBack, Settlement
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.values import NOTHING, Failure, Found, Settled, failure_of
from persipubsub.message import Reject, Retry


class SharedReceiver(Receiver):
    """What a shared subscriber for threads and one for asyncio tasks share: they claim messages."""

    # The messages that this object claimed and has neither acknowledged nor given back, by the token of the claim.
    _claims: Dict[bytes, Sequence[int]] = {}
    _process = 0  # the process that claimed them; none yet
    _inherited: FrozenSet[bytes] = frozenset()  # the tokens of the parent's claims, in a forked child

    def _own_claims(self) -> Dict[bytes, Sequence[int]]:
        """Return the claims of this process. Claims that a forked child inherits belong to its parent."""
        process = os.getpid()
        if self._process != process:
            self._inherited = frozenset(self._claims)
            self._claims, self._process = {}, process
        return self._claims

    def announce(self) -> None:
        """Do nothing: any number of processes may work as a shared subscriber."""

    def glance(self) -> Found:
        """Find nothing: messages of a shared subscriber have to be claimed."""
        return NOTHING

    def look(self, max_messages: int = 1, max_bytes: int = RECEIVE_BYTES_MAX, detailed: bool = False) -> Found:
        """Claim the next messages, decoded if the subscriber has a message type.

        :param detailed: whether :meth:`deliveries` needs them
        :raise DecodeError: the first is not a message of the type
        """
        if self.stopped:
            return NOTHING
        found = self.engine.claim(self.subscription, max_messages, max_bytes, detailed or spans.tracer is not None)
        if found.ids:
            self._own_claims()[found.token] = found.ids
        if found.dropped:
            self.warn(found.dropped)
        return found if self.codec is None else self._read(found)

    def _read(self, found: Found) -> Found:
        """Decode messages; give back a message that cannot be decoded, and those after it."""
        try:
            decoded = self._decoded(found)
        except errors.DecodeError as error:
            self.run(self._give_back(found, 1, len(found.ids), None))
            self.run(self._give_back(found, 0, 1, failure_of(error)))
            raise
        if len(decoded.ids) < len(found.ids):
            self.run(self._give_back(found, len(decoded.ids), len(found.ids), None))
            self._own_claims()[found.token] = decoded.ids
        return decoded

    def acknowledge(self, found: Found, count: int) -> Sequence[Settlement]:
        """Return the commands that acknowledge the first messages of a claim, even if the subscriber is closed."""
        self._own_claims().pop(found.token, None)
        if found.token in self._inherited:
            raise errors.LeaseLostError(
                f"{count} messages of the subscriber {self.identifier!r} were received before this process was forked, "
                "so they belong to its parent. Receive messages after the fork.")
        return [AcknowledgeClaimed(self.subscription, found.ids[:count], found.token)]

    def fail(self, found: Found, error: BaseException) -> Sequence[Settlement]:
        """Return the commands that give back messages whose block raised."""
        return self._give_back(found, 0, len(found.ids), failure_of(error) if isinstance(error, Exception) else None)

    def retry(self, found: Found, error: Retry) -> Sequence[Settlement]:
        """Return the commands that give messages back, to be delivered again after a delay."""
        delay_us = None if error.delay_s is None else checks.microseconds(error.delay_s)
        return [
            command._replace(delay_us=delay_us)
            for command in self._give_back(found, 0, len(found.ids), failure_of(error))
        ]

    def reject(self, found: Found, error: Reject) -> Sequence[Settlement]:
        """Return the commands that make messages dead letters at once."""
        return [
            command._replace(rejects=True) for command in self._give_back(found, 0, len(found.ids), failure_of(error))
        ]

    def leave(self, found: Found, finished: int, begun: int) -> Sequence[Settlement]:
        """Return the commands that give messages back; they count as delivered only if their iteration has begun."""
        return [
            *self._give_back(found, begun, len(found.ids), None),
            *self._give_back(found, finished, begun, LEFT),
        ]

    def _give_back(self, found: Found, start: int, stop: int, failure: Optional[Failure]) -> List[GiveBack]:
        self._own_claims().pop(found.token, None)
        if found.token in self._inherited:
            return []  # a forked child leaves alone what its parent works on
        if start >= stop or self.closed:
            return []  # once the subscriber is closed, the lease ends by itself
        return [GiveBack(self.subscription, found.ids[start:stop], found.token, failure)]

    def extend(self) -> Sequence[Settlement]:
        """Return the commands that restart the leases of all messages."""
        self.require_open()
        claims = dict(self._own_claims())
        return [Extend(self.subscription, claims)] if claims else []

    def settle_extension(self, settled: Optional[Settled]) -> None:
        """Report the messages that were lost, except those that another thread has just acknowledged."""
        lost = set(settled.lost) if settled is not None else set()
        held = (message_id for ids in list(self._own_claims().values()) for message_id in ids)
        self.settle(Settled(lost=[message_id for message_id in held if message_id in lost]))

    def require_plain(self, method: str) -> None:
        """Raise SubscriberKindError, since other workers receive messages at the same time."""
        self.require_open()
        raise errors.SubscriberKindError(
            f"The subscriber {self.identifier!r} is shared, so {method}() makes no sense: other workers receive "
            "messages at the same time. Use receive, receive_many or messages.")
