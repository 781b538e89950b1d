"""What all commands are made of."""

from typing import Any

import click


class Command(click.Command):
    """A command whose ``--help`` begins with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example before everything else: it is what most readers came for."""
        formatter.write(f"Example: {self._example}\n\n")
        super().format_help(ctx, formatter)
