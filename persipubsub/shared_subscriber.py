"""Receiving as one of the workers that share a subscriber."""

from persipubsub.engine.values import Msg
from persipubsub.subscriber import Subscriber


class SharedSubscriber(Subscriber[Msg]):
    """A worker's access to a shared subscriber, each message of which goes to one worker at a time.

    A message is the worker's own for as long as the lease of the subscriber. It is acknowledged when the block that
    received it ends, and given back when the block raises. :meth:`receive_to_top`, :meth:`front` and :meth:`pop` raise
    :class:`SubscriberKindError`: other workers receive messages at the same time.
    """
