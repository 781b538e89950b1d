"""What one process of a worker program does."""

import logging
import math
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Optional

from persipubsub import clock, environment, errors
from persipubsub.environment import Environment
from persipubsub.worker import handlers
from persipubsub.worker.crew import Crew
from persipubsub.worker.handlers import Handler
from persipubsub.worker.plan import Plan
from persipubsub.worker.stop_requests import StopRequests
from persipubsub.worker.threads import ThreadCrew

#: How long an abort waits until messages are given back.
GIVING_BACK_S = 1.0
#: The exit status if handlers still ran at the end of the grace.
FAILED = 1
#: The exit status after a second signal: its number is added.
SIGNALLED = 128
_LOGGER = logging.getLogger("persipubsub.worker")


def serve(plan: Plan, link: "Optional[Connection[Any, Any]]" = None) -> None:
    """Handle messages until the process is asked to stop or has handled as many as it should.

    :param link: to the supervisor, if there is one
    :raise PersipubsubError: the handler cannot be used, or the queue cannot be received from
    """
    handler, plan = Handler(plan.handler), imported(plan)
    with StopRequests(link) as requests, environment.new_environment(plan.location) as env:
        require_kind(env, plan, plan.threads)
        crew = _crew(env, plan, handler, requests)
        _LOGGER.info("Process %d handles messages of the subscriber %r of the queue at %s with %s.", os.getpid(),
                     plan.subscriber, env.location, handler.name)
        _wait(crew, plan, requests)
        crew.join()


def imported(plan: Plan) -> Plan:
    """Return a plan with the message type in place of its name."""
    if isinstance(plan.message_type, str):
        return plan._replace(message_type=handlers.find("message type", plan.message_type))
    return plan


def require_kind(env: Environment, plan: Plan, workers: int) -> None:
    """Make sure that a subscriber allows a number of workers.

    :raise UnknownSubscriberError: there is no such subscriber
    :raise SubscriberKindError: it is not shared, and there is more than one
    """
    found = env.new_control(create=False).status().subscribers.get(plan.subscriber)
    if workers > 1 and found is not None and (found.policy is None or not found.policy.shared):
        raise errors.SubscriberKindError(
            f"The subscriber {plan.subscriber!r} is not shared, so only one process with one thread can work on it. "
            "Share it with Control.add_subscriber(..., shared=True), or with persipubsub subscriber add --shared.")


def _crew(env: Environment, plan: Plan, handler: Handler, requests: StopRequests) -> Crew:
    if handler.is_async:
        from persipubsub.worker.tasks import TaskCrew  # here, since it imports asyncio
        return TaskCrew(env, plan, handler, requests.wake)
    return ThreadCrew(env, plan, handler, requests.wake)


def _wait(crew: Crew, plan: Plan, requests: StopRequests) -> None:
    """Wait until all threads have ended; stop them at the first request, and abort at the second one."""
    recycled_s = math.inf if plan.max_seconds is None else clock.monotonic_s() + plan.max_seconds
    deadline_s = math.inf
    while crew.running:
        requests.wait(min(recycled_s, deadline_s))
        now_s = clock.monotonic_s()
        if now_s >= recycled_s:
            recycled_s = math.inf
            crew.stop()
        if requests.count and deadline_s == math.inf:
            recycled_s, deadline_s = math.inf, now_s + plan.grace_s
            crew.stop()
        if crew.running and requests.count > 1:
            _abort(crew, "at once", SIGNALLED + requests.received[-1])
        if crew.running and now_s >= deadline_s:
            _abort(crew, f"after {plan.grace_s:g} s of grace", FAILED)


def _abort(crew: Crew, when: str, status: int) -> None:
    """End the process although handlers run. Nothing else can end them."""
    _LOGGER.warning("Process %d ends %s. Messages that it still handles are given back: %d.", os.getpid(), when,
                    len(crew.leases.jobs))
    # In a thread, since the disk, or an event loop that a handler blocks, may take forever.
    giving_back = threading.Thread(target=_give_back, args=(crew, ), daemon=True)
    giving_back.start()
    giving_back.join(GIVING_BACK_S)
    os._exit(status)  # pylint: disable=protected-access  # sys.exit would wait for some kinds of threads


def _give_back(crew: Crew) -> None:
    crew.give_back()
    sys.stdout.flush()
    sys.stderr.flush()


def serve_supervised(plan: Plan, link: "Connection[Any, Any]") -> None:
    """Run a process of a supervisor.

    :param link: ends when the supervisor dies, or wants an abort
    """
    # It was blocked, so that Ctrl-C in a terminal ends no process that has not started yet.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        serve(plan, link)
    except errors.PersipubsubError as error:
        _LOGGER.error("Process %d ends: %s", os.getpid(), error)
        sys.exit(FAILED)
