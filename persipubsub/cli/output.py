"""The output of the commands. Only this module and :mod:`message_output` write to standard output or standard error.

Names, errors and paths come from other programs. Written raw to a terminal, they could move the cursor, hide or forge
lines, or change the window title.
"""

import io
import os
import sys
from typing import TYPE_CHECKING, Iterable, Optional, Union

import click

if TYPE_CHECKING:
    from rich.console import Console

#: In paths and arguments, Python represents a byte 0xNN that is not UTF-8 by the character of this number + 0xNN.
SURROGATE_OF_BYTE = 0xDC00


def shown(text: str) -> str:
    """Return foreign text as one line that is safe on any terminal.

    Control characters, line breaks, bidirectional marks, and bytes that are not UTF-8 are escaped as in a
    Python literal. Printable characters stay.
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
    """Return a path that is safe on any terminal."""
    return shown(os.fspath(path))


def line(text: str, err: bool = False) -> None:
    """Write one line.

    :param err: whether to write to standard error
    :raise ClickException: standard output cannot be written
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
    """Write a value as indented JSON, in which every character is ASCII."""
    import json
    _write(json.dumps(value, indent=2) + "\n")


def payload(written: bytes) -> None:
    """Write raw bytes that the user asked for."""
    _write(written)


def _write(written: Union[str, bytes], err: bool = False) -> None:
    try:
        click.echo(written, nl=False, err=err)
    except BrokenPipeError:
        if not err:
            raise
    except OSError as error:
        # An error of standard error cannot be reported, and must not fail the work.
        if not err:
            raise unwritable(error) from error


def unwritable(error: OSError) -> click.ClickException:
    """Return the error for a standard output that cannot be written."""
    return click.ClickException(f"Cannot write to standard output: {error.strerror}.")


def confirm(question: str) -> None:
    """Ask the user on standard error, and abort unless the answer is yes."""
    click.confirm(shown(question), abort=True, err=True)


def console(err: bool = False, width: Optional[int] = None) -> "Console":
    """Return a console for tables. Foreign text must pass :func:`shown` first.

    :param err: whether to draw on standard error
    :param width: in columns; None for the width of the terminal
    """
    from rich.console import Console
    if not err and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # in a drawing, each character needs one column
    return Console(stderr=err, width=width, highlight=False)


def require_stdout() -> None:
    """Refuse to begin if nothing can be written.

    :raise ClickException: standard output is closed
    """
    if sys.stdout is None:
        raise click.ClickException("Standard output is closed.")


def prepare() -> None:
    """Make sure that standard output accepts all text, and that no file of a queue gets its descriptor.

    If one of the first three descriptors were closed, a file of a queue would get its number, and output would be
    written into the queue.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    for file in (sys.stdout, sys.stderr):
        # A character that the terminal lacks must not fail the command.
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


def drop() -> None:
    """Drop output that cannot be written; Python would try again at exit and report an error."""
    for file in (sys.stdout, sys.stderr):
        if file is None:
            continue
        try:
            file.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
