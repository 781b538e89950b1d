"""The verb ``dead-letters``: show, requeue or delete the dead letters of a subscriber."""

import datetime
import json
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

import click

from persipubsub.cli import output
from persipubsub.cli.command import Command, Group
from persipubsub.cli.formats import FORMATS, counted
from persipubsub.cli.opening import complete_subscriber, opened_control
from persipubsub.dead_letters import DeadLetter

#: The maximum number of characters of a payload or an error in a list.
SHOWN_CHARACTERS_MAX = 60


@click.group("dead-letters",
             cls=Group,
             example="persipubsub dead-letters list ./queue workers",
             short_help="Show, requeue or delete dead letters.")
def dead_letters() -> None:
    """Show, requeue or delete the messages that a subscriber failed to acknowledge."""


_path = click.argument("path", type=click.Path())
_name = click.argument("name", shell_complete=complete_subscriber)
_ids = click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(min=1))


@dead_letters.command("list",
                      cls=Command,
                      example="persipubsub dead-letters list ./queue workers",
                      short_help="Write the dead letters.")
@_path
@_name
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object per line; the payload is in hexadecimal.")
def list_(path: str, name: str, as_json: bool) -> None:
    """Write the dead letters of the subscriber NAME, one per line, the oldest first."""
    with opened_control(path) as control:
        for dead_letter in control.dead_letters(name):
            if as_json:
                output.json_line(_as_json(dead_letter))
            else:
                output.line(_as_line(dead_letter))


@dead_letters.command(cls=Command,
                      example="persipubsub dead-letters show ./queue workers 17",
                      short_help="Write all that is known of one.")
@_path
@_name
@click.argument("message_id", metavar="ID", type=click.IntRange(min=1))
@click.option("--payload", is_flag=True, help="Write only the message; as raw bytes without --format.")
@click.option("--format",
              "format_name",
              type=click.Choice(list(FORMATS)),
              help="How to write the message, as in persipubsub receive; the default is a Python literal.")
def show(path: str, name: str, message_id: int, payload: bool, format_name: Optional[str]) -> None:
    """Write everything that is known about the dead letter ID of the subscriber NAME."""
    with opened_control(path) as control:
        dead_letter = next((one for one in control.dead_letters(name) if one.id == message_id), None)
    if dead_letter is None:
        raise _no_dead_letter(name, str(message_id))
    if payload:
        output.payload(FORMATS[format_name or "raw"](dead_letter.payload))
        return
    facts: Dict[str, object] = {
        "id": dead_letter.id,
        "sent": _time(dead_letter.sent_time_s),
        "died": _time(dead_letter.died_time_s),
        "deliveries": dead_letter.deliveries,
        "reason": dead_letter.reason,
        "error": _error(dead_letter) or "-",
        "bytes": f"{len(dead_letter.payload):,}",
    }
    if dead_letter.headers:
        facts["headers"] = json.dumps(dict(dead_letter.headers))
    output.lines(f"{what:<10}  {value}" for what, value in facts.items())
    output.lines(f"traceback   {line.strip()}" for line in dead_letter.error_traceback.splitlines())
    if format_name is None:
        output.line(f"payload     {dead_letter.payload!r}")
    else:
        written = FORMATS[format_name](dead_letter.payload)
        output.payload(b"payload     " + (written + b"\n" if format_name == "raw" else written))


@dead_letters.command(cls=Command,
                      example="persipubsub dead-letters requeue ./queue workers 17 18",
                      short_help="Deliver them again.")
@_path
@_name
@_ids
@click.option("--all", "all_", is_flag=True, help="All of them.")
def requeue(path: str, name: str, ids: Tuple[int, ...], all_: bool) -> None:
    """Deliver the dead letters ID to the subscriber NAME again, as if for the first time."""
    _require_choice(ids, all_)
    with opened_control(path) as control:
        _settle(name, ids, all_, control.requeue_dead_letters, "requeued")


@dead_letters.command(cls=Command,
                      example="persipubsub dead-letters discard ./queue workers --all",
                      short_help="Delete them.")
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
    """Requeue or delete dead letters; report ids that are not dead letters, as rm reports missing files."""
    # One by one, to know which of them existed.
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


def _as_json(dead_letter: DeadLetter) -> Dict[str, Any]:
    return {**vars(dead_letter), "payload": dead_letter.payload.hex()}


def _as_line(dead_letter: DeadLetter) -> str:
    return (f"{dead_letter.id}  {_time(dead_letter.died_time_s)}  {dead_letter.deliveries} deliveries  "
            f"{dead_letter.reason}  "
            f"{_short(_error(dead_letter)) or '-'}  {_short(repr(dead_letter.payload[:SHOWN_CHARACTERS_MAX]))}")


def _error(dead_letter: DeadLetter) -> str:
    return ": ".join(filter(None, (dead_letter.error_type, dead_letter.error_text)))


def _short(text: str) -> str:
    text = output.shown(text)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"


def _time(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc).isoformat(" ", "seconds")
