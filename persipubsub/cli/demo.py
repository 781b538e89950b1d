"""The verb ``demo``: send the lines of a file through a queue, by many processes, and count what arrives."""

import contextlib
import pathlib
import stat
import sys
import tempfile
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional

import click

from persipubsub import environment, errors
from persipubsub.cli import demo_lines, exit_status, output
from persipubsub.cli.command import Command
from persipubsub.cli.demo_crew import Crew
from persipubsub.cli.demo_lines import Source
from persipubsub.queue import RECORD_BYTES_MAX, HighWaterMark

if TYPE_CHECKING:
    from rich.progress import Progress

PROCESSES = click.IntRange(1, 100)
#: Longer than any demo: a message must not expire while a process is suspended.
MESSAGE_TIMEOUT_S = 30 * 24 * 3600
# The width of the table where there is no terminal to ask.
WIDTH = 120


def _regular(_ctx: click.Context, _param: click.Parameter, file: Optional[pathlib.Path]) -> Optional[pathlib.Path]:
    """Refuse a pipe or a device."""
    if file is not None and not stat.S_ISREG(file.stat().st_mode):
        raise click.BadParameter(
            f"{click.format_filename(file)!r} is not a regular file. Each publisher reads it from its beginning, so "
            "it must be one: save what comes from a pipe or a device to a file first.")
    return file


@click.command(cls=Command, example="persipubsub demo access.log --publishers 4 --subscribers 2")
@click.argument("file",
                required=False,
                callback=_regular,
                type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--publishers",
              type=PROCESSES,
              default=2,
              show_default=True,
              help="Processes that send; each has its share of the lines.")
@click.option("--subscribers",
              type=PROCESSES,
              default=3,
              show_default=True,
              help="Processes that receive; each gets all lines.")
@click.option("--path",
              metavar="DIR",
              type=click.Path(),
              help="Where to set up the queue, and to leave it; otherwise it is in a temporary directory that is "
              "removed afterwards.")
@click.pass_context
def demo(ctx: click.Context, file: Optional[pathlib.Path], publishers: int, subscribers: int,
         path: Optional[str]) -> None:
    """Send the lines of FILE through a queue, and count what arrives.

    Publishers and subscribers are processes of their own. Without FILE, a text that comes with the package is sent
    again and again. Lines of more than 1 MiB go in pieces.

    The exit status is 1 if a process died or anything was lost, altered, duplicated or out of order.
    """
    output.require_stdout()
    with _progress() as progress, _directory(path) as directory:
        counting = progress.add_task("count lines", total=None)
        try:
            source = demo_lines.count(file)
        except OSError as error:
            raise click.FileError(str(file), error.strerror) from error
        progress.remove_task(counting)
        identifiers = [f"subscriber-{number + 1}" for number in range(subscribers)]
        _deploy(directory, identifiers, source)
        crew = Crew(directory, source, publishers, identifiers, ctx.find_root().params["debug"])
        crew.run(_shown(progress, crew, source))
    _conclude(ctx, crew, source)


@contextlib.contextmanager
def _directory(path: Optional[str]) -> Iterator[pathlib.Path]:
    """Yield the directory for the queue, which is removed unless the user named it."""
    if path is None:
        with tempfile.TemporaryDirectory(prefix="persipubsub-demo-") as name:
            yield pathlib.Path(name)
        return
    with environment.new_environment(path) as env:
        try:
            env.new_publisher()
        except errors.NotInitializedError:
            pass
        else:
            raise click.BadParameter(
                f"{click.format_filename(path)!r} already holds a queue, which the demo would fill with its messages. "
                "Name a directory without one.",
                param_hint="'--path'")
    yield env.path


def _deploy(path: pathlib.Path, identifiers: List[str], source: Source) -> None:
    """Set up the queue, with a high-water mark that is never reached: it would drop messages."""
    # A page of LMDB is at least half full.
    size_bytes = 2 * (source.message_bytes + RECORD_BYTES_MAX * source.messages)
    mark = HighWaterMark(MESSAGE_TIMEOUT_S, source.messages + 1, size_bytes + 1024**2)
    with environment.new_environment(path) as env:
        env.new_control(identifiers, mark)


def _progress() -> "Progress":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    columns = TextColumn("{task.description:<11}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns,
                    console=output.console(err=True),
                    transient=True,
                    disable=sys.stderr is None or not sys.stderr.isatty())


def _shown(progress: "Progress", crew: Crew, source: Source) -> Callable[[], None]:
    """Return a function that brings the progress bars up to date."""
    sent = progress.add_task("sent", total=source.messages)
    received = progress.add_task("received", total=source.messages * len(crew.subscribers))

    def show() -> None:
        progress.update(sent, completed=sum(worker.report.messages for worker in crew.publishers))
        progress.update(received, completed=sum(worker.report.messages for worker in crew.subscribers))

    return show


def _conclude(ctx: click.Context, crew: Crew, source: Source) -> None:
    """Print the table and what is wrong, and end the program accordingly."""
    from persipubsub.cli import demo_table
    table, problems = demo_table.results(crew, source)
    # What is piped to a file or a program is not cut to the 80 columns that rich would assume.
    output.console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    for problem in crew.failures + problems:
        output.line(f"Error: {problem}", err=True)
    if crew.stopped_by is not None:
        ctx.exit(exit_status.SIGNALLED + crew.stopped_by)
    ctx.exit(exit_status.FAILED if crew.failures or problems else exit_status.DONE)
