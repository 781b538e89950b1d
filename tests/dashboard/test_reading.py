"""Test what the dashboard shows of queues, and that its looks leave them as they are."""

import contextlib
import os
import pathlib
import shutil
import socket
import urllib.parse
from typing import Any, Callable, Dict, Iterator

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy
from persipubsub.dashboard import findings, reading
from persipubsub.dashboard.history import SLOT_S, SLOTS_MAX, History
from persipubsub.lmdb_engine.process import files
from tests.damages import end_readers
from tests.dashboard.server import Server, serving

pytestmark = pytest.mark.slow


@pytest.fixture(name="orders")
def fixture_orders(new_environment: Callable[..., Environment]) -> Environment:
    """Set up a queue with a message of each kind, and a dead letter."""
    environment = new_environment("billing", name="orders", high_watermark=HighWaterMark(3600.0, 100, None))
    environment.new_control().add_subscriber("packing", shared=True, max_deliveries=1)
    publisher = environment.new_publisher()
    publisher.send(b'{"id": 12345678901234567890, "item": "cup"}', headers={"content-type": "application/json"})
    publisher.send("Größe".encode())
    publisher.send(b"\xff\x00" + bytes(reading.SHOWN_BYTES_MAX))
    with contextlib.suppress(KeyError), environment.new_subscriber("packing").receive():
        raise KeyError("address")
    return environment


def messages_of(server: Server, name: str, query: str = "") -> Any:
    """Return what the page gets of a queue's messages."""
    return server.get(f"api/queues/{server.id_of(name)}/messages{query}").json()


def test_numbers_are_live(orders: Environment) -> None:
    """What a queue has is shown at once, and what is sent and acknowledged afterwards changes it."""
    with serving(orders.path) as server:
        found = server.queues(lambda queues: "backlog" in queues["orders"])["orders"]
        assert (found["backlog"], found["dead_letters"], found["max_messages"]) == (3, 1, 100)
        assert found["laggard"] == {"name": "billing", "pending": 3}
        orders.new_publisher().send_many([b"x"] * 50)
        found = server.queues(lambda queues: queues["orders"]["backlog"] == 53)["orders"]
        assert server.queues(lambda queues: queues["orders"]["sent_per_s"])["orders"]["sent"] == 53


def test_a_look_changes_nothing(orders: Environment, new_environment: Callable[..., Environment]) -> None:
    """Status, messages and dead letters are shown without a write to the queue: not even expired messages go."""
    old = new_environment("a", name="old", high_watermark=HighWaterMark(message_timeout=0.05))
    old.new_publisher().send(b"expires soon")
    data = [pathlib.Path(one.path) / "data.mdb" for one in (orders, old)]
    with serving(orders.path, old.path) as server:
        server.queues(lambda queues: queues["old"].get("backlog") == 0)
        before = [one.read_bytes() for one in data]
        for name in ("orders", "old"):
            messages_of(server, name)
            server.get(f"api/queues/{server.id_of(name)}/dead-letters?subscriber=packing")
            next(server.events(f"api/queues/{server.id_of(name)}/events"))
        assert [one.read_bytes() for one in data] == before
    assert orders.new_control().status().subscribers["billing"].pending == 3


def test_a_look_creates_nothing(orders: Environment, tmp_path: pathlib.Path) -> None:
    """A queue that does not exist is shown as missing, and so is an unknown subscriber; nothing is made."""
    with serving(orders.path, tmp_path / "none") as server:
        found = server.queues(lambda queues: all(one["state"] != "waiting" for one in queues.values()))
        assert found["none"]["state"] == "missing" and "persipubsub create" in found["none"]["findings"][0]["text"]
        refused = server.get(f"api/queues/{server.id_of('orders')}/dead-letters?subscriber=nobody")
        assert refused.status_code == 409 and "nobody" in refused.json()["error"]
        assert server.get("api/queues/0123456789ab/messages").status_code == 404
    assert not (tmp_path / "none").exists()
    assert set(orders.new_control().status().subscribers) == {"billing", "packing"}


