"""The config of a deployment: its form, and the checked settings of each queue.

The classes define the JSON, with descriptions for :func:`schema`. Their limits are those of the API, whose functions
check the values.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
from typing import Annotated, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

import msgspec
from msgspec import UNSET, Meta, UnsetType

from persipubsub import environment, errors, os_errors
from persipubsub.engine import checks, limits, values
from persipubsub.engine.limits import (DEDUPLICATION_MAX_MAX, DEDUPLICATION_WINDOW_S_MAX, DEDUPLICATION_WINDOW_S_MIN,
                                       RETENTION_S_MAX)
from persipubsub.engine.settings import as_stored, stored_seconds
from persipubsub.queue import Durability, HighWaterMark, Strategy
from persipubsub.status import QueueStatus

Path = Union[str, "os.PathLike[str]"]
#: The absolute path of a queue, or its URL without secrets.
Location = Union[pathlib.Path, str]
Value = Union[str, int, float]
#: Where a new subscriber begins.
Start = Union[str, datetime.datetime]
#: The settings of a queue, by their names in the config.
Settings = Dict[str, Value]
T = TypeVar("T")

STRATEGIES = {strategy.name: strategy for strategy in Strategy}
DURABILITIES = {durability.name.lower(): durability for durability in Durability}
#: Octal digits; the first lets the owner read and write.
_MODE = "^0?[67][0-7]{2}$"
MARK = "high_watermark."
#: The value of a limit in Settings where there is none.
NO_LIMIT = "none"
#: The maximum number of digits of a whole number in a config. The largest limit of a setting has 19.
DIGITS_MAX = 100
#: The settings that a queue on a cluster cannot have, and with which values; with any if there are none.
IMPOSSIBLE_ON_CLUSTER: Dict[str, Sequence[str]] = {
    "mode": (),
    "deduplication_max": (),
    "durability": (Durability.PROCESS_CRASH.name.lower(), ),
    "strategy": (Strategy.prune_last.name, )
}
#: How messages are delivered to a subscriber.
POLICY = ("shared", "lease_s", "max_deliveries", "retry_delay_s", "retry_delay_max_s", "dead_letters_max")
#: The settings that are numbers, and how each is checked.
NUMBERS: Dict[str, Callable[[object], Union[int, float]]] = {
    "retention_s": checks.retention,
    "deduplication_window_s": checks.deduplication_window,
    "deduplication_max": checks.deduplication_max
}


def _between(least: float, most: float, description: str) -> Meta:
    """Describe a number. The schema states its limits; the functions that check all arguments enforce them."""
    return Meta(description=description, extra_json_schema={"minimum": least, "maximum": most})


class MarkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of the queue. Those that are left out keep their stored values."""

    message_timeout: Union[Annotated[
        float,
        _between(HighWaterMark.MESSAGE_TIMEOUT_S_MIN, HighWaterMark.
                 MESSAGE_TIMEOUT_S_MAX, "Seconds after which an unacknowledged message expires; null for no limit.")],
                           None, UnsetType] = UNSET
    max_messages: Union[Annotated[
        int,
        _between(1, HighWaterMark.MAX_MESSAGES_MAX, "Number of messages at which the queue is full; null for no limit."
                 )], None, UnsetType] = UNSET
    hwm_db_size: Union[Annotated[
        int,
        _between(1, HighWaterMark.HWM_DB_SIZE_BYTES_MAX, "Bytes at which the queue is full; null for no limit.")], None,
                       UnsetType] = UNSET


_Identifier = Annotated[str,
                        Meta(description="1 to 255 bytes of UTF-8 without NUL.",
                             extra_json_schema={
                                 "minLength": 1,
                                 "maxLength": checks.IDENTIFIER_BYTES_MAX
                             })]


class SubscriberConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subscriber of the queue."""

    identifier: _Identifier
    start: Union[Annotated[
        str,
        Meta(description="Where it begins if it is new: \"latest\", \"earliest\" for all stored messages, or a time "
             "with a timezone, such as 2026-01-31T12:00:00Z.")], UnsetType] = UNSET
    shared: Union[Annotated[
        bool, Meta(description="Whether workers share its messages, so that one worker receives each message.")],
                  UnsetType] = UNSET
    lease_s: Union[Annotated[
        float,
        _between(limits.LEASE_S_MIN, limits.
                 SECONDS_MAX, "Seconds after which a shared message is delivered to another worker.")],
                   UnsetType] = UNSET
    max_deliveries: Union[Annotated[
        int,
        _between(1, limits.MAX_DELIVERIES_MAX, "How many times a message is delivered before it becomes a dead letter."
                 )], UnsetType] = UNSET
    retry_delay_s: Union[Annotated[
        float,
        _between(0, limits.SECONDS_MAX, "Seconds until a shared message that was given back is delivered again.")],
                         UnsetType] = UNSET
    retry_delay_max_s: Union[Annotated[
        float, _between(0, limits.SECONDS_MAX, "The longest such delay; it doubles each time.")], UnsetType] = UNSET
    dead_letters_max: Union[Annotated[int,
                                      _between(1, limits.DEAD_LETTERS_MAX_MAX, "How many dead letters it keeps.")],
                            UnsetType] = UNSET


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue. Settings that are left out keep their stored values, or have the defaults in a new queue."""

    path: Annotated[
        str,
        Meta(description="The directory of the queue, relative to the config file; or its URL on a cluster.",
             extra_json_schema={"minLength": 1})]
    subscribers: Union[Annotated[List[Union[_Identifier, SubscriberConfig]],
                                 Meta(description="The subscribers of the queue.")], UnsetType] = UNSET
    high_watermark: Union[MarkConfig, UnsetType] = UNSET
    strategy: Union[Annotated[str,
                              Meta(description="What happens when a message is sent and a limit is reached.",
                                   extra_json_schema={"enum": list(STRATEGIES)})], UnsetType] = UNSET
    durability: Union[Annotated[
        str, Meta(description="What a sent message survives.", extra_json_schema={"enum": list(DURABILITIES)})],
                      UnsetType] = UNSET
    message_type: Union[Annotated[
        str,
        Meta(description="The name of the type of all messages: shop.Order of protobuf, or json:Order.",
             extra_json_schema={
                 "pattern": f"^{checks.MESSAGE_TYPE}$",
                 "maxLength": limits.MESSAGE_TYPE_BYTES_MAX
             })], UnsetType] = UNSET
    retention_s: Union[Annotated[
        float,
        _between(0, RETENTION_S_MAX, "Seconds for which messages are kept that all subscribers have acknowledged.")],
                       UnsetType] = UNSET
    deduplication_window_s: Union[Annotated[float,
                                            _between(DEDUPLICATION_WINDOW_S_MIN, DEDUPLICATION_WINDOW_S_MAX,
                                                     "Seconds for which a deduplication id is remembered.")],
                                  UnsetType] = UNSET
    deduplication_max: Union[Annotated[
        int, _between(1, DEDUPLICATION_MAX_MAX, "How many deduplication ids are remembered.")], UnsetType] = UNSET
    mode: Union[Annotated[
        str,
        Meta(description="Permissions of the files, in octal digits; whoever may read or write them may enter the "
             "directory.",
             extra_json_schema={"pattern": _MODE})], UnsetType] = UNSET


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queues of persipubsub, as `persipubsub deploy` sets them up."""

    queues: List[QueueConfig]
    schema: Union[Annotated[str, Meta(description="The schema that an editor uses.")],
                  UnsetType] = msgspec.field(name="$schema", default=UNSET)


@dataclasses.dataclass(frozen=True)
class Queue:
    """A queue as a config describes it, or as it exists."""

    path: Location
    #: None keeps the existing ones.
    subscribers: Optional[Sequence[str]]
    settings: Settings
    #: None for a queue of a config, or if there is no queue.
    status: Optional[QueueStatus] = None
    #: Where new subscribers begin, if not at the end.
    starts: Mapping[str, Start] = dataclasses.field(default_factory=dict)
    #: How messages are delivered to subscribers, as far as it is set.
    policies: Mapping[str, Settings] = dataclasses.field(default_factory=dict)


# pylint: disable-next=too-many-arguments,too-many-positional-arguments  # one for each setting
def settings_of(mark: HighWaterMark, strategy: Strategy, durability: Durability, retention_s: float,
                deduplication_window_s: float, deduplication_max: Optional[int], mode: Optional[int]) -> Settings:
    """Return the settings of a queue by their names in a config.

    :param deduplication_max: None for a queue on a cluster, as for the mode
    """
    return {
        **{
            f"{MARK}{name}": _limit(value)
            for name, value in mark.limits().items()
        }, "strategy": strategy.name,
        "durability": durability.name.lower(),
        "retention_s": retention_s,
        "deduplication_window_s": deduplication_window_s,
        **({} if deduplication_max is None else {
               "deduplication_max": deduplication_max
           }),
        **({} if mode is None else {
               "mode": f"{mode:04o}"
           })
    }


def _limit(value: Optional[float]) -> Value:
    return NO_LIMIT if value is None else value


def mark_of(settings: Mapping[str, Any]) -> HighWaterMark:
    """Return the limits among settings."""
    given = {name[len(MARK):]: value for name, value in settings.items() if name.startswith(MARK)}
    return HighWaterMark(**{name: None if value == NO_LIMIT else value for name, value in given.items()})


def _one_limit(limit: Tuple[str, Any]) -> HighWaterMark:
    return HighWaterMark(**dict([limit]))


def schema() -> str:
    """Return the JSON Schema of a config, for editors and for other programs that check one."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Config)}
    return json.dumps(whole, indent=2)


