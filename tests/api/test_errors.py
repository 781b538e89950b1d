"""An error says what is wrong, what the limit is and what to do, and the queue is as before."""

import concurrent.futures
import inspect
import itertools
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import stat
import struct
import tempfile
import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Type

import lmdb
import pytest

import persipubsub
from persipubsub import (Control, Delivery, Durability, Envelope, Environment, HighWaterMark, Publisher, Strategy,
                         Subscriber, errors)
from persipubsub.delayed import DelayedMessage
from persipubsub.lmdb_engine.engine import LmdbEngine

MakeEnvironment = Callable[..., Environment]

WAIT_S = 30  # for what happens at once unless something is broken
GIB = 1024**3
NOBODY = 65534


class Opened(NamedTuple):
    """A queue with one subscriber, "a", two messages, and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment) -> Opened:
    """Set up a queue with a byte mark that a test can pass."""
    environment = new_environment("a",
                                  high_watermark=HighWaterMark(hwm_db_size=2**20),
                                  durability=Durability.PROCESS_CRASH)
    publisher = environment.new_publisher()
    publisher.send_many([b"1", b"2"])
    return Opened(environment, environment.new_control(), publisher, environment.new_subscriber("a"))


def state(environment: Environment) -> Tuple[object, ...]:
    """Return what no refused call may change: the files, LMDB's number of the newest commit, and the status."""
    status = environment.new_control().status()
    places = {name: (one.next_id, one.pending) for name, one in status.subscribers.items()}
    with tempfile.TemporaryDirectory() as directory:
        # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
        shutil.copyfile(environment.path / "data.mdb", pathlib.Path(directory) / "data.mdb")
        with lmdb.Environment(directory, readonly=True, lock=False) as raw:
            commit = raw.info()["last_txnid"]
    modes = {file.name: file.stat().st_mode for file in [environment.path, *environment.path.iterdir()]}
    return (modes, commit, status.messages, status.size_bytes, status.next_id, status.floor, status.high_watermark,
            status.strategy, status.durability, places)


class Mistake(NamedTuple):
    """A call that is refused, with which error, and what its message has to say."""

    name: str
    call: Callable[[Any], object]
    kind: Type[errors.PersipubsubError]
    builtin: Type[Exception]
    tells: List[str]


def mistake(call: str, kind: Type[errors.PersipubsubError], builtin: Type[Exception], *tells: str) -> Mistake:
    """Make a mistake from the text of the call, in which the fields of Opened are names."""
    code = compile(call, call, "eval")
    names = {
        "GIB": GIB,
        "Envelope": Envelope,
        "HighWaterMark": HighWaterMark,
        "itertools": itertools,
        "math": math,
        "pathlib": pathlib
    }
    names["persipubsub"] = persipubsub

    def run(opened: Opened) -> object:
        return eval(code, {**names, **opened._asdict()})  # pylint: disable=eval-used  # our own text, which is the id

    return Mistake(call, run, kind, builtin, list(tells))


TYPE = (errors.ArgumentTypeError, TypeError)
VALUE = (errors.ArgumentError, ValueError)
TOO_LARGE = (errors.MessageTooLargeError, ValueError)
BATCH = (errors.BatchTooLargeError, ValueError)
UNKNOWN = (errors.UnknownSubscriberError, LookupError)
PATH = (errors.PathError, OSError)

IDENTIFIER_CALLS = ("control.add_subscriber", "control.remove_subscriber", "control.prune_all_messages_for",
                    "environment.new_subscriber")
RECEIVE_CALLS = ("receive", "receive_to_top", "receive_many", "receive_delivery", "receive_deliveries")
LOOP_CALLS = ("messages", "deliveries")

