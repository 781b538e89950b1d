"""The command ``persipubsub``: each verb has its own file, which is loaded only when the verb is called.

A verb is a module of this package that has a command of the same name.
"""

import io
import sys
import traceback
from typing import Any, List, Optional, Sequence

import click

import persipubsub
from persipubsub import errors
from persipubsub.cli import exit_status, output, warnings_shown
from persipubsub.cli.command import Group
from persipubsub.cli.verbs import VERBS


class Commands(Group):
    """The group of all verbs. It prints errors of the package as one line."""

    def list_commands(self, ctx: click.Context) -> List[str]:
        """Return the names of the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        """Load a verb."""
        return VERBS[cmd_name]() if cmd_name in VERBS else None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; print an error of the package as one line, and report an interruption by the user."""
        try:
            with warnings_shown.on_stderr():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            output.line("Interrupted.", err=True)
            return ctx.exit(exit_status.INTERRUPTED)
        except BrokenPipeError:
            return ctx.exit(exit_status.PIPE_CLOSED)
        except (errors.PersipubsubError, OSError) as error:
            if ctx.params["debug"]:
                output.lines(traceback.format_exc().rstrip().split("\n"), err=True)
                return ctx.exit(exit_status.FAILED)
            raise click.ClickException(" ".join(str(error).split())) from error

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments,arguments-differ  # as in click's types
    def main(self,
             args: Optional[Sequence[str]] = None,
             prog_name: Optional[str] = None,
             complete_var: Optional[str] = None,
             standalone_mode: bool = True,
             **extra: Any) -> Any:
        """Run the command, and end the process with its exit status. Messages of click go through :mod:`output`."""
        output.prepare()
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.Abort:
            output.line("Aborted!", err=True)
            status = exit_status.FAILED
        except click.ClickException as error:
            text = io.StringIO()
            error.show(text)
            output.lines(text.getvalue().rstrip().split("\n"), err=True)
            status = error.exit_code
        except OSError as error:
            output.line(f"Error: {error.strerror}.", err=True)
            status = exit_status.FAILED
        output.drop()
        sys.exit(status)


@click.group(cls=Commands, example="persipubsub demo")
@click.version_option(persipubsub.__version__, prog_name="persipubsub", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # pylint: disable=unused-argument  # read from the context, where errors are caught
    """Set up and try persistent publish/subscribe queues."""
