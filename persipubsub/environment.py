"""The factory of everything that works on a queue: an Environment stands for the queue's directory."""

# Where J and M are both right, a publisher of either sends the message.
# mypy: disable-error-code="overload-overlap"

import contextlib
import os  # pylint: disable=unused-import  # in an annotation
import pathlib
import weakref
from typing import (TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Type, TypeVar, Union,
                    overload)

import icontract

from persipubsub import errors, lazy_imports
from persipubsub.control import Control
from persipubsub.endpoints.receiving import Receiver
from persipubsub.endpoints.registry import Registry
from persipubsub.endpoints.sending import Sender
from persipubsub.endpoints.sharing import SharedReceiver
from persipubsub.engine import checks, location
from persipubsub.engine.limits import MODE_DEFAULT
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import BytesLike, Configuration, Origin
from persipubsub.publisher import Publisher
from persipubsub.queue import Durability, HighWaterMark, Strategy
from persipubsub.subscriber import SharedSubscriber, Subscriber

if TYPE_CHECKING:
    import ssl

    from persipubsub.aio import AsyncPublisher, AsyncSubscriber
    from persipubsub.endpoints.bridge import Bridge
    from persipubsub.typed import Codec
    from persipubsub.typed.coding import Coding

Path = Union[str, "os.PathLike[str]"]
#: Certificates for a cluster: a path, paths by their names, or an SSLContext.
Tls = Union[str, Mapping[str, str], "ssl.SSLContext"]
J = TypeVar("J", Dict[str, Any], List[Any])  # a checker would not know the elements of a dict or a list
M = TypeVar("M")
N = TypeVar("N", int, float)
if TYPE_CHECKING:
    MessageType = Union[Type[M], Codec[M]]


# A contract that raises a documented error is always enabled: python -O would switch it off otherwise.
def _closed_error(self: "Environment") -> errors.ClosedError:
    return errors.ClosedError(f"{self!r} is closed. Make a new one with persipubsub.environment.new_environment.")


def _wrong_type(name: str, kind: type, value: object) -> str:
    return f"{name} must be a {kind.__name__}, got {type(value).__name__}."


def _full_name(message_type: "Union[str, MessageType[Any]]") -> str:
    if not isinstance(message_type, str):
        with lazy_imports.NoFork():
            from persipubsub import typed  # here, since few programs need it
        message_type = typed.name_of(message_type)
    return checks.message_type(message_type)


#: Closed when the interpreter ends: persipubsub/__init__.py registers _close_all with atexit.
_OPENED: "weakref.WeakSet[Environment]" = weakref.WeakSet()


def _close_all() -> None:
    with contextlib.ExitStack() as stack:  # so that all are closed even if one of them raises
        for environment in list(_OPENED):
            stack.callback(environment.close)