MISTAKES: List[Mistake] = [
    # the path
    mistake("persipubsub.new_environment(5)", *TYPE, "path", "str or PathLike", "int"),
    mistake("persipubsub.new_environment(None)", *TYPE, "path", "str or PathLike", "NoneType"),
    mistake("persipubsub.new_environment(b'/tmp/x')", *TYPE, "path", "str or PathLike", "bytes"),
    mistake("persipubsub.new_environment('')", *VALUE, "path", "not empty"),
    mistake("persipubsub.new_environment('a\\0b')", *VALUE, "path", "without NUL", "a\\x00b"),
    mistake("persipubsub.new_environment('\\ud800')", *VALUE, "path", "as a file name", "\\ud800"),
    # the configuration
    mistake("environment.new_control('ab')", *TYPE, "subscriber_ids", "iterable of str", "list of one"),
    mistake("environment.new_control(b'ab')", *TYPE, "subscriber_ids", "iterable of str", "bytes"),
    mistake("environment.new_control(5)", *TYPE, "subscriber_ids", "iterable of str", "int"),
    mistake("environment.new_control(['b', 5])", *TYPE, "identifier", "str", "int"),
    mistake("environment.new_control(['b', ''])", *VALUE, "identifier", "1 to 255 bytes", "got 0"),
    mistake("environment.new_control(['b', 'x' * 256])", *VALUE, "identifier", "1 to 255 bytes", "got 256"),
    mistake("environment.new_control(['b', 'a\\0'])", *VALUE, "identifier", "NUL", "a\\x00"),
    mistake("environment.new_control(['b'], high_watermark=5)", *TYPE, "high_watermark", "HighWaterMark", "int"),
    mistake("environment.new_control(['b'], high_water_mark={})", *TYPE, "high_water_mark", "HighWaterMark", "dict"),
    mistake("environment.new_control(['b'], strategy=0)", *TYPE, "strategy", "Strategy", "int"),
    mistake("environment.new_control(['b'], strategy='prune_last')", *TYPE, "strategy", "Strategy", "str"),
    mistake("environment.new_control(['b'], durability='POWER_LOSS')", *TYPE, "durability", "Durability", "str"),
    mistake("environment.new_control(['b'], mode='600')", *TYPE, "mode", "int", "str"),
    mistake("environment.new_control(['b'], mode=6.0)", *TYPE, "mode", "int", "float"),
    mistake("environment.new_control(['b'], mode=0o400)", *VALUE, "mode", "0o600", "0o777", "0o400"),
    mistake("environment.new_control(['b'], mode=0o1600)", *VALUE, "mode", "0o777", "0o1600"),
    mistake("environment.new_control(['b'], mode=-1)", *VALUE, "mode", "0o600", "-0o1"),
    mistake("environment.new_control(['b'], high_watermark=HighWaterMark(5), high_water_mark=HighWaterMark(5))", *TYPE,
            "both high_watermark and high_water_mark", "Use high_watermark"),
    mistake("environment.new_publisher(autosync=1)", *TYPE, "autosync", "bool", "int"),
    mistake("HighWaterMark(max_messages=5, max_msgs_num=5)", *TYPE, "both max_messages and max_msgs_num",
            "Use max_messages"),
    mistake("HighWaterMark(message_timeout='5')", *TYPE, "message_timeout", "number of seconds", "str"),
    mistake("HighWaterMark(message_timeout=True)", *TYPE, "message_timeout", "number of seconds", "bool"),
    mistake("HighWaterMark(message_timeout=0)", *VALUE, "message_timeout", "0.000001", "10 ** 11 seconds", "got 0"),
    mistake("HighWaterMark(message_timeout=-1)", *VALUE, "message_timeout", "0.000001", "got -1"),
    mistake("HighWaterMark(message_timeout=math.nan)", *VALUE, "message_timeout", "got nan"),
    mistake("HighWaterMark(message_timeout=math.inf)", *VALUE, "message_timeout", "10 ** 11 seconds", "got inf"),
    mistake("HighWaterMark(message_timeout=10**400)", *VALUE, "message_timeout", "10 ** 11 seconds"),
    mistake("HighWaterMark(max_messages='5')", *TYPE, "max_messages", "int", "str"),
    mistake("HighWaterMark(max_messages=5.0)", *TYPE, "max_messages", "int", "float"),
    mistake("HighWaterMark(max_messages=True)", *TYPE, "max_messages", "int", "bool"),
    mistake("HighWaterMark(max_messages=0)", *VALUE, "max_messages", "from 1 to", str(2**63 - 1), "got 0"),
    mistake("HighWaterMark(max_msgs_num=2**63)", *VALUE, "max_messages", str(2**63 - 1), f"got {2**63}"),
    mistake("HighWaterMark(hwm_db_size=0)", *VALUE, "hwm_db_size", "from 1 to", str(2**46), "got 0"),
    mistake("HighWaterMark(hwm_db_size=2**46 + 1)", *VALUE, "hwm_db_size", str(2**46), f"got {2**46 + 1}"),
    mistake("HighWaterMark(hwm_db_size=1e9)", *TYPE, "hwm_db_size", "int", "float"),
    mistake("control.set_hwm(None)", *TYPE, "hwm", "HighWaterMark", "NoneType"),
    mistake("control.set_hwm(5)", *TYPE, "hwm", "HighWaterMark", "int"),
    mistake("control.set_strategy(1)", *TYPE, "strategy", "Strategy", "int"),
    mistake("control.set_strategy(None)", *TYPE, "strategy", "Strategy", "NoneType"),
    # identifiers
    *(mistake(f"{call}({value})", *kind, "identifier", *tells) for call in IDENTIFIER_CALLS for value, kind, tells in (
        ("5", TYPE, ["str", "int"]),
        ("None", TYPE, ["str", "NoneType"]),
        ("b'a'", TYPE, ["str", "bytes"]),
        ("['a']", TYPE, ["str", "list"]),
        ("''", VALUE, ["1 to 255 bytes", "got 0"]),
        ("'x' * 256", VALUE, ["1 to 255 bytes", "got 256"]),
        ("'\\xe9' * 128", VALUE, ["1 to 255 bytes of UTF-8", "got 256"]),
        ("'a\\0b'", VALUE, ["NUL", "a\\x00b"]),
        ("'\\ud800'", VALUE, ["UTF-8", "\\ud800"]),
    )),
    *(mistake(f"{call}('typo')", *UNKNOWN, "no subscriber 'typo'", "it has: 'a'", "Control.add_subscriber")
      for call in IDENTIFIER_CALLS[1:]),
    # messages
    *(mistake(f"publisher.send({value})", *TYPE, "message", "bytes-like", *tells)
      for value, tells in (("'text'", ["str", "encode"]), ("None", ["NoneType"]), ("5", ["int"]), ("[b'x']", ["list"]),
                           ("[m := memoryview(b'x'), m.release()][0]", ["memoryview", "no bytes", "released"]))),
    mistake("publisher.send(bytes(GIB + 1))", *TOO_LARGE, f"{GIB + 1} bytes", f"limit of {GIB} bytes", "in parts"),
    mistake("publisher.send(bytes(2**20 + 1))", *TOO_LARGE, f"{2**20 + 1} bytes", f"hwm_db_size={2**20} bytes",
            "Control.set_hwm"),
    *(mistake(f"publisher.send_many({value})", *TYPE, "iterable of messages", kind, "use send")
      for value, kind in (("b'x'", "bytes"), ("'x'", "str"), ("bytearray(b'x')", "bytearray"),
                          ("memoryview(b'x')", "memoryview"), ("5", "int"), ("None", "NoneType"))),
    mistake("publisher.send_many([b'3', '4', b'5'])", *TYPE, "Message 1", "bytes-like", "str", "encode",
            "None was sent"),
    mistake("publisher.send_many([b'3'] * 2500 + [None])", *TYPE, "Message 2500", "bytes-like", "None was sent"),
    mistake("publisher.send_many([b'3', bytes(2**20 + 1), b'5'])", *TOO_LARGE, f"{2**20 + 1} bytes",
            f"hwm_db_size={2**20} bytes", "Control.set_hwm"),
    mistake("publisher.send_many([b'3', bytes(GIB + 1)])", errors.ArgumentError, ValueError, f"{GIB} bytes"),
    mistake("publisher.send_many([bytes(GIB // 2)] * 3)", *BATCH, f"{GIB} bytes", "None was sent", "several batches"),
    mistake("publisher.send_many([b''] * 1_000_001)", *BATCH, "1000000 messages", "None was sent", "several batches"),
    mistake("publisher.send_many(itertools.repeat(b''))", *BATCH, "1000000 messages", "None was sent"),
    mistake("environment.new_publisher(autosync=True).send_many([b'3', None])", *TYPE, "Message 1", "None was sent"),
    # headers and envelopes
    *(mistake(call.format(value), *kind, "header", *tells)
      for call in ("publisher.send(b'3', headers={})", "publisher.send(Envelope(b'3', {}))",
                   "publisher.send_many([b'3', Envelope(b'4', {})])",
                   "publisher.send_later(b'3', delay_s=1, headers={})") for value, kind, tells in (
                       ("5", TYPE, ["mapping of str to str", "int"]),
                       ("'a'", TYPE, ["mapping of str to str", "got str"]),
                       ("[('a', 'b')]", TYPE, ["mapping of str to str", "list"]),
                       ("{'a': 5}", TYPE, ["mapping of str to str", "str to int", "'a'"]),
                       ("{'a': None}", TYPE, ["mapping of str to str", "str to NoneType", "'a'"]),
                       ("{b'a': 'b'}", TYPE, ["mapping of str to str", "bytes to str", "b'a'"]),
                       ("{'': 'b'}", VALUE, ["1 to 255 visible ASCII characters", "got ''"]),
                       ("{'a' * 256: 'b'}", VALUE, ["1 to 255 visible ASCII characters", "got 'aaaa"]),
                       ("{'a:b': 'c'}", VALUE, ["without a colon", "got 'a:b'"]),
                       ("{'a b': 'c'}", VALUE, ["visible ASCII", "got 'a b'"]),
                       ("{'a\\n': 'c'}", VALUE, ["visible ASCII", "got 'a\\n'"]),
                       ("{'\\xe9': 'c'}", VALUE, ["visible ASCII", "got '\xe9'"]),
                       ("{'a': '\\ud800'}", VALUE, ["UTF-8", "\\ud800"]),
                       ("dict.fromkeys(map(str, range(65)), '')", VALUE, ["at most 64", "got 65"]),
                       ("{'a': 'x' * 65_536}", VALUE, ["at most 65536 bytes", "got 65544", "into the message"]),
                       ("{'a': '\\0' * 11_000}", VALUE, ["at most 65536 bytes", "got 66008"]),
                   )),
    mistake("publisher.send_many([b'3', Envelope(b'4', 5)])", *TYPE, "Message 1 of the batch", "None was sent"),
    mistake("publisher.send_many([Envelope(b'3', None, '')])", *VALUE, "Message 0 of the batch", "deduplication_id",
            "None was sent"),
    mistake("publisher.send_many([Envelope('3')])", *TYPE, "Message 0 of the batch", "bytes-like", "str", "encode"),
    mistake("publisher.send(Envelope('3'))", *TYPE, "bytes-like", "str", "encode"),
    mistake("publisher.send(Envelope(Envelope(b'3')))", *TYPE, "bytes-like", "Envelope"),
    mistake("publisher.send(Envelope(b'3', {}), headers={})", *TYPE, "headers", "Envelope", "Leave one out"),
    mistake("publisher.send(Envelope(b'3', None, 'x'), 'x')", *TYPE, "deduplication_id", "Envelope", "Leave one out"),
    mistake("publisher.send_later(Envelope(b'3', {}), delay_s=1, headers={})", *TYPE, "headers", "Leave one out"),
    mistake("publisher.send(b'3', headers={'a': 'x' * 2**15} | {'b': 'x' * 2**15})", *VALUE, "65536 bytes"),
    mistake("publisher.send_many([bytes(GIB - 5), Envelope(b'', {'a': 'b'})])", *BATCH, f"{GIB} bytes",
            "None was sent"),
    # outcomes
    mistake("persipubsub.Retry('5')", *TYPE, "delay_s", "number of seconds", "str"),
    mistake("persipubsub.Retry(True)", *TYPE, "delay_s", "number of seconds", "bool"),
    mistake("persipubsub.Retry(-1)", *VALUE, "delay_s", "from 0 to 1e+09", "got -1"),
    mistake("persipubsub.Retry(math.nan)", *VALUE, "delay_s", "from 0 to 1e+09", "got nan"),
    mistake("persipubsub.Retry(1e10)", *VALUE, "delay_s", "from 0 to 1e+09", "got 10000000000"),
    mistake("persipubsub.Reject(5)", *TYPE, "reason", "str", "int"),
    mistake("persipubsub.Reject(ValueError('no'))", *TYPE, "reason", "str", "ValueError", "str(...)"),
    # receiving
    *(mistake(f"subscriber.{call}(timeout={value})", *kind, "timeout", *tells) for call in (*RECEIVE_CALLS, *LOOP_CALLS)
      for value, kind, tells in (
          ("'1'", TYPE, ["number of seconds or None", "str"]),
          ("True", TYPE, ["number of seconds or None", "bool"]),
          ("-1", VALUE, ["wait forever", "got -1"]),
          ("-0.001", VALUE, ["wait forever", "got -0.001"]),
          ("math.nan", VALUE, ["wait forever", "got nan"]),
      )),
    *(mistake(f"subscriber.{call}(timeout={timeout}, retries={value})", *kind, "retries", *tells)
      for call in RECEIVE_CALLS for timeout in (0, 1, None) for value, kind, tells in (
          ("'1'", TYPE, ["int", "str"]),
          ("1.5", TYPE, ["int", "float"]),
          ("0", VALUE, ["at least 1", "got 0"]),
          ("-1", VALUE, ["at least 1", "got -1"]),
      )),
    *(mistake(f"subscriber.{call}={value})", *kind,
              call.split("(")[1], *tells)
      for call in ("receive_many(max_messages", "receive_many(max_bytes", "receive_deliveries(max_messages",
                   "receive_deliveries(max_bytes", "messages(acknowledge_every", "deliveries(acknowledge_every")
      for value, kind, tells in (
          ("'1'", TYPE, ["int", "str"]),
          ("True", TYPE, ["int", "bool"]),
          ("1.5", TYPE, ["int", "float"]),
          ("0", VALUE, ["at least 1", "got 0"]),
          ("-1", VALUE, ["at least 1", "got -1"]),
      )),
    # backup
    mistake("control.backup(5)", *TYPE, "path", "int"),
    mistake("control.backup(None)", *TYPE, "path", "NoneType"),
    mistake("control.backup(b'/tmp/x')", *TYPE, "path", "bytes"),
    mistake("control.backup('')", *VALUE, "path", "empty"),
    mistake("control.backup('a\\0b')", *VALUE, "path", "NUL"),
    mistake("control.backup(environment.path)", *PATH, "not empty", "another path"),
]


