"""The verb ``metrics``: serve the metrics of queues to Prometheus."""

import re
import signal
from typing import Any, Tuple

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command

STOP = (signal.SIGINT, signal.SIGTERM)
PORT_MAX = 65535


@click.command(cls=Command,
               example="persipubsub metrics ./orders ./invoices --listen 127.0.0.1:9464",
               short_help="Serve the metrics of queues to Prometheus.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--listen",
              metavar="ADDRESS:PORT",
              default="127.0.0.1:9464",
              show_default=True,
              help="The address to serve on; port 0 picks a free port.")
def metrics(paths: Tuple[str, ...], listen: str) -> None:
    """Serve the metrics of the queues in the directories PATH to Prometheus, until SIGTERM or Ctrl-C.

    For a queue that is damaged, unreadable or missing, the metric persipubsub_up is 0.
    """
    address, port = _parsed(listen)
    try:
        # Imported here: neither --help nor the other verbs need it.
        # pylint: disable-next=import-outside-toplevel  # see above
        import prometheus_client

        # pylint: disable-next=import-outside-toplevel  # it also imports prometheus_client
        from persipubsub.metrics import QueueCollector
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise click.ClickException(
            "prometheus_client is not installed. Install it with: pip install 'persipubsub[prometheus]'") from error
    registry = prometheus_client.CollectorRegistry()
    registry.register(QueueCollector(paths, isolated=True))
    # Before the threads of the server start, since they inherit the blocked signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        _serve(registry, address, port)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parsed(listen: str) -> Tuple[str, int]:
    """Return address and port; an IPv6 address is in brackets."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", listen)
    if match is None or int(match[3]) > PORT_MAX:
        raise click.BadParameter(f"{listen!r} is not of the form ADDRESS:PORT, such as 127.0.0.1:9464 or [::1]:9464.",
                                 param_hint="--listen")
    return match[1] or match[2], int(match[3])


def _serve(registry: Any, address: str, port: int) -> None:
    # pylint: disable-next=import-outside-toplevel  # see metrics()
    import prometheus_client
    try:
        server, thread = prometheus_client.start_http_server(port, address, registry)
    except (OSError, UnicodeError) as error:  # the latter for an impossible host name
        reason = error.strerror if isinstance(error, OSError) else error
        raise click.ClickException(f"Cannot listen on {address} port {port}: {reason}.") from error
    try:
        host = f"[{address}]" if ":" in address else address
        output.line(f"Serving on http://{host}:{server.server_port}/metrics")
        signal.sigwait(STOP)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
