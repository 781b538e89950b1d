"""The base of all commands."""

from typing import Any, List, Optional, Tuple

import click

#: How the help of every command ends.
EXIT_STATUS = (
    "Exit status: 0 for success, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, 141 if the reader of the "
    "output has ended.")


class Command(click.Command):
    """A command whose ``--help`` begins with an example, and ends with the exit statuses."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._example = example

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example first, since most readers look for it."""
        formatter.write(f"Example: {self._example}\n\n")
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit statuses."""
        formatter.write_paragraph()
        formatter.write_text(EXIT_STATUS)


class Group(Command, click.Group):
    """A group of commands. Of a command that it does not have, it suggests a similar one."""

    def resolve_command(self, ctx: click.Context,
                        args: List[str]) -> Tuple[Optional[str], Optional[click.Command], List[str]]:
        """Find the command that the first argument names."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib  # here, since only a mistake needs it
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            raise click.UsageError(f"No such command {name!r}.{f' Did you mean {close[0]!r}?' if close else ''}", ctx)
        return super().resolve_command(ctx, args)