@pytest.mark.parametrize("wrong", [pytest.param(one, id=one.name) for one in MISTAKES])
def test_mistakes(wrong: Mistake, opened: Opened, tmp_path: pathlib.Path) -> None:
    """A mistake raises our class and the builtin one, names limit and remedy, and leaves the queue as before."""
    before, files_before = state(opened.environment), sorted(tmp_path.rglob("*"))
    with pytest.raises(wrong.kind) as raised:
        wrong.call(opened)
    assert isinstance(raised.value, errors.PersipubsubError) and isinstance(raised.value, wrong.builtin)
    for part in wrong.tells:
        assert part in str(raised.value)
    assert state(opened.environment) == before and sorted(tmp_path.rglob("*")) == files_before
    assert opened.publisher.send(b"3") == 3
    assert list(opened.subscriber.messages(timeout=0)) == [b"1", b"2", b"3"]


def payloads(received: object) -> List[object]:
    """Return the payloads of what any call has received."""
    every = received if isinstance(received, list) else [received]
    return [one.message if isinstance(one, Delivery) else one for one in every]


@pytest.mark.parametrize("call", [f"subscriber.{name}" for name in (*RECEIVE_CALLS, *LOOP_CALLS)])
@pytest.mark.parametrize("argument", ["timeout=10**400", "timeout=1e308", "timeout=math.inf", "retries=10**400"])
def test_absurd_numbers(call: str, argument: str, opened: Opened) -> None:
    """A number beyond all reason is refused with an error of ours, or does what it says."""
    is_loop = call.endswith(LOOP_CALLS) and not call.endswith("receive_deliveries")
    if is_loop and argument.startswith("retries"):
        return
    try:
        result = mistake(f"{call}({argument})", *VALUE).call(opened)
        if is_loop:
            assert payloads(next(result)) == [b"1"]  # type: ignore[call-overload]  # an iterator
        else:
            with result as got:  # type: ignore[attr-defined]  # a context manager
                assert payloads(got) in ([b"1"], [b"2"], [b"1", b"2"])
    except errors.ArgumentError as error:
        assert argument.split("=", maxsplit=1)[0] in str(error)


