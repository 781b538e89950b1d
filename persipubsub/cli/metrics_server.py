"""Serve metrics to Prometheus over HTTP."""

import contextlib
import re
from typing import Any, Callable, Iterator, Tuple

import click

PORT_MAX = 65535


def parsed(listen: str) -> Tuple[str, int]:
    """Return address and port; an IPv6 address is in brackets.

    :raise BadParameter: it is not of the form ADDRESS:PORT
    """
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", listen)
    if match is None or int(match[3]) > PORT_MAX:
        raise click.BadParameter(f"{listen!r} is not of the form ADDRESS:PORT, such as 127.0.0.1:9464 or [::1]:9464.",
                                 param_hint="--listen")
    return match[1] or match[2], int(match[3])


@contextlib.contextmanager
def serving(address: str, port: int, collector: Callable[[], Any]) -> Iterator[str]:
    """Serve metrics during the block, in another thread; provide the URL.

    :param collector: makes the collector, once it is known that prometheus_client is installed
    :raise ClickException: it is not, or the address cannot be listened on
    """
    try:
        # Imported here: neither --help nor the other verbs need it.
        # pylint: disable-next=import-outside-toplevel  # see above
        import prometheus_client
        collected = collector()
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise click.ClickException(
            "prometheus_client is not installed. Install it with: pip install 'persipubsub[prometheus]'") from error
    registry = prometheus_client.CollectorRegistry()
    registry.register(collected)
    try:
        server, thread = prometheus_client.start_http_server(port, address, registry)
    except (OSError, UnicodeError) as error:  # the latter for an impossible host name
        reason = error.strerror if isinstance(error, OSError) else error
        raise click.ClickException(f"Cannot listen on {address} port {port}: {reason}.") from error
    try:
        yield f"http://{f'[{address}]' if ':' in address else address}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