def read(config_path: pathlib.Path, text: Optional[bytes] = None) -> List[Queue]:
    """Read and check a config, and return its queues.

    :param text: the config itself, if it is not in the file
    :raise ConfigError: the config is wrong; the error names the file and the position
    :raise PathError: the config cannot be read
    """
    if text is None:
        try:
            text = config_path.read_bytes()
        except OSError as error:
            raise os_errors.path_error(error, config_path) from error
    try:
        config = msgspec.convert(_parsed(text), Config)
        directory = os.path.dirname(os.path.abspath(config_path))
        queues = [_checked(queue, f"$.queues[{index}]", directory) for index, queue in enumerate(config.queues)]
        _require_distinct(
            [queue.path if isinstance(queue.path, str) else os.path.realpath(queue.path) for queue in queues], "queue",
            "$.queues[{}].path")
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


def _parsed(text: bytes) -> Any:  # Any: whatever the JSON holds
    """Read JSON. Some editors begin a file with a byte order mark, which is not part of it."""
    return json.loads(text.decode("utf-8-sig"),
                      object_pairs_hook=_object,
                      parse_int=_whole_number,
                      parse_constant=_no_number)


def _whole_number(digits: str) -> int:
    """Read a number. Python itself refuses thousands of digits, and no setting needs hundreds."""
    if len(digits) > DIGITS_MAX:
        raise errors.ConfigError(f"A number has {len(digits)} digits, but at most {DIGITS_MAX} are allowed. It begins "
                                 f"with {digits[:20]}. Keep to the limits of the settings: see persipubsub schema.")
    return int(digits)


def _no_number(name: str) -> float:
    raise errors.ConfigError(f"{name} is not a number in JSON. Leave the setting out, or use a number.")


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Make an object. Of two values with one name, Python would silently drop the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise errors.ConfigError(f"Object has the field `{duplicate}` twice, with {len(pairs)} fields. Keep one.")
    return made


