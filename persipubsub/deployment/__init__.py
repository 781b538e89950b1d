"""Set up queues from a config file in JSON, and describe existing queues in the same form.

A config lists any number of queues. Only the path of each is required; relative paths are relative to the file:

.. code-block:: json

    {"queues": [{"path": "queues/orders", "subscribers": ["billing", {"identifier": "audit"}], "mode": "0660"}]}

The whole file is checked, and all its queues are read, before anything is changed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import stat
from typing import Any, Dict, List, Optional, Sequence, Tuple

from persipubsub import environment, errors
from persipubsub.deployment.config import (DURABILITIES, MARK, NUMBERS, STRATEGIES, Location, Path, Queue, Settings,
                                           Value, mark_of, read, schema, settings_of)
from persipubsub.engine import checks, limits, policies
from persipubsub.engine.settings import require_bindable, require_retention_within_timeout
from persipubsub.engine.values import DEFAULTS

__all__ = ["Change", "deploy", "describe", "plan", "schema"]


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that a deployment changes."""

    #: The directory of the queue; or its URL, without secrets.
    path: Location
    #: ``queue``, ``subscriber``, or a setting by its name in the config, such as ``high_watermark.max_messages``.
    what: str
    #: The value before; None if a queue, a subscriber or a message type is added.
    before: Optional[Value]
    #: The value after; None if a subscriber is removed.
    after: Optional[Value]
    #: The subscriber whose setting it is; None for any other setting.
    subscriber: Optional[str] = None

    def __str__(self) -> str:
        # As Python literals if they could break the line: a name may contain a line break.
        path = str(self.path) if str(self.path).isprintable() else repr(str(self.path))
        if self.before is None and self.subscriber is None:
            return f"{path}: {self.what} {self.after!r} added"
        if self.after is None:
            return f"{path}: {self.what} {self.before!r} removed"
        return f"{path}: {self.what} {self.before!r} -> {self.after!r}"


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a deployment does to one queue."""

    stored: Queue
    wanted: Queue
    changes: Sequence[Change]

    def apply(self) -> None:
        """Change settings and add plain subscribers in one transaction, then change other subscribers, then remove."""
        if not self.changes:
            return
        path = self.stored.path
        added = [
            str(change.after) for change in self.changes if change.what == "subscriber" and change.after is not None
        ]
        removed = [change.before for change in self.changes if change.what == "subscriber" and change.after is None]
        changed = {change.what: change.after for change in self.changes if change.after is not None}
        mark = mark_of(changed)
        numbers: Dict[str, Any] = {name: changed[name] for name in NUMBERS if name in changed}
        with environment.new_environment(path) as env:
            one_by_one = {name for name in added if name in self.wanted.starts or name in self.wanted.policies}
            one_by_one.update(change.subscriber for change in self.changes if change.subscriber is not None)
            control = env.new_control(subscriber_ids=[name for name in added if name not in one_by_one],
                                      high_watermark=mark if mark.given else None,
                                      strategy=STRATEGIES.get(str(changed.get("strategy"))),
                                      durability=DURABILITIES.get(str(changed.get("durability"))),
                                      message_type=str(changed["message_type"]) if "message_type" in changed else None,
                                      mode=int(str(changed["mode"]), 8) if "mode" in changed else None,
                                      **numbers)
            for name in filter(one_by_one.__contains__, self.wanted.subscribers or ()):
                policy: Dict[str, Any] = dict(self.wanted.policies.get(name, {}))
                control.add_subscriber(name, self.wanted.starts.get(name, "latest"), **policy)
            for identifier in removed:
                # Another process may have removed it meanwhile.
                with contextlib.suppress(errors.UnknownSubscriberError):
                    control.remove_subscriber(str(identifier))


def deploy(config_path: Path, remove_subscribers: bool = False, text: Optional[bytes] = None) -> Tuple[Change, ...]:
    """Bring the queues to the state of a config: create what is missing, and change what differs.

    The settings of a queue and its new subscribers, except those with a ``start``, change in one transaction. If the
    machine fails between two transactions, the next run does the rest.

    :param config_path: the config, in JSON
    :param remove_subscribers: whether to remove subscribers that are not in a queue's list, with the messages that only
        they awaited; a queue without a list keeps its subscribers
    :param text: the config itself, if it is not in a file; errors then name ``config_path``, and relative paths are
        still relative to its directory
    :return: what was changed, in the order of the config; empty if nothing differed
    :raise ConfigError: the config is wrong; the error names the file and the position. No queue was touched
    :raise PathError: the config cannot be read, or a path cannot hold a queue
    :raise FormatError: the files at a path are not a queue of this version. No queue was touched
    :raise MessageTypeError: a queue with messages is bound to another message type. No queue was touched
    """
    steps = _steps(config_path, remove_subscribers, text)
    for step in steps:
        step.apply()
    return _changes(steps)


def plan(config_path: Path, remove_subscribers: bool = False, text: Optional[bytes] = None) -> Tuple[Change, ...]:
    """Return what :func:`deploy` would change, and change nothing.

    :param config_path: the config, in JSON
    :param remove_subscribers: as for :func:`deploy`, with the same errors
    :param text: as for :func:`deploy`
    :return: what :func:`deploy` would return
    """
    return _changes(_steps(config_path, remove_subscribers, text))


def describe(path: Path) -> str:
    """Return the config of an existing queue in JSON. Deploying it changes nothing.

    :param path: the directory of the queue, or its URL, whose secrets are left out of the config
    :raise ArgumentTypeError: not a str or PathLike
    :raise ArgumentError: the path is empty or contains a NUL
    :raise NotInitializedError: there is no queue at the path
    :raise PathError: the path is a file, or its permissions forbid it
    :raise FormatError: the files there are not a queue of this version
    """
    queue = _existing(environment.new_environment(path).location)
    described: Dict[str, Any] = {
        "path":
        os.fspath(queue.path),
        "subscribers": [{
            "identifier": name,
            **queue.policies[name]
        } if name in queue.policies else name for name in queue.subscribers or ()],
        MARK[:-1]:
        mark_of(queue.settings).limits()
    }
    described.update({name: value for name, value in queue.settings.items() if not name.startswith(MARK)})
    # Not by msgspec, which cannot write a path that is not UTF-8.
    return json.dumps({"queues": [described]}, indent=2)


def _changes(steps: Sequence[_Step]) -> Tuple[Change, ...]:
    return tuple(change for step in steps for change in step.changes)


def _steps(config_path: Path, remove_subscribers: bool, text: Optional[bytes]) -> List[_Step]:
    """Read the config and its queues; mistakes are found here, before anything is changed."""
    path = pathlib.Path(checks.directory(config_path))
    return [_step(wanted, remove_subscribers) for wanted in read(path, text)]


def _step(wanted: Queue, remove_subscribers: bool) -> _Step:
    try:
        stored = _existing(wanted.path)
    except errors.NotInitializedError:
        stored = Queue(wanted.path, [], _defaults(wanted.path))
    changes: List[Change] = []

    def add(what: str, before: Optional[Value], after: Optional[Value]) -> None:
        changes.append(Change(wanted.path, what, before, after))

    if stored.status is None:
        add("queue", None, _name(wanted.path))
    if "message_type" in wanted.settings:
        bound = stored.settings.get("message_type")
        try:
            require_bindable(None if bound is None else str(bound), str(wanted.settings["message_type"]),
                             0 if stored.status is None else stored.status.messages)
        except errors.MessageTypeError as error:
            raise errors.MessageTypeError(f"{wanted.path}: {error}") from error
    for what, value in wanted.settings.items():
        if stored.settings.get(what) != value:
            add(what, stored.settings.get(what), value)
    if wanted.subscribers is not None and stored.subscribers is not None:
        for identifier in _without(wanted.subscribers, stored.subscribers):
            add("subscriber", None, identifier)
        for identifier, policy in wanted.policies.items():
            _require_applicable(stored, identifier, policy)
            before = stored.policies.get(identifier, {"shared": False})
            for what, value in policy.items():
                if before.get(what) != value:
                    name = f"subscriber {identifier!r} {what}"
                    changes.append(Change(wanted.path, name, before.get(what), value, subscriber=identifier))
        for identifier in _without(stored.subscribers, wanted.subscribers) if remove_subscribers else ():
            add("subscriber", identifier, None)
    _require_retention_within_timeout(wanted.path, {**stored.settings, **wanted.settings})
    return _Step(stored, wanted, changes)


def _defaults(path: Location) -> Settings:
    """Return the settings of a new queue."""
    if isinstance(path, str):
        return settings_of(*DEFAULTS[:-1], None, None)
    return settings_of(*DEFAULTS, limits.MODE_DEFAULT)


def _name(path: Location) -> str:
    return path.partition("?")[0].rpartition("/")[2] if isinstance(path, str) else path.name


def _require_applicable(stored: Queue, identifier: str, policy: Settings) -> None:
    """Make sure that the policy of a subscriber can be applied.

    :raise ConfigError: its parts do not fit together, or do not fit the stored subscriber
    """
    given: Dict[str, Any] = dict(policy)
    known: Dict[str, Any] = dict(stored.policies.get(identifier, {}))
    try:
        before = policies.applied(checks.delivering(**known), None)
        after = policies.applied(checks.delivering(**given), before)
        if stored.status is not None and identifier in stored.status.subscribers:
            status = stored.status.subscribers[identifier]
            policies.require_changeable(identifier, before, after, status.in_flight, status.dead_letters)
    except errors.ArgumentError as error:
        raise errors.ConfigError(f"The queue at {stored.path}: subscriber {identifier!r}: {error}") from error


def _require_retention_within_timeout(path: Location, settings: Dict[str, Any]) -> None:
    try:
        timeout_s = mark_of(settings).message_timeout
        if timeout_s is not None:
            require_retention_within_timeout(checks.microseconds(settings["retention_s"]),
                                             checks.microseconds(timeout_s))
    except errors.ArgumentError as error:
        raise errors.ConfigError(f"The queue at {path}: {error}") from error


def _without(names: Sequence[str], others: Sequence[str]) -> List[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _existing(path: Location) -> Queue:
    """Read a queue without changing it.

    :raise NotInitializedError: there is no queue
    """
    with environment.new_environment(path) as env:
        status = env.new_control(create=False).status()
    settings = settings_of(status.high_watermark, status.strategy, status.durability, status.retention_s,
                           status.deduplication_window_s, status.deduplication_max,
                           None if isinstance(path, str) else stat.S_IMODE((path / "data.mdb").stat().st_mode))
    if status.message_type is not None:
        settings["message_type"] = status.message_type
    known = {name: one.policy for name, one in status.subscribers.items()}
    return Queue(path,
                 sorted(known),
                 settings,
                 status,
                 policies={
                     name: policy.settings()
                     for name, policy in known.items() if policy is not None
                 })