def test_no_subscriber_to_name(new_environment: MakeEnvironment) -> None:
    """Where there are no subscribers, the error for an unknown one says so; where there are many, it stays readable."""
    environment = new_environment()
    with pytest.raises(errors.UnknownSubscriberError, match="it has: none"):
        environment.new_subscriber("typo")
    environment.new_control([f"subscriber {number}" for number in range(500)])
    with pytest.raises(errors.UnknownSubscriberError, match="'subscriber 0'") as raised:
        environment.new_subscriber("typo")
    assert str(raised.value).count("'subscriber ") == 20


def test_a_mistake_makes_no_queue(tmp_path: pathlib.Path) -> None:
    """A wrong argument of the first ``new_control`` leaves nothing on the disk."""
    path = tmp_path / "parent" / "queue"
    wrong: List[Dict[str, Any]] = [{
        "subscriber_ids": ["a", ""]
    }, {
        "subscriber_ids": "a"
    }, {
        "high_watermark": 5
    }, {
        "strategy": 5
    }, {
        "durability": 5
    }, {
        "mode": 0o111
    }, {
        "mode": "600"
    }, {
        "high_watermark": HighWaterMark(),
        "high_water_mark": HighWaterMark()
    }]
    with persipubsub.new_environment(path) as environment:
        for arguments in wrong:
            with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)):
                environment.new_control(**arguments)
            assert not list(tmp_path.iterdir())
        environment.new_control(["a"])