@pytest.mark.damages_queues
def test_a_broken_queue_disturbs_no_other(orders: Environment, tmp_path: pathlib.Path) -> None:
    """Beside queues that end their reader, are locked, are no queues or are deleted, the others stay live."""
    for name in ("crashing", "locked", "deleted"):
        with persipubsub.new_environment(tmp_path / name) as environment:
            environment.new_control(["a"])
            environment.new_publisher().send(bytes(4 * 2**20))
    end_readers(tmp_path / "crashing")
    kept = files.UseLock(tmp_path / "locked", 0o600)
    assert kept.try_exclusive()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.mdb").write_bytes(b"something else" * 1000)
    names = ("crashing", "locked", "other", "deleted")
    with serving(orders.path, *(tmp_path / name for name in names)) as server:
        server.queues(lambda queues: "backlog" in queues["orders"] and "backlog" in queues["deleted"])
        shutil.rmtree(tmp_path / "deleted")
        wanted = {"crashing": "damaged", "locked": "unreadable", "other": "not a queue", "deleted": "missing"}
        server.queues(lambda queues: {name: queues[name]["state"] for name in names} == wanted)
        orders.new_publisher().send(b"x")
        server.queues(lambda queues: queues["orders"]["backlog"] == 4)
        # Whatever was wrong may be put right.
        kept.close()
        with persipubsub.new_environment(tmp_path / "deleted") as environment:
            environment.new_control(["a"])
        server.queues(lambda queues: queues["locked"]["state"] == "ok" and queues["deleted"].get("backlog") == 0)


def test_messages_are_shown_as_what_they_are(orders: Environment) -> None:
    """JSON keeps its numbers as they are written, text is text, bytes are bytes, and a large message is cut."""
    with serving(orders.path) as server:
        first, second, third = messages_of(server, "orders")["messages"]
        assert first["headers"] == [["content-type", "application/json"]]
        assert '"id": 12345678901234567890' in first["json"]
        assert (second["text"], second["json"], second["cut"]) == ("Größe", None, False)
        assert (third["text"], third["size"], third["cut"]) == (None, reading.SHOWN_BYTES_MAX + 2, True)
        assert len(third["base64"]) <= reading.SHOWN_BYTES_MAX * 4 / 3 + 4
        assert [one["id"] for one in messages_of(server, "orders", "?start=2")["messages"]] == [2, 3]
        assert [one["id"] for one in messages_of(server, "orders", "?start=-1")["messages"]] == [3]
        letters = server.get(f"api/queues/{server.id_of('orders')}/dead-letters?subscriber=packing").json()["letters"]
        assert [(one["reason"], one["error_type"], one["deliveries"]) for one in letters] == [("raised", "KeyError", 1)]


def test_queues_that_look_alike_are_told_apart(tmp_path: pathlib.Path) -> None:
    """A path that is not UTF-8 is shown with an escape. A path with the characters of the escape is another queue."""
    paths = [os.fsencode(tmp_path) + name for name in (b"/x\xff", b"/x\\xff")]
    for path in paths:
        with persipubsub.new_environment(os.fsdecode(path)) as environment:
            environment.new_control(["a"])
    with serving(*map(os.fsdecode, paths)) as server:
        shown = next(server.events("api/events"))["queues"]
        assert len({one["id"] for one in shown}) == len(shown) == 2


def test_json_that_indentation_makes_long_is_shown_as_it_is(new_environment: Callable[..., Environment]) -> None:
    """Deep JSON, and JSON of many short values, is not indented: a few messages would make an answer of megabytes."""
    environment = new_environment("a", name="deep")
    deep = b"[" * 900 + b"1," * 7000 + b"1" + b"]" * 900
    many = b"[" + b",".join([b"[[[[1]]]]"] * 1600) + b"]"
    environment.new_publisher().send_many([deep, many, b"[1]"])
    with serving(environment.path) as server:
        shown = messages_of(server, "deep", "?start=1")["messages"]
        assert [one["json"] for one in shown] == [None, None, "[\n  1\n]"]
        assert len(messages_of(server, "deep", "?start=--1")["messages"]) == 3  # no number: the default


def test_many_messages_come_in_pages(new_environment: Callable[..., Environment]) -> None:
    """An answer has a bounded number of messages, and says where to continue."""
    environment = new_environment("a")
    environment.new_publisher().send_many([b"x"] * 120)
    with serving(environment.path) as server:
        seen, start = [], 1
        while start is not None:
            found = messages_of(server, "queue", f"?start={start}")
            assert len(found["messages"]) <= reading.COUNT_MAX
            seen += [one["id"] for one in found["messages"]]
            start = found["next"]
        assert seen == list(range(1, 121))


