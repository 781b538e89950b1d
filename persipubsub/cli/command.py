"""The base of all commands."""

from typing import Any

import click


class Command(click.Command):
    """A command whose ``--help`` begins with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example first, since most readers look for it."""
        formatter.write(f"Example: {self._example}\n\n")
        super().format_help(ctx, formatter)


class Group(Command, click.Group):
    """A group of commands whose ``--help`` begins with an example."""
