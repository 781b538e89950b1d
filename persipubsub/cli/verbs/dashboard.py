"""The verb ``dashboard``: show queues in the browser."""

import contextlib
import os
import signal
import urllib.parse
from typing import TYPE_CHECKING, Callable, ContextManager, Optional, Tuple, Union

import click

from persipubsub.cli import metrics_server, output
from persipubsub.cli.command import Command
from persipubsub.cli.quantities import Quantity, seconds

if TYPE_CHECKING:
    from persipubsub.dashboard.serving import Serving

STOP = (signal.SIGINT, signal.SIGTERM)
#: The shortest token that a user may choose.
TOKEN_CHARACTERS_MIN = 16
#: What the extra installs.
NEEDED = ("starlette", "uvicorn")


@click.command(cls=Command,
               example="persipubsub dashboard ./orders ./invoices",
               short_help="Show queues in the browser.")
@click.argument("paths", metavar="LOCATION...", nargs=-1, required=True, type=click.Path())
@click.option("--listen",
              metavar="ADDRESS:PORT",
              default="127.0.0.1:8321",
              show_default=True,
              help="The address to serve on; port 0 picks a free port.")
@click.option("--allow-changes", is_flag=True, help="Allow to requeue and discard dead letters, with the token.")
@click.option("--token",
              envvar="PERSIPUBSUB_DASHBOARD_TOKEN",
              metavar="TEXT",
              help="The token that reading and changes need, of at least 16 characters.")
@click.option("--allow-host",
              "hosts",
              metavar="NAME",
              multiple=True,
              help="A name by which the page is reached, such as that of a reverse proxy.")
@click.option("--import", "modules", metavar="MODULE", multiple=True, help="A module that defines protobuf messages.")
@click.option("--interval",
              metavar="DURATION",
              type=Quantity("duration", seconds, least=0.1),
              default="1s",
              show_default=True,
              help="Time between two reads of a queue.")
def dashboard(paths: Tuple[str, ...], listen: str, allow_changes: bool, token: Optional[str], hosts: Tuple[str, ...],
              modules: Tuple[str, ...], interval: float) -> None:
    """Show the queues at LOCATION, directories or URLs, in the browser, until SIGTERM or Ctrl-C.

    On an address other than loopback, reading needs the token that is printed.
    """
    address, port = metrics_server.parsed(listen)
    if token is not None and (len(token) < TOKEN_CHARACTERS_MIN or not token.isascii() or not token.isprintable()):
        raise click.BadParameter(f"it needs at least {TOKEN_CHARACTERS_MIN} characters of ASCII.", param_hint="--token")
    for host in hosts:
        if ":" in host or host.endswith("."):
            raise click.BadParameter(f"{host!r} is not the name of a host alone: leave out the port and the last dot.",
                                     param_hint="--allow-host")
    serve = _loaded()
    # Before any thread starts, since threads inherit the blocked signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        with contextlib.ExitStack() as stack:
            try:
                served = stack.enter_context(serve(paths, address, port, allow_changes, token, hosts, modules,
                                                   interval))
            except (OSError, UnicodeError) as error:  # the latter for an impossible host name
                raise click.ClickException(f"Cannot listen on {address} port {port}: {_reason(error)}.") from error
            output.line(f"Serving on {served.url}")
            if served.token is not None:
                output.line(f"With the token: {served.url}#token={urllib.parse.quote(served.token, safe='')}")
            signal.sigwait(STOP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(error: Union[OSError, UnicodeError]) -> str:
    """Return why an address cannot be listened on. Python's own text repeats the address, but for a name unknown."""
    if isinstance(error, UnicodeError):
        return str(error)
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(
        error.strerror).partition(" (while")[0]


def _loaded() -> "Callable[..., ContextManager[Serving]]":
    """Return the function that serves.

    :raise ClickException: starlette or uvicorn is not installed
    """
    try:
        # Imported here: neither --help nor the other verbs need it.
        from persipubsub.dashboard.serving import serving
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        raise click.ClickException(
            f"{error.name} is not installed. Install it with: pip install 'persipubsub[dashboard]'") from error
    return serving
