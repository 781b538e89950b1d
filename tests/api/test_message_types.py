"""Message types: queues that are bound to them, codecs of a program, and endpoints in other processes and threads."""

import abc
import concurrent.futures
import dataclasses
import json
import multiprocessing
import numbers
import pathlib
import pickle
import subprocess
import sys
from typing import Any, Callable, Dict, Generic, List, Optional, Tuple, TypeVar, Union

import msgspec
import pydantic
import pytest

from persipubsub import Durability, Environment, Publisher, Subscriber, deployment, errors, typed
from persipubsub.cli import formats
from tests import children
from tests.api.kinds import KINDS, Counted, Invoice, Kind, Order, Page, Point, PointCodec, opened

MakeEnvironment = Callable[..., Environment]

EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=str)
CLI = [sys.executable, "-m", "persipubsub"]


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue that does not wait for the disk."""
    return new_environment("a", durability=Durability.PROCESS_CRASH)


def run(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run([*map(str, arguments)], check=False, capture_output=True, text=True, timeout=60, **options)


# Binding


@EACH_KIND
def test_a_queue_is_bound_to_a_name(kind: Kind, environment: Environment) -> None:
    """A class binds a queue to its name; the name itself does, too; an endpoint of another type is refused."""
    control = environment.new_control(message_type=kind.message_type)
    assert control.status().message_type == typed.name_of(kind.message_type) == kind.name
    environment.new_control(message_type=kind.name)
    environment.new_publisher(message_type=kind.message_type).send(kind.messages[0])
    assert environment.new_subscriber("a", kind.message_type).front() == kind.messages[0]
    other = next(one for one in KINDS if one is not kind)
    remedy = f"message_type={kind.name.rpartition('.')[2].removeprefix('json:')},"
    with pytest.raises(errors.MessageTypeError, match=f"bound to the message type {kind.name}, not .*{remedy}"):
        environment.new_subscriber("a", other.message_type)
    with pytest.raises(errors.MessageTypeError, match="has 1 messages"):
        environment.new_control(message_type=other.message_type)


@EACH_KIND
def test_configs_and_commands_know_the_name(kind: Kind, environment: Environment, tmp_path: pathlib.Path) -> None:
    """A config binds a queue by name; describe and status show it; deploying what describe prints changes nothing."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"queues": [{"path": str(environment.path), "message_type": kind.name}]}))
    deployment.deploy(config)
    described = run(*CLI, "describe", environment.path).stdout
    assert json.loads(described)["queues"][0]["message_type"] == kind.name
    config.write_text(described)
    assert not list(deployment.deploy(config))
    assert kind.name in run(*CLI, "status", environment.path).stdout
    assert environment.new_control().check() == ()


def test_receive_writes_json(environment: Environment) -> None:
    """The command writes a message of a queue that is bound to JSON as its line of JSON."""
    environment.new_control(message_type=Order)
    environment.new_publisher(message_type=Order).send(Order(1, anything="\u202eä"))
    environment.new_publisher().send(b'{\n "number": 2.50,\n "a": 100000000000000000000000000000}')
    environment.new_publisher().send(b"no JSON")
    written = run(*CLI, "receive", environment.path, "a", "--format", "protobuf-json")
    first, second = written.stdout.splitlines()
    assert json.loads(first)["anything"] == "\u202eä" and "\\u202e\u00e4" in first
    assert second == '{"number":2.50,"a":100000000000000000000000000000}'
    assert written.returncode == 1 and "it is not JSON" in written.stderr and "not acknowledged" in written.stderr
    subscriber = environment.new_subscriber("a")
    assert subscriber.front() == b"no JSON"


@pytest.mark.parametrize("payload", [b"", b"[", b'"\xff"', b"[" * 100_000, b"1 2"])
def test_what_cannot_be_written_as_json(payload: bytes) -> None:
    """A payload that is no JSON in UTF-8 ends the command with an error that has the reason."""
    write = formats.protobuf_json("queue", "json:Order", [])
    with pytest.raises(errors.DecodeError, match="The next message of the queue at queue cannot be written: "):
        write(payload)


# What is no message type


class Abstract(abc.ABC):
    """A class of which only subclasses have messages."""

    @abc.abstractmethod
    def method(self) -> None:
        """Do something."""


