"""The command ``persipubsub``: one verb, one file, which is loaded only when it is called.

A verb is a module of this package with a :class:`Command` of its own name.
"""

import importlib
import os
import sys
from typing import Any, List, Optional

import click

import persipubsub
from persipubsub import errors
from persipubsub.cli import exit_status, warnings_shown

VERBS = (
    "create",
    "deploy",
    "describe",
    "schema",
    "send",
    "receive",
    "status",
    "top",
    "metrics",
    "subscriber",
    "set",
    "prune",
    "clear",
    "dead-letters",
    "demo",
    "check",
    "recover",
    "backup",
    "compact",
    "migrate",
)


class Command(click.Command):
    """A command whose ``--help`` begins with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example before everything else: it is what most readers came for."""
        formatter.write(f"Example: {self._example}\n\n")
        super().format_help(ctx, formatter)


class Commands(Command, click.Group):
    """The group of all verbs. Errors of ours become one line."""

    def list_commands(self, ctx: click.Context) -> List[str]:
        """Name the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        """Load a verb."""
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; give an error of ours as one line, and say so where the user stopped it."""
        _fill_standard_descriptors()
        try:
            with warnings_shown.on_stderr():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            return ctx.exit(exit_status.INTERRUPTED)
        except BrokenPipeError:
            _drop_output()
            return ctx.exit(exit_status.PIPE_CLOSED)
        except (errors.PersipubsubError, OSError) as error:
            _drop_output()
            if ctx.params["debug"]:
                raise
            raise click.ClickException(" ".join(str(error).split())) from error


def _fill_standard_descriptors() -> None:
    """Open what the caller has closed of the first three files.

    Otherwise a file of a queue would get the number, and whoever writes to standard output would write into the queue.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def _drop_output() -> None:
    """Give up what cannot be written to standard output: Python would try again as it ends, and fail loudly."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Commands, example="persipubsub demo")
@click.version_option(persipubsub.__version__, prog_name="persipubsub", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # pylint: disable=unused-argument  # read from the context, where errors are caught
    """Set up and try persistent publish/subscribe queues."""