# Closed


def closed_calls(opened: Opened) -> Dict[str, List[Callable[[], object]]]:
    """List the calls on each object, by its name."""
    environment, control, publisher, subscriber = opened

    def enter(receive: Callable[..., Any]) -> Callable[[], object]:

        def call() -> object:
            with receive(timeout=0) as got:
                return got

        return call

    return {
        "environment": [
            environment.new_control, environment.new_publisher, lambda: environment.new_subscriber("a"),
            lambda: environment.new_subscriber("typo"), environment.new_async_publisher,
            lambda: environment.new_async_subscriber("a")
        ],
        "control": [
            control.is_initialized, lambda: control.add_subscriber("b"), lambda: control.remove_subscriber("a"),
            control.prune_dangling_messages, lambda: control.prune_all_messages_for("a"), control.clear_messages,
            control.clear_all_subscribers, lambda: control.set_hwm(HighWaterMark()),
            lambda: control.set_strategy(Strategy.prune_last), control.status, control.check,
            lambda: control.backup(environment.path.parent / "copy"), lambda: control.rewind("a", "earliest"),
            control.history, lambda: control.peek("a"), lambda: control.set_retention(1),
            lambda: control.dead_letters("a"), lambda: control.requeue_dead_letters("a"),
            lambda: control.discard_dead_letters("a")
        ],
        "publisher": [
            lambda: publisher.send(b"x"), lambda: publisher.send_many([b"x"]),
            lambda: publisher.send(b"x", deduplication_id="x"), lambda: publisher.send(Envelope(b"x", {"a": "b"})),
            lambda: publisher.send_many([Envelope(b"x")]), lambda: publisher.send(b"x", timeout=None),
            lambda: publisher.send_later(b"x", delay_s=1), lambda: publisher.cancel(DelayedMessage(1, 1))
        ],
        "subscriber": [
            subscriber.front, subscriber.front_delivery, subscriber.pop, subscriber.extend_lease,
            enter(subscriber.receive),
            enter(subscriber.receive_to_top),
            enter(subscriber.receive_many),
            enter(subscriber.receive_delivery),
            enter(subscriber.receive_deliveries), lambda: next(iter(subscriber.messages(timeout=0))),
            lambda: next(iter(subscriber.deliveries(timeout=0)))
        ],
    }


@pytest.mark.parametrize("through", ["itself", "the environment"])
@pytest.mark.parametrize("name", ["environment", "control", "publisher", "subscriber"])
def test_closed(name: str, through: str, opened: Opened, new_environment: MakeEnvironment,
                tmp_path: pathlib.Path) -> None:
    """Every use of a closed object, or of one whose Environment is closed, raises ClosedError, and changes nothing."""
    other = new_environment("a")
    before = state(other)
    getattr(opened, name if through == "itself" else "environment").close()
    for call in closed_calls(opened)[name]:
        with pytest.raises(errors.ClosedError) as raised:
            call()
        remedy = "new_environment" if name == "environment" else f"Environment.new_{name}"
        assert str(opened.environment.path) in str(raised.value) and remedy in str(raised.value)
    assert state(other) == before and not (tmp_path / "copy").exists()


def test_closed_calls_are_all_public_methods(opened: Opened) -> None:
    """The test of closed objects calls every public method of each."""
    for name, calls in closed_calls(opened).items():
        methods = {
            method
            for method, value in inspect.getmembers(type(getattr(opened, name)), inspect.isfunction)
            if not method.startswith("_") and method not in ("close", "stop")
        }
        assert methods <= set(re.findall(r"\w+", inspect.getsource(closed_calls)))
        assert len(calls) >= len(methods)


@pytest.mark.parametrize("name", ["environment", "publisher", "subscriber"])
@pytest.mark.parametrize("through", ["itself", "the environment"])
def test_stopping_and_closing_again(through: str, name: str, opened: Opened) -> None:
    """Whatever is closed can be stopped and closed again."""
    getattr(opened, name if through == "itself" else "environment").close()
    for _ in range(2):
        getattr(opened, name).stop()
        getattr(opened, name).close()


