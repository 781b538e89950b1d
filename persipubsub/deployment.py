"""Setting up queues from a config file in JSON, and telling what there is in the same form.

A config names any number of queues. Of each only the path is required, and relative paths are relative to the file:

.. code-block:: json

    {"queues": [{"path": "queues/orders", "subscribers": ["billing", {"identifier": "audit"}], "mode": "0660"}]}

Everything in the file is checked, and all its queues are looked at, before anything is changed.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
from typing import Annotated, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

import msgspec
from msgspec import UNSET, Meta, UnsetType

from persipubsub import arguments, environment, errors, files
from persipubsub.configuration import (DEDUPLICATION_MAX_MAX, DEDUPLICATION_WINDOW_S_MAX, DEDUPLICATION_WINDOW_S_MIN,
                                       DEFAULTS, RETENTION_S_MAX, Configuration, Durability, HighWaterMark, Strategy,
                                       as_stored, fresh, stored_seconds)
from persipubsub.queue import require_bindable

__all__ = ["Change", "deploy", "describe", "plan", "schema"]

Path = Union[str, "os.PathLike[str]"]
Value = Union[str, int, float]
#: Where a new subscriber begins.
Start = Union[str, datetime.datetime]
#: What is set on a queue, by its name in the config.
Settings = Dict[str, Value]
T = TypeVar("T")

_STRATEGIES = {strategy.name: strategy for strategy in Strategy}
_DURABILITIES = {durability.name.lower(): durability for durability in Durability}
#: Octal digits, of which the first lets the owner read and write.
_MODE = "^0?[67][0-7]{2}$"
_MARK = "high_watermark."
#: The settings that are numbers, and how each is checked.
_NUMBERS: Dict[str, Callable[[object], Union[int, float]]] = {
    "retention_s": arguments.retention,
    "deduplication_window_s": arguments.deduplication_window,
    "deduplication_max": arguments.deduplication_max
}


class MarkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the queue overflows."""

    # The schema tells the limits, HighWaterMark enforces them.
    message_timeout: Union[Annotated[float,
                                     Meta(description="Seconds after which a message that was not taken goes.",
                                          extra_json_schema={
                                              "minimum": HighWaterMark.MESSAGE_TIMEOUT_S_MIN,
                                              "maximum": HighWaterMark.MESSAGE_TIMEOUT_S_MAX
                                          })], UnsetType] = UNSET
    max_messages: Union[Annotated[int,
                                  Meta(description="Number of messages at which the queue overflows.",
                                       extra_json_schema={
                                           "minimum": 1,
                                           "maximum": HighWaterMark.MAX_MESSAGES_MAX
                                       })], UnsetType] = UNSET
    hwm_db_size: Union[Annotated[int,
                                 Meta(description="Bytes at which the queue overflows.",
                                      extra_json_schema={
                                          "minimum": 1,
                                          "maximum": HighWaterMark.HWM_DB_SIZE_BYTES_MAX
                                      })], UnsetType] = UNSET


_Identifier = Annotated[str,
                        Meta(description="1 to 255 bytes of UTF-8 without NUL.",
                             extra_json_schema={
                                 "minLength": 1,
                                 "maxLength": arguments.IDENTIFIER_BYTES_MAX
                             })]


class SubscriberConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subscriber of the queue."""

    identifier: _Identifier
    start: Union[Annotated[
        str,
        Meta(
            description="Where it begins if it is new: \"latest\", \"earliest\" for all that is stored, or a time with "
            "a timezone, as 2026-01-31T12:00:00Z.")], UnsetType] = UNSET


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue. What is left out keeps its stored value, and is the default in a new queue."""

    path: Annotated[str,
                    Meta(description="The directory of the queue, relative to the config file.",
                         extra_json_schema={"minLength": 1})]
    subscribers: Union[Annotated[List[Union[_Identifier, SubscriberConfig]],
                                 Meta(description="Who reads from the queue.")], UnsetType] = UNSET
    high_watermark: Union[MarkConfig, UnsetType] = UNSET
    strategy: Union[Annotated[
        str,
        Meta(description="Which messages go when the queue overflows.", extra_json_schema={"enum": list(_STRATEGIES)})],
                    UnsetType] = UNSET
    durability: Union[Annotated[
        str, Meta(description="What a sent message survives.", extra_json_schema={"enum": list(_DURABILITIES)})],
                      UnsetType] = UNSET
    message_type: Union[Annotated[
        str,
        Meta(description="The full name of the protobuf type of all messages, such as shop.Order.",
             extra_json_schema={
                 "pattern": f"^{arguments.MESSAGE_TYPE}$",
                 "maxLength": arguments.MESSAGE_TYPE_BYTES_MAX
             })], UnsetType] = UNSET
    retention_s: Union[Annotated[
        float,
        Meta(description="Seconds for which messages are kept that all subscribers have taken.",
             extra_json_schema={
                 "minimum": 0,
                 "maximum": RETENTION_S_MAX
             })], UnsetType] = UNSET
    deduplication_window_s: Union[Annotated[float,
                                            Meta(description="Seconds for which a deduplication id is remembered.",
                                                 extra_json_schema={
                                                     "minimum": DEDUPLICATION_WINDOW_S_MIN,
                                                     "maximum": DEDUPLICATION_WINDOW_S_MAX
                                                 })], UnsetType] = UNSET
    deduplication_max: Union[Annotated[int,
                                       Meta(description="How many deduplication ids are remembered at most.",
                                            extra_json_schema={
                                                "minimum": 1,
                                                "maximum": DEDUPLICATION_MAX_MAX
                                            })], UnsetType] = UNSET
    mode: Union[Annotated[
        str,
        Meta(description="Permissions of the files, in octal digits; who may read or write them may enter the "
             "directory.",
             extra_json_schema={"pattern": _MODE})], UnsetType] = UNSET


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queues of persipubsub, as `persipubsub deploy` sets them up."""

    queues: List[QueueConfig]
    schema: Union[Annotated[str, Meta(description="The schema that an editor uses.")],
                  UnsetType] = msgspec.field(name="$schema", default=UNSET)


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that a deployment changes."""

    #: The directory of the queue.
    path: pathlib.Path
    #: ``queue``, ``subscriber``, or the setting as the config names it: ``high_watermark.max_messages``.
    what: str
    #: The value until now; None where a queue, a subscriber or a message type is added.
    before: Optional[Value]
    #: The value from now on; None where a subscriber is removed.
    after: Optional[Value]

    def __str__(self) -> str:
        # As Python writes them where they could break the line: a name may have a line break.
        path = str(self.path) if str(self.path).isprintable() else repr(str(self.path))
        if self.before is None:
            return f"{path}: {self.what} {self.after!r} added"
        if self.after is None:
            return f"{path}: {self.what} {self.before!r} removed"
        return f"{path}: {self.what} {self.before!r} -> {self.after!r}"


@dataclasses.dataclass(frozen=True)
class _Queue:
    """A queue as a config wants it, or as it is."""

    path: pathlib.Path
    #: None: they stay as they are.
    subscribers: Optional[Sequence[str]]
    settings: Settings
    exists: bool = True
    messages: int = 0
    #: Where new subscribers begin that do not begin at the end.
    starts: Mapping[str, Start] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Step:
    """What is to be done to one queue."""

    stored: _Queue
    changes: Sequence[Change]
    starts: Mapping[str, Start]

    def apply(self) -> None:
        """Do it: the settings and new subscribers in one transaction, then the removals."""
        if not self.changes:
            return
        path = self.stored.path
        added = [
            str(change.after) for change in self.changes if change.what == "subscriber" and change.after is not None
        ]
        removed = [change.before for change in self.changes if change.what == "subscriber" and change.after is None]
        changed = {change.what: change.after for change in self.changes if change.after is not None}
        mark = _mark({**self.stored.settings, **changed}) if any(what.startswith(_MARK) for what in changed) else None
        numbers: Dict[str, Any] = {name: changed[name] for name in _NUMBERS if name in changed}
        with environment.new_environment(path) as env:
            control = env.new_control(subscriber_ids=[name for name in added if name not in self.starts],
                                      high_watermark=mark,
                                      strategy=_STRATEGIES.get(str(changed.get("strategy"))),
                                      durability=_DURABILITIES.get(str(changed.get("durability"))),
                                      message_type=str(changed["message_type"]) if "message_type" in changed else None,
                                      mode=int(str(changed["mode"]), 8) if "mode" in changed else None,
                                      **numbers)
            for name in added:
                if name in self.starts:
                    control.add_subscriber(name, start=self.starts[name])
            for identifier in removed:
                # Whoever removed it meanwhile did what we are here for.
                with contextlib.suppress(errors.UnknownSubscriberError):
                    control.remove_subscriber(str(identifier))


