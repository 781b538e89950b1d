"""The verb ``demo``: send the lines of a file through a queue, by many processes, and count what arrives."""

import collections
import contextlib
import pathlib
import tempfile
from typing import Callable, Counter, Iterator, Optional, Tuple

import click

from persipubsub import environment, errors
from persipubsub.cli import exit_status, output
from persipubsub.cli.command import Command
from persipubsub.cli.demo import cluster, workers
from persipubsub.cli.demo.crew import Crew, noted_signals, signal_name
from persipubsub.cli.formats import counted
from persipubsub.cli.progress import progress_bar

PROCESSES = click.IntRange(1, 100)
#: The part of all messages that is received before the leader of a cluster is killed.
KILL_AFTER = 1 / 3


@click.command(cls=Command,
               example="persipubsub demo access.log --publishers 4 --subscribers 2",
               short_help="Send lines through a queue, and count what arrives.")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--publishers", type=PROCESSES, default=2, show_default=True, help="Processes that share the sending.")
@click.option("--subscribers", type=PROCESSES, default=3, show_default=True, help="Processes that receive everything.")
@click.option("--path",
              metavar="LOCATION",
              type=click.Path(),
              help="Create the queue in this directory, or at this nats:// URL, and keep it; by default, it is in a "
              "temporary directory.")
@click.option("--cluster",
              "on_cluster",
              is_flag=True,
              help="Put the queue on three NATS servers, which this command starts, and kill their leader on the way.")
@click.pass_context
# pylint: disable-next=too-many-locals  # many are options
def demo(ctx: click.Context, file: Optional[pathlib.Path], publishers: int, subscribers: int, path: Optional[str],
         on_cluster: bool) -> None:
    """Send the lines of FILE through a queue, and count what arrives.

    Publishers and subscribers are separate processes. Without FILE, the demo sends a text of the package many times.
    Lines of more than 64 KiB are sent in pieces.

    --cluster needs the extra local-cluster, which installs the servers.

    The exit status is 1 if a process died or anything was lost, altered, duplicated or out of order.
    """
    output.require_stdout()
    _refuse(file, path, on_cluster)
    lines = sum(1 for _ in workers.read(file))
    names = tuple(f"subscriber-{number + 1}" for number in range(subscribers))
    crew, total = Crew(), lines * subscribers
    with noted_signals() as noted, progress_bar("received") as show, _queue(path, on_cluster,
                                                                            total) as (location, tell):
        with environment.new_environment(location) as env:
            env.new_control(names)
        crew.run(workers.Plan(location, file, lines, publishers, names,
                              ctx.find_root().params["debug"]), noted,
                 lambda: [show(crew.received, total), tell(crew.received)])
    has_problems = _report(crew, lines, f"stopped by {signal_name(noted[0])}" if noted else crew.failure)
    if noted:
        ctx.exit(exit_status.SIGNALLED + noted[0])
    ctx.exit(exit_status.FAILED if has_problems else exit_status.DONE)


@contextlib.contextmanager
def _queue(path: Optional[str], on_cluster: bool, total: int) -> Iterator[Tuple[str, Callable[[int], None]]]:
    """Provide a location for the queue, and a function to call with the number of messages that have arrived.

    :param total: how many will arrive
    """
    if on_cluster:
        with cluster.outage(total * KILL_AFTER) as outage:
            yield outage.location, outage.received
    elif path is None:
        with tempfile.TemporaryDirectory(prefix="persipubsub-demo-") as directory:
            yield directory, lambda _: None
    else:
        yield path, lambda _: None


def _refuse(file: Optional[pathlib.Path], path: Optional[str], on_cluster: bool) -> None:
    """Refuse a file that cannot be read more than once, and a location that already holds a queue."""
    if file is not None and not file.is_file():
        raise click.BadParameter(f"{click.format_filename(file)!r} is not a regular file. Each publisher reads it from "
                                 "its beginning: save what comes from a pipe or a device to a file first.")
    if path is not None and on_cluster:
        raise click.UsageError("--cluster starts servers of its own. To use a cluster that is there, give --path "
                               "nats://HOST/QUEUE without --cluster.")
    if path is not None:
        with environment.new_environment(path) as env, contextlib.suppress(errors.NotInitializedError):
            env.new_publisher()
            raise click.BadParameter(f"{str(env.location)!r} already holds a queue, which the demo would "
                                     "fill with its messages. Name a location without one.")


def _report(crew: Crew, lines: int, failure: str) -> bool:
    """Print what each worker did and what is wrong, and return whether anything is.

    :param failure: why the demo ended early, if it did; messages that were not yet received are then not missing
    """
    # A publisher that died may have sent more than it reported: what a subscriber received was sent.
    sent = [
        max(publisher.report.messages, *(subscriber.report.ends[number] for subscriber in crew.subscribers))
        for number, publisher in enumerate(crew.publishers)
    ]
    output.lines(f"{publisher.name} sent {counted(count, 'message')}"
                 for publisher, count in zip(crew.publishers, sent))
    totals: Counter[str] = collections.Counter()
    for subscriber in crew.subscribers:
        report = subscriber.report
        faults = {"duplicated": report.duplicated, "out of order": report.out_of_order, "altered": report.altered}
        if not failure:
            faults = {"missing": sum(sent) - report.messages + report.duplicated, **faults}
        totals.update(faults)
        described = ", ".join(f"{count:,} {fault}" for fault, count in faults.items())
        output.line(f"{subscriber.name} received {counted(report.messages, 'message')}: {described}")
    problems = [failure] if failure else []
    if sum(sent) != lines:
        problems.append(f"{sum(sent):,} of {lines:,} lines were sent" + ("" if failure else ": the file was changed"))
    problems += [f"{counted(count, 'message')} {fault}" for fault, count in totals.items() if count]
    output.lines((line for problem in problems for line in f"Error: {problem}".rstrip().split("\n")), err=True)
    return bool(problems)
