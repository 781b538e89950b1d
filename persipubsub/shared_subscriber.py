"""Receive as one of the workers that share a subscriber."""

from persipubsub.engine.values import Msg
from persipubsub.subscriber import Subscriber


class SharedSubscriber(Subscriber[Msg]):
    """A worker's access to a shared subscriber, whose messages each go to one worker at a time.

    The worker holds a message for as long as the subscriber's lease. The message is acknowledged when the block that
    received it ends, and given back if the block raises. :meth:`receive_to_top`, :meth:`front` and :meth:`pop` raise
    :class:`SubscriberKindError`, since other workers receive messages at the same time.
    """
