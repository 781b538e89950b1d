"""Serve the dashboard: in a thread, so that signals stay with the command."""

import contextlib
import ipaddress
import logging
import secrets
import socket
import threading
from typing import Iterable, Iterator, NamedTuple, Optional, Sequence

import uvicorn

from persipubsub import clock
from persipubsub.dashboard.app import Dashboard
from persipubsub.dashboard.guard import Guard
from persipubsub.dashboard.watching import watchers_of

#: How many connections there may be at a time.
CONNECTIONS_MAX = 256
#: How long a stop waits for responses, in seconds; event streams end at once.
STOP_S_MAX = 3
#: How long a stop waits for the threads of all queues. One that reads a lost cluster takes longer, and is left alone.
WATCHERS_STOP_S_MAX = 1.0
_TOKEN_BYTES = 24


class Serving(NamedTuple):
    """A dashboard that runs."""

    url: str
    #: None if nothing needs one.
    token: Optional[str]


@contextlib.contextmanager
def serving(locations: Iterable[str],
            address: str,
            port: int,
            changes: bool = False,
            token: Optional[str] = None,
            hosts: Sequence[str] = (),
            modules: Sequence[str] = (),
            interval_s: float = 1.0) -> Iterator[Serving]:
    """Serve a dashboard during the block.

    :param locations: paths and URLs of queues
    :param address: to listen on
    :param port: 0 for a free one
    :param changes: whether dead letters may be requeued and discarded
    :param token: if given, also reading needs it; None: made if it is needed
    :param hosts: names by which the dashboard may be reached; if there are any, reading needs the token
    :param modules: modules that define message types
    :param interval_s: seconds between two reads of a queue
    :raise ArgumentError: a location cannot be that of a queue
    :raise OSError: the address cannot be listened on
    :raise UnicodeError: it is not a possible name
    """
    watchers = watchers_of(locations, interval_s)
    with _listening(address, port) as listener:
        bound, bound_port = listener.getsockname()[:2]
        private = not ipaddress.ip_address(bound).is_loopback or bool(hosts) or token is not None
        if token is None and (private or changes):
            token = secrets.token_urlsafe(_TOKEN_BYTES)
        guard = Guard(frozenset(host.lower() for host in hosts), token, private, changes)
        with _running(Dashboard(watchers, guard, modules, threading.Event()), listener):
            yield Serving(f"http://{f'[{address}]' if ':' in address else address}:{bound_port}/", token)


@contextlib.contextmanager
def _running(dashboard: Dashboard, listener: socket.socket) -> Iterator[None]:
    """Read the queues and answer requests during the block."""
    # uvicorn leaves signals alone outside the main thread.
    server = uvicorn.Server(_config(dashboard))
    thread = threading.Thread(target=server.run, args=([listener], ), name="server")
    for watcher in dashboard.watchers:
        watcher.start()
    thread.start()
    try:
        yield
    finally:
        dashboard.stopping.set()
        server.should_exit = True
        for watcher in dashboard.watchers:
            watcher.stop()
        thread.join()
        until_s = clock.monotonic_s() + WATCHERS_STOP_S_MAX
        for watcher in dashboard.watchers:
            watcher.join(until_s)


def _config(dashboard: Dashboard) -> uvicorn.Config:
    # What it logs of a request that failed goes to standard error; it logs nothing of others.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    return uvicorn.Config(dashboard.application(),
                          http="h11",
                          ws="none",
                          loop="asyncio",
                          lifespan="off",
                          log_config=None,
                          access_log=False,
                          proxy_headers=False,
                          server_header=False,
                          limit_concurrency=CONNECTIONS_MAX,
                          timeout_graceful_shutdown=STOP_S_MAX)


def _listening(address: str, port: int) -> socket.socket:
    address.encode("idna")  # an impossible name is a UnicodeError here, and a TypeError there
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)