def test_protobuf_is_decoded_where_its_module_is_named(new_environment: Callable[..., Environment]) -> None:
    """A message of protobuf is shown as JSON if --import names its module; otherwise the page says what to do."""
    known = new_environment("a", name="known", message_type="google.protobuf.Timestamp")
    other = new_environment("a", name="other", message_type="shop.Order")
    for environment in (known, other):
        environment.new_publisher().send(b"\x08\x01")
    with serving(known.path, other.path, "--import", "google.protobuf.timestamp_pb2") as server:
        assert messages_of(server, "known")["messages"][0]["protobuf"] == '"1970-01-01T00:00:01Z"'
        assert "--import MODULE" in messages_of(server, "other")["messages"][0]["protobuf_error"]


@pytest.fixture(name="stalled")
def fixture_stalled() -> Iterator[Callable[[Server], socket.socket]]:
    """Open streams of events that nobody reads."""
    with contextlib.ExitStack() as stack:

        def stall(server: Server) -> socket.socket:
            address = urllib.parse.urlsplit(server.url)
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", address.port or 0)))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            opened.sendall(f"GET /api/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            return opened

        yield stall


def test_a_slow_reader_holds_up_nobody(orders: Environment, stalled: Callable[[Server], socket.socket]) -> None:
    """While some read nothing of their streams, others get events; and two dashboards show the same."""
    with serving(orders.path) as server, serving(orders.path) as other:
        for _ in range(20):
            stalled(server)
        for number in range(4, 8):
            orders.new_publisher().send(b"x")
            for one in (server, other):
                found: Dict[str, Any] = one.queues(lambda queues, number=number: queues["orders"].get("backlog") ==
                                                   number)  # type: ignore[misc]  # mypy cannot infer the default
                assert found["orders"]["sent"] == number


def test_the_history_is_bounded(new_environment: Callable[..., Environment]) -> None:
    """Of one hour, one sample of each slot is kept, and older ones are dropped."""
    status = new_environment("a", "b").new_control().status()
    history = History()
    for step in range(3 * SLOTS_MAX):
        history.add(1000.0 + step * SLOT_S / 2, status)
    times = [sample.time_s for sample in history.samples]
    assert len(times) == SLOTS_MAX and times == sorted(times)
    assert times[-1] - times[0] == pytest.approx(SLOT_S * (SLOTS_MAX - 1), abs=SLOT_S)
    assert history.after(times[-1] - SLOT_S) == [history.samples[-1]]


def test_trouble_is_found(new_environment: Callable[..., Environment]) -> None:
    """A full queue, a stuck worker and dead letters are found, and a queue that works has no findings."""
    environment = new_environment(high_watermark=HighWaterMark(None, 2, None), strategy=Strategy.refuse)
    control = environment.new_control()
    control.add_subscriber("workers", shared=True, lease_s=0.01, max_deliveries=1)

    def kinds(history: History, now_s: float) -> Any:
        status = control.status()
        history.add(now_s, status)
        return [one.kind for one in findings.of(status, history, now_s)]

    assert kinds(History(), 0) == []
    environment.new_publisher().send_many([b"x", b"y"])
    assert kinds(History(), 0) == ["full"]
    with contextlib.suppress(ValueError), environment.new_subscriber("workers").receive():
        raise ValueError
    assert kinds(History(), 0) == ["dead letters"]


def test_a_stuck_worker_is_found(new_environment: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber whose oldest message is old, and that acknowledges nothing, is stuck; one that works is not."""
    monkeypatch.setattr(findings, "STUCK_S", 0.0)
    environment = new_environment("a")
    control, history = environment.new_control(), History()
    environment.new_publisher().send_many([b"x", b"y"])
    history.add(100.0, control.status())
    assert findings.of(control.status(), history, 105.0) == []
    assert [one.kind for one in findings.of(control.status(), history, 111.0)] == ["stuck"]
    environment.new_subscriber("a").pop()
    history.add(112.0, control.status())
    assert findings.of(control.status(), history, 113.0) == []
