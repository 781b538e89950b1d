"""The verb ``dead-letters``: look at the dead letters of a subscriber, and settle them."""

import datetime
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command
from persipubsub.cli.formats import FORMATS, counted
from persipubsub.cli.opening import complete_subscriber, opened_control
from persipubsub.dead_letters import DeadLetter

#: So much of a payload or an error stands in a list.
SHOWN_CHARACTERS_MAX = 60


class _Group(Command, click.Group):
    """A group whose ``--help`` begins with an example."""


@click.group("dead-letters", cls=_Group, example="persipubsub dead-letters list ./queue workers")
def dead_letters() -> None:
    """Look at the messages that a subscriber failed to take, hand them out again, or delete them."""


_path = click.argument("path", type=click.Path())
_name = click.argument("name", shell_complete=complete_subscriber)
_ids = click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(min=1))


@dead_letters.command("list", cls=Command, example="persipubsub dead-letters list ./queue workers")
@_path
@_name
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line; the payload is in hexadecimal.")
def list_(path: str, name: str, as_json: bool) -> None:
    """Write the dead letters of the subscriber NAME, one a line, the oldest first."""
    with opened_control(path) as control:
        for letter in control.dead_letters(name):
            if as_json:
                output.json_line(_as_json(letter))
            else:
                output.line(_as_line(letter))


@dead_letters.command(cls=Command, example="persipubsub dead-letters show ./queue workers 17")
@_path
@_name
@click.argument("message_id", metavar="ID", type=click.IntRange(min=1))
@click.option("--payload", is_flag=True, help="Write nothing but the message; as its bytes, without --format.")
@click.option("--format",
              "format_name",
              type=click.Choice(list(FORMATS)),
              help="How the message is written, as by persipubsub receive; otherwise as Python writes bytes.")
def show(path: str, name: str, message_id: int, payload: bool, format_name: Optional[str]) -> None:
    """Write all that is known of the dead letter ID of the subscriber NAME."""
    with opened_control(path) as control:
        letter = next((one for one in control.dead_letters(name) if one.id == message_id), None)
    if letter is None:
        raise _no_dead_letter(name, str(message_id))
    if payload:
        output.payload(FORMATS[format_name or "raw"](letter.payload))
        return
    facts: Dict[str, object] = {
        "id": letter.id,
        "sent": _time(letter.sent_time_s),
        "died": _time(letter.died_time_s),
        "deliveries": letter.deliveries,
        "reason": letter.reason,
        "error": _error(letter) or "-",
        "bytes": f"{len(letter.payload):,}",
    }
    if format_name is None:
        facts["payload"] = repr(letter.payload)
    output.lines(f"{what:<10}  {value}" for what, value in facts.items())
    if format_name is not None:
        written = FORMATS[format_name](letter.payload)
        output.payload(b"payload     " + (written + b"\n" if format_name == "raw" else written))


@dead_letters.command(cls=Command, example="persipubsub dead-letters requeue ./queue workers 17 18")
@_path
@_name
@_ids
@click.option("--all", "all_", is_flag=True, help="All of them.")
def requeue(path: str, name: str, ids: Tuple[int, ...], all_: bool) -> None:
    """Hand the dead letters ID of the subscriber NAME out to it again, as if for the first time."""
    _require_choice(ids, all_)
    with opened_control(path) as control:
        _settle(name, ids, all_, control.requeue_dead_letters, "requeued")


@dead_letters.command(cls=Command, example="persipubsub dead-letters discard ./queue workers --all")
@_path
@_name
@_ids
@click.option("--all", "all_", is_flag=True, help="All of them; asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(path: str, name: str, ids: Tuple[int, ...], all_: bool, yes: bool) -> None:
    """Delete the dead letters ID of the subscriber NAME."""
    _require_choice(ids, all_)
    with opened_control(path) as control:
        if all_ and not yes:
            status = control.status().subscribers.get(name)
            if status is not None and status.dead_letters:
                output.confirm(f"Delete {counted(status.dead_letters, 'dead letter')} of the subscriber {name!r}?")
        _settle(name, ids, all_, control.discard_dead_letters, "deleted")


def _settle(name: str, ids: Tuple[int, ...], all_: bool, settle: Callable[[str, Optional[Iterable[int]]], int],
            done: str) -> None:
    """Settle what is there; then the ids that are no dead letters are an error, as for rm a file that is not there."""
    # One by one, for only so it is known which of them were there.
    counts = {None: settle(name, None)} if all_ else {one: settle(name, [one]) for one in dict.fromkeys(ids)}
    output.line(f"{counted(sum(counts.values()), 'dead letter')} {done}")
    missing = [str(one) for one, count in counts.items() if not count]
    if missing and not all_:
        raise _no_dead_letter(name, ", ".join(missing))


def _no_dead_letter(name: str, ids: str) -> click.ClickException:
    return click.ClickException(f"The subscriber {name!r} has no dead letter {ids}. See persipubsub dead-letters list.")


def _require_choice(ids: Tuple[int, ...], all_: bool) -> None:
    if all_ == bool(ids):
        raise click.UsageError("Give either message ids or --all.")


def _as_json(letter: DeadLetter) -> Dict[str, Any]:
    return {**vars(letter), "payload": letter.payload.hex()}


def _as_line(letter: DeadLetter) -> str:
    return (f"{letter.id}  {_time(letter.died_time_s)}  {letter.deliveries} deliveries  {letter.reason}  "
            f"{_short(_error(letter)) or '-'}  {_short(repr(letter.payload[:SHOWN_CHARACTERS_MAX]))}")


def _error(letter: DeadLetter) -> str:
    return ": ".join(filter(None, (letter.error_type, letter.error_text)))


def _short(text: str) -> str:
    text = output.shown(text)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"


def _time(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc).isoformat(" ", "seconds")