def _checked(queue: QueueConfig, where: str, directory: str) -> Queue:
    """Check the limits of a queue whose types are right."""
    path = _at(f"{where}.path", functools.partial(_located, directory), queue.path)
    settings: Settings = {}
    if isinstance(path, str):
        _require_possible(queue, where)
    if not isinstance(queue.high_watermark, UnsetType):
        for name, value in msgspec.structs.asdict(queue.high_watermark).items():
            if value is not UNSET:
                what = f"{MARK}{name}"
                mark = _at(f"{where}.{what}", _one_limit, (name, value))
                # As the queue will report it: a timeout is stored in whole microseconds.
                settings[what] = _limit(as_stored(mark)[name])
    for name, given, choices in (("strategy", queue.strategy, STRATEGIES), ("durability", queue.durability,
                                                                            DURABILITIES)):
        if not isinstance(given, UnsetType):
            if given not in choices:
                raise _wrong(f"{where}.{name}", f"{name} must be one of {', '.join(choices)}, got {given!r}.")
            settings[name] = given
    if not isinstance(queue.message_type, UnsetType):
        settings["message_type"] = _at(f"{where}.message_type", checks.message_type, queue.message_type)
    settings.update(_checked_numbers(queue, where))
    if not isinstance(queue.mode, UnsetType):
        if not re.fullmatch(_MODE, queue.mode):
            raise _wrong(
                f"{where}.mode", "mode must be octal digits from \"0600\" to \"0777\" with reading and writing "
                f"for the owner, got {queue.mode!r}.")
        settings["mode"] = f"{int(queue.mode, 8):04o}"
    if isinstance(queue.subscribers, UnsetType):
        return Queue(path, None, settings)
    subscribers = [SubscriberConfig(one) if isinstance(one, str) else one for one in queue.subscribers]
    return _with_subscribers(Queue(path, [], settings), subscribers, f"{where}.subscribers")


def _located(directory: str, path: str) -> Location:
    """Return the path of a queue, relative to a directory, or its URL without its secrets."""
    located: Location = environment.new_environment(path).location
    return located if isinstance(located, str) else pathlib.Path(os.path.normpath(os.path.join(directory, path)))


def _require_possible(queue: QueueConfig, where: str) -> None:
    """Make sure that a cluster can do what a config asks for."""
    for name, values_ in IMPOSSIBLE_ON_CLUSTER.items():
        given = getattr(queue, name)
        if given is not UNSET and (not values_ or given in values_):
            raise _wrong(f"{where}.{name}", f"A queue on a cluster cannot have {name} {given!r}. Leave it out.")


def _checked_numbers(queue: QueueConfig, where: str) -> Settings:
    settings: Settings = {}
    for name, check in NUMBERS.items():
        given = getattr(queue, name)
        if given is not UNSET:
            number = _at(f"{where}.{name}", check, given)
            # As the queue will report it: times are stored in whole microseconds.
            settings[name] = stored_seconds(round(number * 1e6)) if name.endswith("_s") else number
    return settings


def _with_subscribers(queue: Queue, subscribers: Sequence[SubscriberConfig], where: str) -> Queue:
    starts: Dict[str, Start] = {}
    given: Dict[str, Settings] = {}
    for index, one in enumerate(subscribers):
        _at(f"{where}[{index}]", checks.identifier, one.identifier)
        if not isinstance(one.start, UnsetType):
            starts[one.identifier] = _at(f"{where}[{index}].start", _start, one.start)
        policy = _checked_policy(one, f"{where}[{index}]")
        if policy:
            given[one.identifier] = policy
    identifiers = [one.identifier for one in subscribers]
    _require_distinct(identifiers, "subscriber", where + "[{}]")
    return dataclasses.replace(queue, subscribers=identifiers, starts=starts, policies=given)


def _checked_policy(subscriber: SubscriberConfig, where: str) -> Settings:
    settings: Settings = {}
    for name in POLICY:
        value = getattr(subscriber, name)
        if value is not UNSET:
            _at(f"{where}.{name}", functools.partial(_delivering, name), value)
            settings[name] = stored_seconds(round(value * 1e6)) if name.endswith("_s") else value
    return settings


def _delivering(name: str, value: object) -> values.Delivering:
    return checks.delivering(**{name: value})


def _start(text: str) -> Start:
    start: Start = text
    with contextlib.suppress(ValueError):
        start = datetime.datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
    checks.position("start", start, "latest", ids=False)
    return start


def _require_distinct(values: Sequence[str], noun: str, where: str) -> None:
    first: Dict[str, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            raise _wrong(where.format(index), f"The same {noun} as {where.format(first[value])}: {value!r}. Keep one.")


def _at(where: str, check: Callable[[Any], T], value: object) -> T:
    """Check a value; an error names its position in the config."""
    try:
        return check(value)
    except (errors.ArgumentError, errors.ArgumentTypeError) as error:
        raise _wrong(where, str(error)) from error


def _wrong(where: str, message: str) -> errors.ConfigError:
    return errors.ConfigError(f"{message[:-1]} - at `{where}`.")