def deploy(config_path: Path, remove_subscribers: bool = False) -> Tuple[Change, ...]:
    """Make the queues of a config what it says: make what is missing, change what differs, leave what is right.

    The settings of a queue and its new subscribers, but for those with a ``start``, change in one transaction. Where
    the machine fails between two, the next run does the rest.

    :param config_path: the config, in JSON
    :param remove_subscribers: whether subscribers go that are not in a queue's list, with what only they awaited; a
        queue without a list keeps its subscribers
    :return: what was changed, in the order of the config; empty if all was right
    :raise ConfigError: the config is wrong; it names the file and the place. No queue was touched
    :raise PathError: the config cannot be read, or a path cannot be a queue's
    :raise FormatError: the files at a path are not a queue of this version. No queue was touched
    :raise MessageTypeError: a queue with messages is bound to another message type. No queue was touched
    """
    steps = _steps(config_path, remove_subscribers)
    for step in steps:
        step.apply()
    return _changes(steps)


def plan(config_path: Path, remove_subscribers: bool = False) -> Tuple[Change, ...]:
    """Tell what :func:`deploy` would change, and change nothing.

    :param config_path: the config, in JSON
    :param remove_subscribers: as for :func:`deploy`, with the same errors
    :return: what :func:`deploy` would return
    """
    return _changes(_steps(config_path, remove_subscribers))


def describe(path: Path) -> str:
    """Give the config of a queue as it is, in JSON: to deploy it changes nothing.

    :param path: the directory of the queue
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: empty, or with a NUL
    :raise NotInitializedError: nobody has set up a queue at the path
    :raise PathError: the path is a file, or its permissions forbid it
    :raise FormatError: the files there are not a queue of this version
    """
    queue = _existing(pathlib.Path(os.path.abspath(arguments.directory(path))))
    described: Dict[str, Any] = {
        "path": os.fspath(queue.path),
        "subscribers": queue.subscribers,
        _MARK[:-1]: _mark_settings(queue.settings)
    }
    described.update({name: value for name, value in queue.settings.items() if not name.startswith(_MARK)})
    # Not by msgspec, which cannot write the path of a directory whose name is not UTF-8.
    return json.dumps({"queues": [described]}, indent=2)


