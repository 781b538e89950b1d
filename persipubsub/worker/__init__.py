"""Programs that handle the messages of a subscriber, in threads, tasks and processes."""

import os
import pathlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from persipubsub import environment, errors
from persipubsub.engine import checks
from persipubsub.engine.limits import DELAY_S_MAX

if TYPE_CHECKING:
    from persipubsub.environment import MessageType, Path

__all__ = ["run"]


def run(location: "Path",
        subscriber: str,
        handler: Union[str, Callable[[Any], object]],
        *,
        message_type: "Optional[Union[str, MessageType[Any]]]" = None,
        processes: int = 1,
        threads: int = 1,
        grace_s: float = 30,
        max_messages: Optional[int] = None,
        max_seconds: Optional[float] = None) -> None:
    """Call a handler with each message of a subscriber, until SIGTERM or Ctrl-C stops it. Call this in the main thread.

    A message is acknowledged when the handler returns. If the handler raises :class:`.Retry` or :class:`.Reject`, that
    happens to the message. Any other exception is logged, and the message is delivered again, as its subscriber says.
    While the handler works, the lease of its message is extended.

    The first signal asks for a warm stop: no more messages are received, and this returns once handlers have finished.
    At a second signal, or after ``grace_s``, the process gives messages back and ends at once. Its exit status is 128
    plus the number of the signal, or 1.

    With several processes, and with ``max_messages`` or ``max_seconds``, the handler runs in other processes. They are
    spawned, so the program needs ``if __name__ == "__main__":``. A process that dies is replaced, after a pause that
    grows from 1 s to 60 s.

    :param location: the directory of the queue, or its URL
    :param subscriber: its name; it must be shared for more than one process or thread
    :param handler: a function, or its name, such as ``"shop.orders:pack"``. It gets the message, or a
        :class:`.Delivery` if its parameter is annotated so. An ``async`` function runs on one event loop per
        process
    :param message_type: as for :meth:`Environment.new_subscriber`, or its name, such as ``"shop.orders:Order"``
    :param processes: how many processes handle messages
    :param threads: how many messages each of them handles at a time: in threads, or in tasks of an ``async`` handler
    :param grace_s: seconds that handlers have to finish at a warm stop
    :param max_messages: how many messages a process handles before it is replaced; threads may each finish one more
    :param max_seconds: how long a process receives messages before it is replaced
    :raise ArgumentTypeError: an argument of the wrong type, or a handler that does not take one argument
    :raise ArgumentError: an argument outside its limits, or a handler that cannot be imported
    :raise SubscriberKindError: the subscriber is not shared, and there are several processes or threads; or the handler
        rejects a message, and the subscriber has no dead letters
    :raise UnsupportedError: this is not the main thread, which alone can handle signals; or it needs several processes,
        and Python does not let this one start any
    :raise PersipubsubError: the queue or its subscriber cannot be used, as for :meth:`Environment.new_subscriber`
    :raise SystemExit: with the status above, if there are several processes; or raised by the handler
    """
    from persipubsub.worker.plan import Plan
    if threading.current_thread() is not threading.main_thread():
        raise errors.UnsupportedError(
            "persipubsub.worker.run handles signals, so it works only in the main thread of a program. Call it there, "
            "or start persipubsub work as a process. In a thread, use Subscriber.messages() or deliveries().")
    checks.identifier(subscriber)
    path: Union[pathlib.Path, str] = environment.new_environment(location).location
    # A URL as it was given, with its secrets: the other processes get it through a pipe.
    plan = Plan(
        os.fspath(location) if isinstance(path, str) else str(path), subscriber, handler, message_type,
        checks.at_least_one("threads", threads), checks.seconds("grace_s", grace_s, 0, DELAY_S_MAX),
        None if max_messages is None else checks.at_least_one("max_messages", max_messages),
        None if max_seconds is None else checks.seconds("max_seconds", max_seconds, 0, DELAY_S_MAX))
    if checks.at_least_one("processes", processes) == 1 and not plan.recycles:
        from persipubsub.worker import process
        process.serve(plan)
    else:
        from persipubsub.worker import supervisor  # here, since it imports multiprocessing
        status = supervisor.supervise(plan, processes)
        if status:
            sys.exit(status)