def test_closed_in_the_block(opened: Opened) -> None:
    """The end of a block acknowledges its message, though its subscriber was closed meanwhile."""
    with opened.subscriber.receive(timeout=0) as msg:
        assert msg == b"1"
        opened.subscriber.close()
    assert opened.environment.new_subscriber("a").front() == b"2"


def test_the_environment_is_closed_in_the_block(opened: Opened, new_environment: MakeEnvironment) -> None:
    """An Environment closed in a block acknowledges nothing: the block raises, and the message comes again."""
    with pytest.raises(errors.ClosedError):
        with opened.subscriber.receive(timeout=0) as msg:
            assert msg == b"1"
            opened.environment.close()
    assert new_environment().new_subscriber("a").front() == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("close", ["subscriber", "environment"])
def test_closed_while_it_waits(close: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive that waits while its subscriber or its Environment is closed ends with ClosedError."""
    waiting = threading.Event()
    original = LmdbEngine.watch

    def watch(self: LmdbEngine, longest_sleep_s: float) -> Any:
        waiting.set()
        return original(self, longest_sleep_s)

    monkeypatch.setattr(LmdbEngine, "watch", watch)
    opened.control.clear_messages()
    future: "concurrent.futures.Future[None]" = concurrent.futures.Future()

    def run() -> None:
        try:
            with opened.subscriber.receive(timeout=None):
                future.set_result(None)
        except errors.PersipubsubError as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    assert waiting.wait(WAIT_S)
    getattr(opened, close).close()
    with pytest.raises(errors.ClosedError):
        future.result(WAIT_S)


# The path


def tree(path: pathlib.Path) -> Dict[str, Tuple[int, Optional[bytes]]]:
    """Return everything below a directory: modes and contents."""
    return {
        str(file): (file.lstat().st_mode, file.read_bytes() if file.is_file() else None)
        for file in [path, *path.rglob("*")]
    }


OPENINGS = [
    pytest.param(lambda environment: environment.new_publisher(), id="new_publisher"),
    pytest.param(lambda environment: environment.new_subscriber("a"), id="new_subscriber"),
]
ALL_OPENINGS = [*OPENINGS, pytest.param(lambda environment: environment.new_control(["a"]), id="new_control")]
Open = Callable[[Environment], object]


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("place", ["parent/queue", "directory", "directory/queue"])
def test_not_initialized(opening: Open, place: str, tmp_path: pathlib.Path) -> None:
    """Opening what nobody has set up names the path and both remedies, and leaves no file behind."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_bytes(b"content")
    before = tree(tmp_path)
    with persipubsub.new_environment(tmp_path / place) as environment:
        with pytest.raises(errors.NotInitializedError) as raised:
            opening(environment)
        for part in (str(tmp_path / place), "Environment.new_control", f"persipubsub create {tmp_path / place}"):
            assert part in str(raised.value)
        assert tree(tmp_path) == before
        environment.new_control(["a"])
        opening(environment)


@pytest.mark.parametrize("opening", ALL_OPENINGS)
@pytest.mark.parametrize("place", ["file", "file/queue", "file/parent/queue"])
def test_path_is_or_goes_through_a_file(opening: Open, place: str, tmp_path: pathlib.Path) -> None:
    """A path that is a file, or leads through one, is named by the error, and the file is as before."""
    (tmp_path / "file").write_bytes(b"content")
    before = tree(tmp_path)
    with persipubsub.new_environment(tmp_path / place) as environment:
        with pytest.raises(errors.PathError) as raised:
            opening(environment)
    assert isinstance(raised.value, OSError) and raised.value.errno and raised.value.filename
    assert str(tmp_path / "file") in str(raised.value) and "use another path" in str(raised.value).lower()
    assert tree(tmp_path) == before


def attempt(path: str, opening: str) -> str:
    """Open a queue as a user without rights, in a process of its own; return the error's class and text."""
    if os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        with persipubsub.new_environment(path) as environment:
            getattr(environment, opening)(*([] if opening == "new_publisher" else ["a" if "sub" in opening else ["a"]]))
        return "nothing was raised"
    except OSError as error:
        return f"{type(error).__name__} {error.errno} {error}"
    except Exception as error:  # pylint: disable=broad-exception-caught  # whatever it is, the test shows it
        return f"{type(error).__name__} {error}"
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture(name="unprivileged", scope="module")
def unprivileged_fixture() -> Iterator[Callable[[pathlib.Path, str], str]]:
    """Return a function like attempt that runs in another process."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield lambda path, opening: executor.submit(attempt, str(path), opening).result(WAIT_S)


@pytest.fixture(name="shared_path")
def shared_path_fixture() -> Iterator[pathlib.Path]:
    """Return a directory that every user may enter and write, as tmp_path may not."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-errors-") as name:
        path = pathlib.Path(name)
        path.chmod(0o777)
        yield path
        for file in path.rglob("*"):
            if file.is_dir():
                file.chmod(0o700)