class Environment:  # pylint: disable=too-many-instance-attributes  # what opens a queue, and what works on it
    """A queue in a directory: it makes the objects that work on the queue, and closes them.

    Creating an Environment does not access the disk. One process may have several Environments of one queue.
    Environments, and the objects that they make, can be pickled for a spawned process, which then opens the queue
    itself.
    """

    @icontract.require(
        lambda allow_remote: isinstance(allow_remote, bool),
        error=lambda allow_remote: errors.ArgumentTypeError(_wrong_type("allow_remote", bool, allow_remote)),
        enabled=True)
    def __init__(self,
                 path: Path,
                 allow_remote: bool = False,
                 credentials: "Optional[Path]" = None,
                 tls: "Optional[Tls]" = None) -> None:
        """Make an Environment for the queue at a location, with the arguments and errors of new_environment."""
        self._allow_remote = allow_remote
        self._closed = False
        self._access = location.access(checks.directory(path), allow_remote, credentials, tls)
        self._login = (credentials, tls)
        self._engine: Optional[Engine] = None
        self._bridges: "Dict[int, Bridge]" = {}  # one, made when first needed
        self._made = Registry()

    @property
    def location(self) -> Union[pathlib.Path, str]:
        """Return the absolute path of the queue's directory; for a queue on a cluster, its URL without secrets."""
        found = self._access.location
        return found if isinstance(found, str) and location.is_url(found) else pathlib.Path(found)

    @property
    def path(self) -> pathlib.Path:
        """Return the absolute path of the queue's directory.

        :raise UnsupportedError: the queue is on a cluster; :attr:`location` is its URL then
        """
        found = self.location
        if isinstance(found, str):
            raise errors.UnsupportedError(f"The queue at {found} has no directory: it is on a cluster. Use location, "
                                          "which is the URL of a queue on a cluster.")
        return found

    @property
    def closed(self) -> bool:
        """Return whether close() was called."""
        return self._closed

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(lambda high_watermark: high_watermark is None or isinstance(high_watermark, HighWaterMark),
                       error=lambda high_watermark: errors.ArgumentTypeError(
                           _wrong_type("high_watermark", HighWaterMark, high_watermark)),
                       enabled=True)
    @icontract.require(lambda high_water_mark: high_water_mark is None or isinstance(high_water_mark, HighWaterMark),
                       error=lambda high_water_mark: errors.ArgumentTypeError(
                           _wrong_type("high_water_mark", HighWaterMark, high_water_mark)),
                       enabled=True)
    @icontract.require(lambda strategy: strategy is None or isinstance(strategy, Strategy),
                       error=lambda strategy: errors.ArgumentTypeError(_wrong_type("strategy", Strategy, strategy)),
                       enabled=True)
    @icontract.require(
        lambda durability: durability is None or isinstance(durability, Durability),
        error=lambda durability: errors.ArgumentTypeError(_wrong_type("durability", Durability, durability)),
        enabled=True)
    @icontract.require(lambda create: isinstance(create, bool),
                       error=lambda create: errors.ArgumentTypeError(_wrong_type("create", bool, create)),
                       enabled=True)
    @icontract.require(lambda mode: mode is None or isinstance(mode, int),
                       error=lambda mode: errors.ArgumentTypeError(_wrong_type("mode", int, mode)),
                       enabled=True)
    @icontract.require(lambda mode: not isinstance(mode, int) or (mode & ~0o777 == 0 and mode & 0o600 == 0o600),
                       error=lambda mode: errors.ArgumentError(
                           f"mode must be from 0o600 to 0o777 with reading and writing for the owner, got {mode:#o}."),
                       enabled=True)
    @icontract.require(lambda high_watermark, high_water_mark: high_watermark is None or high_water_mark is None,
                       error=lambda: errors.ArgumentTypeError(
                           "Got both high_watermark and high_water_mark, which are one setting. Use high_watermark."),
                       enabled=True)
    def new_control(self,
                    subscriber_ids: Optional[Iterable[str]] = None,
                    high_watermark: Optional[HighWaterMark] = None,
                    strategy: Optional[Strategy] = None,
                    durability: Optional[Durability] = None,
                    mode: Optional[int] = None,
                    high_water_mark: Optional[HighWaterMark] = None,
                    message_type: "Union[None, str, MessageType[Any]]" = None,
                    retention_s: Optional[float] = None,
                    deduplication_window_s: Optional[float] = None,
                    deduplication_max: Optional[int] = None,
                    create: bool = True) -> Control:
        """Set up the queue, or change it, and return its control.

        Arguments that are left out keep their stored values, or have the defaults in a new queue. Subscribers are
        added, never removed.

        :param subscriber_ids: subscribers to add if they are missing
        :param high_watermark: limits of the queue; a new queue has none. None removes a limit, and limits that are left
            out keep their stored values
        :param strategy: what happens when a message is sent and a limit is reached; ``prune_first`` in a new queue
        :param durability: what a sent message survives; ``POWER_LOSS`` in a new queue
        :param mode: of the files, 0o600 in a new queue; whoever may read or write the files may enter the directory
        :param high_water_mark: another spelling of high_watermark
        :param message_type: the type of all messages, as for :meth:`new_publisher`, or its full name; publishers and
            subscribers of another type are then refused when they are made, but not those of bytes
        :param retention_s: see :meth:`Control.set_retention`; 0 in a new queue
        :param deduplication_window_s: seconds for which a ``deduplication_id`` is remembered; 120 in a new queue
        :param deduplication_max: how many ids are remembered, the latest ones; 100,000 in a new queue, at most 10 ** 7
        :param create: whether to set the queue up if there is none; False to look at an existing queue, or to change it
        :raise ArgumentTypeError: an argument of the wrong type, or both spellings
        :raise ArgumentError: an argument outside its limits
        :raise NotInitializedError: there is no queue, and ``create`` is False
        :raise MessageTypeError: there are messages, and the queue is bound to another type
        :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
        :raise FormatError: the files there are not a queue of this version
        :raise InUseError: the queue must be verified after a machine crash, and another process keeps it open
        :raise ClosedError: the Environment is closed
        """
        identifiers = checks.identifiers(subscriber_ids)
        configuration = Configuration(high_watermark if high_water_mark is None else high_water_mark, strategy,
                                      durability, _checked(checks.retention, retention_s),
                                      _checked(checks.deduplication_window, deduplication_window_s),
                                      _checked(checks.deduplication_max, deduplication_max),
                                      None if message_type is None else _full_name(message_type))
        if create:
            self._access.create(configuration, MODE_DEFAULT if mode is None else mode)
        engine = self._opened()
        # A look writes nothing, not even what the first commit after a boot would write.
        if identifiers or mode is not None or configuration != Configuration():
            engine.administration.configure(configuration, identifiers, mode)
        return self._made.keep(Control(self._origin(), engine))

    @overload
    def new_publisher(self, autosync: bool = False, message_type: None = None) -> Publisher[BytesLike]:
        ...

    @overload
    def new_publisher(self, autosync: bool = False, *, message_type: Type[J]) -> Publisher[J]:
        ...

    @overload
    def new_publisher(self, autosync: bool = False, *, message_type: "MessageType[M]") -> Publisher[M]:
        ...

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(lambda autosync: autosync is None or isinstance(autosync, bool),
                       error=lambda autosync: errors.ArgumentTypeError(_wrong_type("autosync", bool, autosync)),
                       enabled=True)
    def new_publisher(self,
                      autosync: bool = False,
                      message_type: "Optional[MessageType[Any]]" = None) -> "Publisher[Any]":
        """Make a publisher.

        :param autosync: whether ``send_many`` makes each message durable by itself, not all in one commit
        :param message_type: the type of its messages; bytes without one. It is a class of protobuf messages; or a
            dataclass, a pydantic model, a class of ``msgspec.Struct``, ``dict``, ``list`` or ``str``, which are sent as
            JSON; or a :class:`persipubsub.typed.Codec`
        :raise ArgumentTypeError: an argument of the wrong type, or a message type with fields that cannot be sent
        :raise MessageTypeError: the queue is bound to another message type
        :raise NotInitializedError: there is no queue at the path
        :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
        :raise FormatError: the files there are not a queue of this version
        :raise InUseError: the queue must be verified after a machine crash, and another process keeps it open
        :raise ClosedError: the Environment is closed
        """
        codec = self._codec(message_type)
        return self._made.keep(Publisher(self._origin(), self._opened(), autosync, codec))

    @overload
    def new_subscriber(self, identifier: str, message_type: None = None) -> Subscriber[bytes]:
        ...

    @overload
    def new_subscriber(self, identifier: str, message_type: Type[J]) -> Subscriber[J]:
        ...

    @overload
    def new_subscriber(self, identifier: str, message_type: "MessageType[M]") -> Subscriber[M]:
        ...

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def new_subscriber(self, identifier: str, message_type: "Optional[MessageType[Any]]" = None) -> "Subscriber[Any]":
        """Make a subscriber that continues at the stored cursor of that name.

        :param identifier: a name that Control has added
        :param message_type: the type of the messages, as for :meth:`new_publisher`; bytes without one
        :raise ArgumentTypeError: an argument of the wrong type, or a message type with fields that cannot be sent
        :raise ArgumentError: the identifier is outside its limits
        :raise MessageTypeError: the queue is bound to another message type
        :raise UnknownSubscriberError: the queue has no such subscriber; the error lists the subscribers that it has
        :raise NotInitializedError: there is no queue at the path
        :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
        :raise FormatError: the files there are not a queue of this version
        :raise InUseError: the queue must be verified after a machine crash, and another process keeps it open
        :raise ClosedError: the Environment is closed
        """
        receiver = self._receiver(identifier, message_type)
        kind = SharedSubscriber if receiver.subscription.shared else Subscriber
        made = self._made.keep(kind(self._origin(), receiver))
        receiver.announce()
        return made

    def _receiver(self, identifier: str, message_type: "Optional[MessageType[Any]]") -> Receiver:
        codec, engine = self._codec(message_type), self._opened()
        subscription = engine.subscribe(checks.identifier(identifier))
        kind = SharedReceiver if subscription.shared else Receiver
        return kind(engine, self._access.location, identifier, subscription, codec)

    def _codec(self, message_type: "Optional[MessageType[M]]") -> "Optional[Coding[M]]":
        """Return the codec of a message type, which the queue must accept; None for bytes."""
        if message_type is None:
            return None
        with lazy_imports.NoFork():
            from persipubsub import typed  # here, since few programs need it
        codec = typed.coding_of(message_type)
        self._opened().administration.require_message_type(codec.name)
        return codec

    @overload
    def new_async_publisher(self, autosync: bool = False, message_type: None = None) -> "AsyncPublisher[BytesLike]":
        ...

    @overload
    def new_async_publisher(self, autosync: bool = False, *, message_type: Type[J]) -> "AsyncPublisher[J]":
        ...

    @overload
    def new_async_publisher(self, autosync: bool = False, *, message_type: "MessageType[M]") -> "AsyncPublisher[M]":
        ...

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(lambda autosync: autosync is None or isinstance(autosync, bool),
                       error=lambda autosync: errors.ArgumentTypeError(_wrong_type("autosync", bool, autosync)),
                       enabled=True)
    def new_async_publisher(self,
                            autosync: bool = False,
                            message_type: "Optional[MessageType[Any]]" = None) -> "AsyncPublisher[Any]":
        """Make a publisher for asyncio tasks. Arguments and errors are those of :meth:`new_publisher`."""
        with lazy_imports.NoFork():
            from persipubsub import aio  # here, since it imports asyncio
        codec = self._codec(message_type)
        sender = Sender(self._access.location, autosync, codec, "AsyncPublisher")
        return self._made.keep(aio.AsyncPublisher(self._origin(), sender, self._bridged()))

    @overload
    def new_async_subscriber(self, identifier: str, message_type: None = None) -> "AsyncSubscriber[bytes]":
        ...

    @overload
    def new_async_subscriber(self, identifier: str, message_type: Type[J]) -> "AsyncSubscriber[J]":
        ...

    @overload
    def new_async_subscriber(self, identifier: str, message_type: "MessageType[M]") -> "AsyncSubscriber[M]":
        ...

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def new_async_subscriber(self,
                             identifier: str,
                             message_type: "Optional[MessageType[Any]]" = None) -> "AsyncSubscriber[Any]":
        """Make a subscriber for asyncio tasks. Arguments and errors are those of :meth:`new_subscriber`."""
        with lazy_imports.NoFork():
            from persipubsub import aio  # here, since it imports asyncio
        receiver = self._receiver(identifier, message_type)
        made = self._made.keep(aio.AsyncSubscriber(self._origin(), receiver, self._bridged()))
        receiver.announce()
        return made

    def _bridged(self) -> "Bridge":
        """Return the bridge that all asyncio endpoints of this Environment share."""
        with lazy_imports.NoFork():
            from persipubsub.endpoints import bridge  # here, since it imports asyncio
        return self._bridges.get(0) or self._bridges.setdefault(0, bridge.Bridge(self._opened()))

    def _opened(self) -> Engine:
        """Return the engine of the queue, opened when first needed."""
        engine = self._engine
        if engine is None:
            engine = self._engine = self._access.open()
            _OPENED.add(self)
            if self._closed:  # by another thread in the meantime
                self._access.close()
                raise _closed_error(self)
        return engine

    def _origin(self) -> Origin:
        return Origin(self._access.location, self)

    def stop(self) -> None:
        """Stop everything that this Environment made or makes: see :meth:`Subscriber.stop` and :meth:`Publisher.stop`.

        Any thread and a signal handler may call this, even before the program has made its subscribers. Messages that
        are being handled can still be acknowledged.
        """
        self._made.stop()

    def close(self) -> None:
        """Close the Environment and everything that it made; more than once is fine."""
        self._closed = True
        self._made.close()
        self._access.close()

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        return Environment, (str(self._access.location), self._allow_remote, *self._login)

    def __repr__(self) -> str:
        return f"<Environment of {self._access.location}{' (closed)' if self._closed else ''}>"