def made(name: str, **fields: Any) -> type:
    """Return a dataclass that has fields of some types."""
    return dataclasses.make_dataclass(name, fields.items())


class Unfinished(pydantic.BaseModel):
    """A model with a type that is nowhere."""

    field: "Missing"  # type: ignore[name-defined]  # noqa: F821  # the mistake


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    """A model with a parameter."""

    inside: T


NO_TYPES = [
    (bytes, "message_type must be a class of protobuf messages, dict, list, str, a dataclass"),
    (int, "got <class 'int'>.$"),
    (Counted, "got <class '.*Counted'>"),
    (Order(1), r"got Order\(.*\).$"),
    ("json:Order", "got 'json:Order'.$"),
    (None.__class__, "got <class 'NoneType'>"),
    (Dict[str, int], "cannot be typing.Dict.* Derive a class from it, or make it a field of a dataclass"),
    (list[Order], "cannot be list.*Order.*make it a field"),
    (Page[Order], "cannot be .*Page.* Derive a class from it"),
    (Union[Order, Point], "cannot be typing.Union.* make it a field"),
    (Page, "Page cannot be a message type: it is generic: derive a class"),
    (Box, "it is generic: derive a class"),
    (Box[int], "json:Box.int"),
    (pydantic.BaseModel, "it is abstract: pass the class of the messages"),
    (msgspec.Struct, "it is abstract"),
    (dataclasses.dataclass(type("Sketch", (Abstract, ), {})), "Sketch cannot be a message type: it is abstract"),
    (made("Sum", value=complex), "JSON has no values of complex. Change its fields, or pass an object with name"),
    (made("Deep", values=Optional[List[Dict[str, Tuple[complex, ...]]]]), "JSON has no values of complex"),
    (made("Either", one=Union[Order, Point]), "more than one dataclass"),
    (made("Vague", field="Missing"), "NameError: name 'Missing' is not defined"),
    (made("Init", given=dataclasses.InitVar[int]), "InitVar"),
    (made("\u00d6rder", number=int), "in ASCII"),
    (Unfinished, "Unfinished cannot be a message type: .*not defined"),
]


@pytest.mark.parametrize("message_type, tells", NO_TYPES, ids=lambda value: "")
def test_what_is_no_message_type(message_type: Any, tells: str, environment: Environment) -> None:
    """What cannot be a message type is refused everywhere, before any message is, with the reason and a remedy."""
    for make in (lambda: environment.new_publisher(message_type=message_type),
                 lambda: environment.new_subscriber("a", message_type),
                 lambda: environment.new_async_publisher(message_type=message_type),
                 lambda: typed.name_of(message_type)):
        with pytest.raises(errors.ArgumentTypeError, match=tells):
            make()


def test_fields_that_hold_whatever_json_has(environment: Environment) -> None:
    """A field of type object, Any or Number holds the values that JSON has."""
    message_type: Any = made("Loose", one=object, two=Any, three=numbers.Number)
    publisher, subscriber = opened(environment, message_type)
    publisher.send(message_type([1], {"a": None}, 2.5))
    assert subscriber.front() == message_type([1], {"a": None}, 2.5)


def test_local_classes(environment: Environment) -> None:
    """A class that a function made is a message type, but endpoints that have it cannot be pickled."""

    @dataclasses.dataclass
    class Local:
        """A local class."""

        number: int

    publisher, subscriber = opened(environment, Local)
    publisher.send(Local(1))
    assert subscriber.front() == Local(1)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(publisher)


