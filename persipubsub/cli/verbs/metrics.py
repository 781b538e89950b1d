"""The verb ``metrics``: serve the metrics of queues to Prometheus."""

import signal
from typing import Any, Tuple

import click

from persipubsub.cli import metrics_server, output
from persipubsub.cli.command import Command

STOP = (signal.SIGINT, signal.SIGTERM)


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
    address, port = metrics_server.parsed(listen)
    # Before the threads of the server start, since they inherit the blocked signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        with metrics_server.serving(address, port, lambda: _collector(paths)) as url:
            output.line(f"Serving on {url}")
            signal.sigwait(STOP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collector(paths: Tuple[str, ...]) -> Any:
    # pylint: disable-next=import-outside-toplevel  # it imports prometheus_client
    from persipubsub.metrics import QueueCollector
    return QueueCollector(paths, isolated=True)