def _checked(check: Callable[[object], N], value: Optional[N]) -> Optional[N]:
    """Check a value; None stands for the stored value."""
    return None if value is None else check(value)


def engine_of(environment: Environment) -> Engine:
    """Return the engine of an Environment, for the modules of this package that bring two queues together.

    :meta private:
    """
    return environment._opened()  # pylint: disable=protected-access  # of this module


def new_environment(path: Path,
                    allow_remote: bool = False,
                    credentials: Optional[Path] = None,
                    tls: "Optional[Tls]" = None) -> Environment:
    """Make an Environment, which stands for a queue; nothing is accessed yet.

    :param path: the directory of the queue; or, for a queue on a cluster, its URL, such as
        ``nats://user:password@host1:4222,host2:4222/orders?replicas=3``
    :param allow_remote: whether the queue may lie on a file system that other machines can use, such as NFS. Only one
        machine may ever use the queue; two machines would destroy it
    :param credentials: for a cluster: the path of a .creds file
    :param tls: for a cluster: the path of the authorities' certificates, or a mapping with the keys ``ca``,
        ``certificate`` and ``key``, or an SSLContext, which cannot be pickled
    :raise ArgumentTypeError: an argument of the wrong type
    :raise ArgumentError: the path is empty or contains a NUL, or it is not the URL of a queue
    :raise UnsupportedError: it is a URL, and the library for clusters is not installed
    """
    return Environment(path, allow_remote, credentials, tls)


def initialize(path: Path) -> Environment:
    """Make an Environment. This is the name of :func:`new_environment` in persipubsub 1.0.0."""
    return Environment(path)
