"""The verb ``check``: verify a queue."""

import click

from persipubsub import errors, recovery
from persipubsub.cli import exit_status, output
from persipubsub.cli.command import Command
from persipubsub.cli.opening import located, opened_control
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub check ./queue", short_help="Verify a queue.")
@click.argument("path", type=click.Path())
@click.pass_context
def check(ctx: click.Context, path: str) -> None:
    """Read the whole queue in the directory PATH, and print each broken invariant with its number.

    Nothing is changed. If the queue is in use, its records are checked, but not the pages that hold them. Bytes within
    a message cannot be verified, since there are no checksums.

    The exit status is 0 if no invariant is broken, and 1 if one is broken or the queue cannot be read.
    """
    directory = located(path)
    with progress_bar("check"):
        try:
            found = recovery.check(directory)
        except errors.InUseError:
            output.line("The queue is in use, so its pages are not checked.", err=True)
            with opened_control(path) as control:
                found = control.check()
    for violation in found:
        output.line(str(violation))
    if found:
        ctx.exit(exit_status.FAILED)
    output.line(f"{directory}: no damage found (message bytes have no checksums, so they are not verified)")