def test_an_old_pydantic(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of pydantic that cannot decode by names and aliases alike is refused with the version that can."""
    monkeypatch.setattr(pydantic, "VERSION", "2.10.6")
    with pytest.raises(errors.ArgumentTypeError, match="pydantic 2.10.6 is too old; 2.11 is enough"):
        environment.new_publisher(message_type=Invoice)


# Codecs of a program


class Wrong:
    """A codec that does what a test says."""

    def __init__(self, encoded: object = b"", error: Exception = ValueError("Why not.")) -> None:
        self.name = "test.Wrong"
        self._encoded = encoded
        self._error = error

    def encode(self, message: Any) -> Any:
        """Return what is no payload, or raise."""
        if message == "fail":
            raise self._error
        return self._encoded

    def decode(self, payload: bytes) -> Any:
        """Raise."""
        raise self._error


class Silent(Exception):
    """An exception without a text."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("encoded", [bytearray(b"a"), memoryview(b"a"), "a", None, (b"a", 1)])
def test_a_codec_must_return_bytes(encoded: object, environment: Environment) -> None:
    """Whatever a codec encodes as, other than bytes, is refused by the name of the codec."""
    publisher = environment.new_publisher(message_type=Wrong(encoded))
    with pytest.raises(errors.ArgumentTypeError, match=f"codec test.Wrong must .* bytes, got {type(encoded).__name__}"):
        publisher.send(1)
    with pytest.raises(errors.ArgumentTypeError, match="^Message 0 of the batch: The codec test.Wrong"):
        publisher.send_many([1])
    assert environment.new_control().status().messages == 0


@pytest.mark.parametrize("error, tells", [(ValueError("Why not."), "Why not"), (KeyError("x"), "KeyError: 'x'"),
                                          (TypeError(), "TypeError"), (Silent(), "Silent"),
                                          (errors.ClosedError("It is closed."), "ClosedError: It is closed")])
def test_a_codec_that_raises(error: Exception, tells: str, environment: Environment) -> None:
    """What a codec raises is the cause of an error of this package, which has its text."""
    publisher = environment.new_publisher(message_type=Wrong(error=error))
    with pytest.raises(errors.ArgumentError, match=f"^The message cannot be encoded: {tells}.$") as refused:
        publisher.send("fail")
    with pytest.raises(errors.ArgumentError, match=f"^Message 1 of the batch: .* {tells}. None was sent.$"):
        publisher.send_many([1, "fail"])
    publisher.send(1)
    with pytest.raises(errors.DecodeError, match=f"is not a test.Wrong: {tells}. It is not acknowledged") as raised:
        environment.new_subscriber("a", Wrong(error=error)).front()
    assert refused.value.__cause__ is raised.value.__cause__ is error


def test_exits_are_not_errors_of_messages(environment: Environment) -> None:
    """KeyboardInterrupt and SystemExit pass through, and do not count as a failure of the message."""
    environment.new_control().add_subscriber("b", max_deliveries=1)
    exits: Any = SystemExit(3)
    environment.new_publisher(message_type=Wrong()).send(1)
    with pytest.raises(SystemExit):
        environment.new_publisher(message_type=Wrong(error=exits)).send("fail")
    with pytest.raises(SystemExit), environment.new_subscriber("b", Wrong(error=exits)).receive(timeout=0):
        pass
    assert not list(environment.new_control().dead_letters("b"))


class Nameless:
    """A codec without a name."""

    def encode(self, message: object) -> bytes:
        """Return nothing."""
        return bytes(message is None)

    decode = encode


class Named(Nameless):
    """One with a name."""

    def __init__(self, name: Any) -> None:
        self.name = name


class Uncallable(Named):
    """One that is no codec."""

    encode = None  # type: ignore[assignment]  # the mistake


@pytest.mark.parametrize("codec, kind, tells", [
    (Nameless(), errors.ArgumentTypeError, "It lacks name."),
    (PointCodec, errors.ArgumentTypeError, "Pass an instance of the codec, not its class"),
    (Nameless, errors.ArgumentTypeError, "Pass an instance of the codec, not its class"),
    (Named(5), errors.ArgumentTypeError, "The name of the codec .* must be a str, got int"),
    (Named(None), errors.ArgumentTypeError, "got NoneType"),
    (Named(""), errors.ArgumentError, "The name of the codec .* must be the full name"),
    (Named("a b"), errors.ArgumentError, "'a b'"),
    (Named("x" * 1001), errors.ArgumentError, "at most 1000 bytes"),
    (Uncallable("a"), errors.ArgumentTypeError, "It lacks encode."),
])
def test_what_is_no_codec(codec: Any, kind: type, tells: str, environment: Environment) -> None:
    """What lacks a part of a codec is refused when the endpoint is made, and the error names the part."""
    for make in (lambda: environment.new_publisher(message_type=codec), lambda: environment.new_subscriber("a", codec),
                 lambda: environment.new_control(message_type=codec)):
        with pytest.raises(errors.PersipubsubError, match=tells) as caught:
            make()
        assert caught.type is kind


# Processes and threads


def send_and_receive(publisher: "Publisher[Any]", subscriber: "Subscriber[Any]", messages: List[Any]) -> List[Any]:
    """Send messages in a spawned process, and return what it receives."""
    publisher.send_many(messages)
    return list(subscriber.messages(timeout=0))


@pytest.mark.slow
def test_spawned_processes(new_environment: MakeEnvironment) -> None:
    """Endpoints of each kind work in a spawned process to which they are passed."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        for number, kind in enumerate(KINDS):
            environment = new_environment("a", name=str(number), durability=Durability.PROCESS_CRASH)
            publisher = environment.new_publisher(message_type=kind.message_type)
            subscriber = environment.new_subscriber("a", kind.message_type)
            publisher.send(kind.messages[-1])
            received = executor.submit(send_and_receive, publisher, subscriber, kind.messages).result(60)
            assert received == [kind.messages[-1], *kind.messages]


@EACH_KIND
def test_pickled_endpoints(kind: Kind, environment: Environment) -> None:
    """Endpoints that went through pickle have their type, and show its name."""
    publisher = environment.new_publisher(message_type=kind.message_type)
    subscriber = environment.new_subscriber("a", kind.message_type)
    with pickle.loads(pickle.dumps(publisher)) as sending, pickle.loads(pickle.dumps(subscriber)) as receiving:
        sending.send(kind.messages[0])
        assert receiving.front() == kind.messages[0]
        assert repr(sending).endswith(f" for {kind.name}>") and f" for {kind.name}" in repr(receiving)


@EACH_KIND
def test_forked_processes(kind: Kind, environment: Environment) -> None:
    """Endpoints work in a forked child, which uses what its parent made."""
    publisher = environment.new_publisher(message_type=kind.message_type)
    subscriber = environment.new_subscriber("a", kind.message_type)
    publisher.send(kind.messages[0])

    def child() -> int:
        with subscriber.receive(timeout=0) as message:
            publisher.send_many(kind.messages)
            return 0 if message == kind.messages[0] else 1

    assert children.status_of(children.start_child(child)) == 0
    assert list(subscriber.messages(timeout=0)) == kind.messages


@EACH_KIND
def test_threads_share_a_publisher(kind: Kind, environment: Environment) -> None:
    """Threads may use one publisher of a type: each message arrives."""
    publisher = environment.new_publisher(message_type=kind.message_type)
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        list(executor.map(publisher.send, kind.messages * 50))
    received = list(environment.new_subscriber("a", kind.message_type).messages(timeout=0, acknowledge_every=100))
    assert [received.count(message) for message in kind.messages] == [50] * len(kind.messages)


# What is imported

PROGRAM = """
import json, sys
import persipubsub
before = set(sys.modules)
with persipubsub.new_environment(sys.argv[1]) as env:
    {setup}
    env.new_control(["a"], message_type=message_type)
    env.new_publisher(message_type=message_type).send(message)
    env.new_subscriber("a", message_type=message_type).pop()
print(json.dumps(sorted((set(sys.modules) - before) &
                        {{"google.protobuf", "msgspec", "pydantic", "persipubsub.typed"}})))
"""


@pytest.mark.parametrize("setup, loaded", [
    ("message_type, message = None, b''", []),
    ("message_type, message = type('Codec', (), {'name': 'a', 'encode': bytes, 'decode': bytes})(), b''",
     ["persipubsub.typed"]),
    ("message_type, message = dict, {}", ["msgspec", "persipubsub.typed"]),
    ("from google.protobuf.wrappers_pb2 import StringValue as message_type; message = message_type()",
     ["google.protobuf", "persipubsub.typed"]),
],
                         ids=["bytes", "codec", "JSON", "protobuf"])
def test_only_what_is_needed_is_imported(setup: str, loaded: List[str], tmp_path: pathlib.Path) -> None:
    """A program loads the library of its messages and no other; one of bytes loads nothing of message types."""
    done = run(sys.executable, "-c", PROGRAM.format(setup=setup), tmp_path / "queue")
    assert json.loads(done.stdout) == loaded, done.stderr