def schema() -> str:
    """Give the JSON Schema of a config, for editors and for other programs that check one."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Config)}
    return json.dumps(whole, indent=2)


def _changes(steps: Sequence[_Step]) -> Tuple[Change, ...]:
    return tuple(change for step in steps for change in step.changes)


def _steps(config_path: Path, remove_subscribers: bool) -> List[_Step]:
    """Read the config and look at its queues; what is wrong is found here, before anything is changed."""
    return [_step(wanted, remove_subscribers) for wanted in _read(pathlib.Path(arguments.directory(config_path)))]


def _step(wanted: _Queue, remove_subscribers: bool) -> _Step:
    try:
        stored = _existing(wanted.path)
    except errors.NotInitializedError:
        stored = _Queue(wanted.path, [], _settings(*DEFAULTS, files.MODE_DEFAULT), exists=False)
    changes: List[Change] = []

    def add(what: str, before: Optional[Value], after: Optional[Value]) -> None:
        changes.append(Change(wanted.path, what, before, after))

    if not stored.exists:
        add("queue", None, wanted.path.name)
    if "message_type" in wanted.settings:
        bound = stored.settings.get("message_type")
        try:
            require_bindable(None if bound is None else str(bound), str(wanted.settings["message_type"]),
                             stored.messages)
        except errors.MessageTypeError as error:
            raise errors.MessageTypeError(f"{wanted.path}: {error}") from error
    for what, value in wanted.settings.items():
        if stored.settings.get(what) != value:
            add(what, stored.settings.get(what), value)
    if wanted.subscribers is not None and stored.subscribers is not None:
        for identifier in _without(wanted.subscribers, stored.subscribers):
            add("subscriber", None, identifier)
        for identifier in _without(stored.subscribers, wanted.subscribers) if remove_subscribers else ():
            add("subscriber", identifier, None)
    _require_retention_within_timeout(wanted.path, {**stored.settings, **wanted.settings})
    return _Step(stored, changes, wanted.starts)


def _require_retention_within_timeout(path: pathlib.Path, settings: Dict[str, Any]) -> None:
    try:
        fresh(Configuration(_mark(settings), retention_s=settings["retention_s"]))
    except errors.ArgumentError as error:
        raise errors.ConfigError(f"The queue at {path}: {error}") from error


def _without(names: Sequence[str], others: Sequence[str]) -> List[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _existing(path: pathlib.Path) -> _Queue:
    """Look at a queue, of which nothing is changed.

    :raise NotInitializedError: there is none
    """
    files.queue_key(path)  # new_control would set it up
    with environment.new_environment(path) as env:
        status = env.new_control().status()
    settings = _settings(status.high_watermark, status.strategy, status.durability, status.retention_s,
                         status.deduplication_window_s, status.deduplication_max, files.data_file_mode(path))
    if status.message_type is not None:
        settings["message_type"] = status.message_type
    return _Queue(path, sorted(status.subscribers), settings, messages=status.messages)


# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one for each setting
def _settings(mark: HighWaterMark, strategy: Strategy, durability: Durability, retention_s: float,
              deduplication_window_s: float, deduplication_max: int, mode: int) -> Settings:
    return {
        f"{_MARK}message_timeout": mark.message_timeout,
        f"{_MARK}max_messages": mark.max_messages,
        f"{_MARK}hwm_db_size": mark.hwm_db_size,
        "strategy": strategy.name,
        "durability": durability.name.lower(),
        "retention_s": retention_s,
        "deduplication_window_s": deduplication_window_s,
        "deduplication_max": deduplication_max,
        "mode": f"{mode:04o}"
    }


def _mark_settings(settings: Dict[str, Any]) -> Dict[str, Any]:
    return {name[len(_MARK):]: value for name, value in settings.items() if name.startswith(_MARK)}


def _mark(settings: Dict[str, Any]) -> HighWaterMark:
    given: Dict[str, Any] = _mark_settings(settings)
    return HighWaterMark(**given)


# The config


def _read(config_path: pathlib.Path) -> List[_Queue]:
    """Read a config and check all of it."""
    try:
        text = config_path.read_bytes()
    except OSError as error:
        raise files.path_error(error, config_path) from error
    try:
        config = msgspec.convert(json.loads(text.decode(), object_pairs_hook=_object), Config)
        directory = os.path.dirname(os.path.abspath(config_path))
        queues = [_checked(queue, f"$.queues[{index}]", directory) for index, queue in enumerate(config.queues)]
        _require_distinct([os.path.realpath(queue.path) for queue in queues], "queue", "$.queues[{}].path")
    except msgspec.ValidationError as error:
        raise errors.ConfigError(f"{config_path}: {error}. See persipubsub schema.") from error
    except json.JSONDecodeError as error:
        raise errors.ConfigError(f"{config_path}: Not JSON: {error}.") from error
    except UnicodeDecodeError as error:
        raise errors.ConfigError(f"{config_path}: Not UTF-8: {error}.") from error
    except RecursionError as error:
        raise errors.ConfigError(f"{config_path}: Nested too deeply.") from error
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{config_path}: {error}") from error
    return queues


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Make an object; of two values of one name Python would drop the first without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise errors.ConfigError(f"Object has the field `{twice}` twice, with {len(pairs)} fields. Keep one.")
    return made


def _checked(queue: QueueConfig, place: str, directory: str) -> _Queue:
    """Check the limits of what has the right types."""
    path = pathlib.Path(os.path.normpath(os.path.join(directory, _at(f"{place}.path", arguments.directory,
                                                                     queue.path))))
    settings: Settings = {}
    if not isinstance(queue.high_watermark, UnsetType):
        for name, value in msgspec.structs.asdict(queue.high_watermark).items():
            if value is not UNSET:
                what = f"{_MARK}{name}"
                mark = _at(f"{place}.{what}", _mark, {what: value})
                # As the queue will tell it: a timeout is stored in whole microseconds.
                settings[what] = getattr(as_stored(mark), name)
    for name, given, choices in (("strategy", queue.strategy, _STRATEGIES), ("durability", queue.durability,
                                                                             _DURABILITIES)):
        if not isinstance(given, UnsetType):
            if given not in choices:
                raise _wrong(f"{place}.{name}", f"{name} must be one of {', '.join(choices)}, got {given!r}.")
            settings[name] = given
    if not isinstance(queue.message_type, UnsetType):
        settings["message_type"] = _at(f"{place}.message_type", arguments.message_type, queue.message_type)
    settings.update(_checked_numbers(queue, place))
    if not isinstance(queue.mode, UnsetType):
        if not re.fullmatch(_MODE, queue.mode):
            raise _wrong(
                f"{place}.mode", "mode must be octal digits from \"0600\" to \"0777\" with reading and writing "
                f"for the owner, got {queue.mode!r}.")
        settings["mode"] = f"{int(queue.mode, 8):04o}"
    identifiers, starts = _checked_subscribers(queue, f"{place}.subscribers")
    return _Queue(path, identifiers, settings, starts=starts)


def _checked_numbers(queue: QueueConfig, place: str) -> Settings:
    settings: Settings = {}
    for name, check in _NUMBERS.items():
        given = getattr(queue, name)
        if given is not UNSET:
            number = _at(f"{place}.{name}", check, given)
            # As the queue will tell it: times are stored in whole microseconds.
            settings[name] = stored_seconds(round(number * 1e6)) if name.endswith("_s") else number
    return settings


def _checked_subscribers(queue: QueueConfig, place: str) -> Tuple[Optional[List[str]], Dict[str, Start]]:
    if isinstance(queue.subscribers, UnsetType):
        return None, {}
    subscribers = [SubscriberConfig(one) if isinstance(one, str) else one for one in queue.subscribers]
    starts: Dict[str, Start] = {}
    for index, one in enumerate(subscribers):
        _at(f"{place}[{index}]", arguments.identifier, one.identifier)
        if not isinstance(one.start, UnsetType):
            starts[one.identifier] = _at(f"{place}[{index}].start", _start, one.start)
    identifiers = [one.identifier for one in subscribers]
    _require_distinct(identifiers, "subscriber", place + "[{}]")
    return identifiers, starts


def _start(text: str) -> Start:
    start: Start = text
    with contextlib.suppress(ValueError):
        start = datetime.datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
    arguments.position("start", start, "latest", ids=False)
    return start


def _require_distinct(values: Sequence[str], noun: str, place: str) -> None:
    first: Dict[str, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            raise _wrong(place.format(index), f"The same {noun} as {place.format(first[value])}: {value!r}. Keep one.")


def _at(place: str, check: Callable[[Any], T], value: object) -> T:
    """Check a value and have what is wrong with it name its place."""
    try:
        return check(value)
    except (errors.ArgumentError, errors.ArgumentTypeError) as error:
        raise _wrong(place, str(error)) from error


def _wrong(place: str, message: str) -> errors.ConfigError:
    return errors.ConfigError(f"{message[:-1]} - at `{place}`.")
