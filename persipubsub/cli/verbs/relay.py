"""The verb ``relay``: bring the messages of a queue to another queue."""

import contextlib
import math
import os
import threading
from typing import Any, Optional

import click

from persipubsub import clock, errors
from persipubsub.cli import exit_status, metrics_server, output
from persipubsub.cli.command import Command
from persipubsub.cli.quantities import DURATION, Quantity, seconds
from persipubsub.relay import Relay
from persipubsub.worker.stop_requests import StopRequests


@click.command(cls=Command,
               example="persipubsub relay ./outbox /srv/queues/orders --report 1m",
               short_help="Bring the messages of a queue to another queue.")
@click.argument("source", metavar="FROM", type=click.Path())
@click.argument("target", metavar="TO", type=click.Path())
@click.option("--subscriber",
              metavar="NAME",
              default="relay",
              show_default=True,
              help="The subscriber of FROM whose messages are brought.")
@click.option("--max-messages",
              metavar="N",
              type=click.IntRange(1),
              default=1000,
              show_default=True,
              help="The largest number of messages in one commit.")
@click.option("--timeout",
              metavar="DURATION",
              type=DURATION,
              help="End when no message arrived for that time; 0 brings what is there. By default, never.")
@click.option("--report",
              metavar="DURATION",
              type=Quantity("duration", seconds, least=0.1),
              help="Print the backlog and the lag that often.")
@click.option("--listen", metavar="ADDRESS:PORT", help="Serve metrics to Prometheus there, as persipubsub metrics.")
# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one per option
def relay(source: str, target: str, subscriber: str, max_messages: int, timeout: Optional[float],
          report: Optional[float], listen: Optional[str]) -> None:
    """Bring the messages of the queue FROM to the queue TO, in order and each exactly once, until SIGTERM or Ctrl-C.

    They are received as NAME, which must be a subscriber of FROM. Errors that may pass, such as a full queue, are
    waited out. The exit status is 0 after SIGTERM, Ctrl-C or the timeout. A second signal ends the command at once.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(Relay(source, target, subscriber, max_messages))
        # Before any thread starts, so that the main thread gets the signals.
        requests = stack.enter_context(StopRequests())
        if listen is not None:
            url = stack.enter_context(metrics_server.serving(*metrics_server.parsed(listen),
                                                             lambda: _collector(opened)))
            output.line(f"Serving on {url}")
        running = _Running(opened, timeout, requests)
        running.supervise(report)
    if running.error is not None:
        raise running.error


def _collector(opened: Relay) -> Any:
    # pylint: disable-next=import-outside-toplevel  # it imports prometheus_client
    from persipubsub.metrics import RelayCollector
    return RelayCollector([opened])


class _Running:
    """A relay that runs in a thread of its own, so that signals and reports need not wait for it."""

    def __init__(self, opened: Relay, timeout: Optional[float], requests: StopRequests) -> None:
        self.error: Optional[BaseException] = None
        self._relay = opened
        self._timeout = timeout
        self._requests = requests
        self._has_ended = False
        self._reported = ""
        self._thread = threading.Thread(target=self._run, name="persipubsub-relay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._relay.run(self._timeout)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised in the main thread
            self.error = error
        finally:
            self._has_ended = True
            self._requests.wake()

    def supervise(self, report_s: Optional[float]) -> None:
        """Wait for the end, which the first signal asks for, and report; the second signal ends the process."""
        due_s = math.inf if report_s is None else clock.monotonic_s() + report_s
        requests = self._requests
        while not self._has_ended:
            requests.wait(due_s)
            if requests.count:
                self._relay.stop()
            if requests.count > 1:
                # Not sys.exit, which would wait for a thread that may not end.
                os._exit(exit_status.SIGNALLED + requests.received[-1])
            if report_s is not None and clock.monotonic_s() >= due_s:
                self._report()
                due_s = clock.monotonic_s() + report_s
        self._thread.join()  # before the pipe that it writes to is closed
        if report_s is not None:
            self._report()

    def _report(self) -> None:
        """Print how far the relay has come, unless that is what was printed last."""
        try:
            found = self._relay.status()
            line = f"{found.relayed} relayed, {found.backlog} waiting, lag {found.lag_s:.1f} s"
            if found.error is not None:
                line += f"; waits: {' '.join(str(found.error).split())}"
        except errors.PersipubsubError as error:
            line = f"the source cannot be read: {' '.join(str(error).split())}"
        if line != self._reported:
            self._reported = line
            output.line(line)