# Without root, the tests run as the owner: that is why the modes refuse the owner as well.
FORBIDDEN: Dict[str, Dict[str, int]] = {
    "the directory may not be entered": {
        "queue": 0o000
    },
    "the parent may not be entered": {
        ".": 0o000
    },
    "the data may not be read": {
        "queue": 0o777,
        "queue/data.mdb": 0o000
    },
    "the data may not be written": {
        "queue": 0o777,
        "queue/use.lock": 0o666,
        "queue/lock.mdb": 0o666,
        "queue/data.mdb": 0o444
    },
    "the lock may not be written": {
        "queue": 0o777,
        "queue/data.mdb": 0o666,
        "queue/use.lock": 0o666,
        "queue/lock.mdb": 0o444
    },
    "the use lock may not be written": {
        "queue": 0o777,
        "queue/data.mdb": 0o666,
        "queue/lock.mdb": 0o666,
        "queue/use.lock": 0o444
    },
}


@pytest.mark.parametrize("opening", ["new_publisher", "new_subscriber", "new_control"])
@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_permission(what: str, opening: str, shared_path: pathlib.Path, unprivileged: Callable[[pathlib.Path, str],
                                                                                                  str]) -> None:
    """A PathError about permissions names a queue that the user may not use; the queue is as before."""
    path = shared_path / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
    if os.geteuid() != 0:
        for file in path.iterdir():
            file.chmod(0o000)
    for name, mode in reversed(list(FORBIDDEN[what].items())):
        (shared_path / name).chmod(mode)
    modes = {name: (shared_path / name).lstat().st_mode for name in FORBIDDEN[what]}
    error = unprivileged(path, opening)
    assert modes == {name: (shared_path / name).lstat().st_mode for name in FORBIDDEN[what]}
    shared_path.chmod(0o777)
    path.chmod(0o777)
    for file in path.iterdir():
        file.chmod(0o600)
    assert re.match(r"PathError \S", error), error
    assert str(path) in error and re.search("permission", error, re.IGNORECASE), error
    with persipubsub.new_environment(path) as environment:
        assert environment.new_subscriber("a").front() == b"x" and environment.new_control().check() == ()


@pytest.mark.parametrize("place", ["locked/queue", "locked/parent/queue", "locked"])
def test_no_permission_to_make_a_queue(place: str, shared_path: pathlib.Path,
                                       unprivileged: Callable[[pathlib.Path, str], str]) -> None:
    """Where the user may not make a queue, a PathError says so, and nothing is left behind."""
    (shared_path / "locked").mkdir()
    (shared_path / "locked").chmod(0o555)
    error = unprivileged(shared_path / place, "new_control")
    assert error.startswith("PathError") and "permission" in error and str(shared_path / "locked") in error, error
    assert not list((shared_path / "locked").iterdir())


def mode_of(path: pathlib.Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(name="umask", params=[0o000, 0o077, 0o022])
def umask_fixture(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with different umasks."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode, directory_mode", [(None, 0o700), (0o600, 0o700), (0o660, 0o770), (0o640, 0o750),
                                                  (0o666, 0o777)])
def test_modes(mode: Optional[int], directory_mode: int, tmp_path: pathlib.Path) -> None:
    """Whatever the umask, only the owner may use a queue unless ``mode`` allows others, which may then enter it."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], mode=mode)
        environment.new_publisher().send(b"x")
        assert mode_of(path) == directory_mode
        files = {file.name: mode_of(file) for file in path.iterdir()}
        assert {"data.mdb", "lock.mdb", "use.lock"} <= set(files)
        assert set(files.values()) == {0o600 if mode is None else mode}, files


@pytest.mark.usefixtures("umask")
def test_modes_of_an_existing_queue(new_environment: MakeEnvironment) -> None:
    """``mode`` changes an existing queue, all its files; leaving it out keeps the modes as they are."""
    path = new_environment("a").path
    for mode, expected in ((0o660, (0o770, 0o660)), (None, (0o770, 0o660)), (0o600, (0o700, 0o600))):
        with new_environment("a", mode=mode) as environment:
            environment.new_publisher().send(b"x")
            assert (mode_of(path), *{mode_of(file) for file in path.iterdir()}) == expected


def test_the_group_may_use_what_the_mode_allows(shared_path: pathlib.Path, unprivileged: Callable[[pathlib.Path, str],
                                                                                                  str]) -> None:
    """With a mode for all, another user may use the queue; with the default mode not."""
    for mode, error in ((0o666, "nothing was raised"), (0o600, "PathError")):
        with persipubsub.new_environment(shared_path / str(mode)) as environment:
            environment.new_control(["a"], mode=mode)
            if os.geteuid() != 0 and mode == 0o600:
                (shared_path / str(mode)).chmod(0)
            assert unprivileged(shared_path / str(mode), "new_publisher").startswith(error)
            if os.geteuid() != 0:
                (shared_path / str(mode)).chmod(0o700)


@pytest.mark.parametrize("opening", ALL_OPENINGS)
@pytest.mark.parametrize("exists", [False, True])
def test_a_symlinked_use_lock_is_refused(opening: Open, exists: bool, tmp_path: pathlib.Path) -> None:
    """A link in place of ``use.lock`` is refused by name; its target is neither made nor used."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"])
    (path / "use.lock").unlink()
    (path / "use.lock").symlink_to(tmp_path / "target")
    if exists:
        (tmp_path / "target").write_bytes(b"content")
    before = tree(tmp_path)
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.PathError, match="use.lock"):
            opening(environment)
    assert tree(tmp_path) == before
    (path / "use.lock").unlink()


# The files


