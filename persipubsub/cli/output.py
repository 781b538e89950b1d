"""The output of the commands. Only this module and :mod:`message_output` write to standard output or standard error.

Names, errors and paths come from other programs. Sent raw to a terminal, they could move the cursor, hide or forge
lines, or change the title of the window.
"""

import io
import os
import sys
from typing import TYPE_CHECKING, Iterable, Optional, Union

import click

if TYPE_CHECKING:
    from rich.console import Console

#: Python stands for the byte 0xNN that is not UTF-8, in a path or an argument, by this number + 0xNN.
SURROGATE_OF_BYTE = 0xDC00


def shown(text: str) -> str:
    """Return text of others as any terminal may show it, in one line.

    Control characters, line breaks, marks that turn the direction of writing, and bytes that are not UTF-8 are written
    as Python writes them in a literal. What is printable stays as it is.
    """
    return text if text.isprintable() else "".join(map(_shown_character, text))


def _shown_character(character: str) -> str:
    if character.isprintable():
        return character
    number = ord(character)
    if SURROGATE_OF_BYTE + 0x80 <= number <= SURROGATE_OF_BYTE + 0xFF:
        return f"\\x{number - SURROGATE_OF_BYTE:02x}"
    return character.encode("unicode_escape").decode()


def shown_path(path: Union[str, "os.PathLike[str]"]) -> str:
    """Return a path as any terminal may show it."""
    return shown(os.fspath(path))


def line(text: str, err: bool = False) -> None:
    """Write one line.

    :param err: whether to standard error
    :raise ClickException: standard output takes no more
    """
    _write(shown(text) + "\n", err)


def lines(texts: Iterable[str], err: bool = False) -> None:
    """Write several lines at once. Arguments and errors are those of :func:`line`."""
    _write("".join(f"{shown(text)}\n" for text in texts), err)


def json_line(value: object) -> None:
    """Write a value as one line of JSON, in which every character is ASCII."""
    import json
    _write(json.dumps(value) + "\n")


def json_text(value: object) -> None:
    """Write a value as JSON for programs and for readers, in which every character is ASCII."""
    import json
    _write(json.dumps(value, indent=2) + "\n")


def payload(written: bytes) -> None:
    """Write what the user wants byte by byte: it may be a picture for a file."""
    _write(written)


def _write(written: Union[str, bytes], err: bool = False) -> None:
    try:
        click.echo(written, nl=False, err=err)
    except BrokenPipeError:
        if not err:
            raise
    except OSError as error:
        # Where standard error takes nothing, there is nobody to tell; and it must not fail the work.
        if not err:
            raise unwritable(error) from error


def unwritable(error: OSError) -> click.ClickException:
    """Return what tells the user that standard output takes no more."""
    return click.ClickException(f"Cannot write to standard output: {error.strerror}.")


def confirm(question: str) -> None:
    """Ask the user on standard error, and abort unless the answer is yes."""
    click.confirm(shown(question), abort=True, err=True)


def console(err: bool = False, width: Optional[int] = None) -> "Console":
    """Return what draws tables, whose texts of others must come from :func:`shown`.

    :param err: whether it draws on standard error
    :param width: in columns; None for that of the terminal
    """
    from rich.console import Console
    if not err and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # in a drawing each character has its column
    return Console(stderr=err, width=width, highlight=False)


def require_stdout() -> None:
    """Refuse to begin where nothing could be written.

    :raise ClickException: standard output is closed
    """
    if sys.stdout is None:
        raise click.ClickException("Standard output is closed.")


def prepare() -> None:
    """Make sure that standard output takes every text, and that no file of a queue takes its place.

    Were one of the first three files closed, a file of a queue would get the number, and whoever writes to standard
    output would write into the queue.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for file in (sys.stdout, sys.stderr):
        # A character that the terminal lacks is no reason to fail.
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


def drop() -> None:
    """Give up what cannot be written: Python would try again as it ends, and fail loudly."""
    for file in (sys.stdout, sys.stderr):
        if file is None:
            continue
        try:
            file.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
