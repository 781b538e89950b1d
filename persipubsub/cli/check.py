"""The verb ``check``: verify a queue."""

import os
import pathlib

import click

from persipubsub import admission, handle, invariants
from persipubsub.cli import Command, exit_status
from persipubsub.cli.progress import progress_bar


@click.command(cls=Command, example="persipubsub check ./queue")
@click.argument("path", type=click.Path())
@click.pass_context
def check(ctx: click.Context, path: str) -> None:
    """Read all of the queue in the directory PATH, and print every invariant that is broken, by its number.

    Nothing is changed. Where the queue is in use, its records are checked, but not the pages that hold them.

    The exit status is 0 if all is well, and 1 if an invariant is broken or the queue cannot be read.
    """
    directory = pathlib.Path(os.path.abspath(path))
    with progress_bar("check"):
        use_lock = admission.try_alone(directory)
        if use_lock is not None:
            try:
                found = admission.violations(directory)
            finally:
                use_lock.close()
        else:
            click.echo("The queue is in use, so its pages are not checked.", err=True)
            # Not through a Control, which begins with a write.
            with handle.Use(directory) as opened:
                found = opened.read(invariants.check)
    for violation in found:
        click.echo(str(violation))
    if found:
        ctx.exit(exit_status.FAILED)
    click.echo(f"{click.format_filename(directory)}: all is well")