def foreign_lmdb(key: bytes, value: bytes, named: Optional[str] = None) -> Callable[[pathlib.Path], None]:
    """Make an LMDB file that is no queue."""

    def make(path: pathlib.Path) -> None:
        with lmdb.Environment(str(path), map_size=2**24, max_dbs=4) as environment:
            database = None if named is None else environment.open_db(named.encode())
            with environment.begin(write=True) as txn:
                txn.put(key, value, db=database)
        (path / "lock.mdb").unlink()

    return make


def with_content(content: bytes) -> Callable[[pathlib.Path], None]:
    """Make a data file of any content."""

    def make(path: pathlib.Path) -> None:
        path.mkdir()
        (path / "data.mdb").write_bytes(content)

    return make


FOREIGN = {
    "text": with_content(b"This is not a database.\n" * 1000),
    "a short text": with_content(b"hello"),
    "nothing": with_content(b""),
    "LMDB": foreign_lmdb(b"key", b"value"),
    "LMDB with a database": foreign_lmdb(b"key", b"value", "users"),
    "LMDB with a database named like ours": foreign_lmdb(b"key", b"value", "queue_db"),
    "LMDB with a key named like ours": foreign_lmdb(b"queue_db", b"value"),
}


@pytest.mark.damages_queues
@pytest.mark.parametrize("opening", ALL_OPENINGS)
@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_files(content: str, opening: Open, tmp_path: pathlib.Path) -> None:
    """A ``data.mdb`` of another program is refused with a FormatError that names it, and its bytes are as before."""
    path = tmp_path / "queue"
    FOREIGN[content](path)
    before = (path / "data.mdb").read_bytes(), mode_of(path), mode_of(path / "data.mdb")
    with persipubsub.new_environment(path) as environment:
        for _ in range(2):
            with pytest.raises(errors.FormatError) as raised:
                opening(environment)
            assert str(path) in str(raised.value)
    assert ((path / "data.mdb").read_bytes(), mode_of(path), mode_of(path / "data.mdb")) == before


@pytest.mark.damages_queues
@pytest.mark.parametrize("opening", ALL_OPENINGS)
def test_nothing_is_left_beside_foreign_files(opening: Open, tmp_path: pathlib.Path) -> None:
    """Where a ``data.mdb`` of another program is refused, no file of ours is left beside it."""
    path = tmp_path / "queue"
    FOREIGN["LMDB"](path)
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.FormatError):
            opening(environment)
    assert [file.name for file in path.iterdir()] == ["data.mdb"]


@pytest.mark.damages_queues
@pytest.mark.parametrize("opening", ALL_OPENINGS)
@pytest.mark.parametrize("version", [2, 0, 2**40, None])
def test_other_format_versions(version: Optional[int], opening: Open, new_environment: MakeEnvironment) -> None:
    """A queue of a newer, older or missing format version is refused: both versions and the remedy are named."""
    with new_environment("a") as environment:
        environment.new_publisher().send(b"x")
        path = environment.path
    with lmdb.Environment(str(path), max_dbs=32) as raw:
        database = raw.open_db(b"queue_db", create=False)
        with raw.begin(write=True) as txn:
            assert txn.get(b"format", db=database) == struct.pack(">Q", 1)
            if version is None:
                txn.delete(b"format", db=database)
            else:
                txn.put(b"format", struct.pack(">Q", version), db=database)
    before = (path / "data.mdb").read_bytes()
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.FormatError) as raised:
            opening(environment)
        for part in (str(path), "version 1", f"found: {'none' if version is None else version}", "Use the version"):
            assert part in str(raised.value)
    assert (path / "data.mdb").read_bytes() == before


# The classes


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The tree in the docstring of ``errors`` has every class, its base and its builtin base; so has ``__all__``."""
    drawn: Dict[str, Tuple[str, Optional[str]]] = {}
    stack: List[Tuple[int, str]] = [(-1, "PersipubsubError")]
    for indent, name, builtin in re.findall(r"^( *(?:\| *)*)\+-- (\w+)(?: \((\w+)\))?", errors.__doc__, re.MULTILINE):
        while stack[-1][0] >= len(indent):
            stack.pop()
        drawn[name] = stack[-1][1], builtin or None
        stack.append((len(indent), name))
    classes = {
        name: value
        for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    bases = {
        name: (value.__bases__[0].__name__, value.__bases__[1].__name__ if len(value.__bases__) > 1 else None)
        for name, value in classes.items() if value is not errors.PersipubsubError
    }
    assert drawn == bases and len(drawn) >= 15
    assert errors.PersipubsubError.__bases__ == (Exception, )
    assert errors.__all__ == sorted(classes)
    assert all(value.__doc__ for value in classes.values())


@pytest.mark.parametrize("name, builtin", [("ArgumentTypeError", TypeError), ("ArgumentError", ValueError),
                                           ("MessageTooLargeError", ValueError), ("BatchTooLargeError", ValueError),
                                           ("EmptyError", LookupError), ("UnknownSubscriberError", LookupError),
                                           ("PathError", OSError), ("DecodeError", ValueError),
                                           ("SubscriberKindError", TypeError)])
def test_errors_are_the_builtin_ones_too(name: str, builtin: Type[Exception]) -> None:
    """Catching the builtin class catches ours, and each of ours is a PersipubsubError."""
    kind = getattr(errors, name)
    assert issubclass(kind, builtin) and issubclass(kind, errors.PersipubsubError)
