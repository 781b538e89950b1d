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

    Nothing is changed. Where the queue is in use, its records are checked, but not the pages that hold them. Bytes
    within a message cannot be verified: there are no checksums.

    The exit status is 0 if no invariant is broken, and 1 if one is or the queue cannot be read.
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
            opened = handle.acquire(directory)
            try:
                found = opened.read(invariants.check)
            finally:
                handle.release(opened)
    for violation in found:
        click.echo(str(violation))
    if found:
        ctx.exit(exit_status.FAILED)
    click.echo(
        f"{click.format_filename(directory)}: no damage found (message bytes have no checksums, so they are not verified)"
    )
