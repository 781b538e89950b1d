"""The command ``persipubsub``: one verb, one file, which is loaded only when it is called.

A verb is a module of this package with a :class:`Command` of its own name.
"""

import importlib
from typing import Any, List, Optional

import click

import persipubsub
from persipubsub import errors

VERBS = (
    "create",
    "deploy",
    "describe",
    "schema",
    "status",
    "metrics",
    "subscriber",
    "prune",
    "clear",
    "dead-letters",
    "demo",
    "check",
    "recover",
    "backup",
    "compact",
)
#: What a shell makes of a death by SIGINT.
EXIT_STATUS_INTERRUPTED = 130


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
        try:
            return super().invoke(ctx)
        except errors.PersipubsubError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            return ctx.exit(EXIT_STATUS_INTERRUPTED)


@click.group(cls=Commands, example="persipubsub demo")
@click.version_option(persipubsub.__version__, prog_name="persipubsub", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # pylint: disable=unused-argument  # read from the context, where errors are caught
    """Set up and try persistent publish/subscribe queues."""
