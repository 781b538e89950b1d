"""What operates queues takes a URL wherever it takes a path, and shows no password: commands, configs, metrics."""

import json
import logging
import pathlib
import subprocess
import sys
from typing import Callable, List

import prometheus_client
import pytest

import persipubsub
from persipubsub import compaction, deployment, errors, migration, recovery
from persipubsub.metrics import QueueCollector
from persipubsub.status_reader import StatusReader
from tests.concurrency import wait_until
from tests.nats.servers import Servers, delete_queues

pytestmark = pytest.mark.slow  # starts many processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECRET = "s3cret"
USER = f'authorization {{ user: "shop", password: "{SECRET}" }}'
TIMEOUT_S = 120
HANDLER = """
def note(msg: bytes) -> None:
    with open("handled", "ab") as file:
        file.write(msg + b" ")
"""


@pytest.fixture(name="url")
def url_fixture(servers: Callable[..., Servers]) -> str:
    """Return the URL of a queue that does not exist, on a server that asks for a password."""
    return f"nats://shop:{SECRET}@{servers(1, more=USER).url.partition('://')[2]}/orders"


def run(*arguments: object, status: int = 0, stdin: str = "", cwd: pathlib.Path = ROOT) -> str:
    """Run the command, and return what it has written, which contains no password."""
    done = subprocess.run([sys.executable, "-m", "persipubsub", *map(str, arguments)],
                          cwd=cwd,
                          input=stdin,
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)
    written = done.stdout + done.stderr
    assert done.returncode == status, written
    assert SECRET not in written
    return written


def test_the_verbs(url: str) -> None:
    """A queue is set up, changed, filled, read and looked at by its URL."""
    assert "nats://shop:***@" in run("create", url, "--subscriber", "a", "--shared-subscriber", "w")
    run("send", url, stdin="x\ny\n")
    assert run("receive", url, "a", "--max", 1) == "x\n"
    assert "max_messages None -> 9" in run("set", url, "--max-messages", 9).replace("none", "None")
    run("subscriber", "add", url, "b")
    assert run("subscriber", "list", url).count("\n") >= 3
    found = json.loads(run("status", url, "--json"))[0]
    assert (found["messages"], found["subscribers"]["a"]["pending"]) == (2, 1)
    assert "orders" in run("status", url) and "orders" in run("top", url, "--interval", "0.1s")
    assert len(run("history", url).splitlines()) >= 2
    run("rewind", url, "a", "earliest")
    run("prune", url)
    run("dead-letters", "list", url, "w")
    run("clear", url, "--yes")
    assert json.loads(run("status", url, "--json"))[0]["messages"] == 0


@pytest.mark.parametrize("verb, more", [("check", ()), ("backup", ("copy", )), ("compact", ()), ("recover", ()),
                                        ("migrate", ("new", ))])
def test_verbs_about_files(verb: str, more: "tuple[str, ...]", tmp_path: pathlib.Path, url: str) -> None:
    """A verb about files ends with status 1, the reason and what to do instead."""
    run("create", url)
    said = run(verb, url, *(tmp_path / name for name in more), status=1)
    assert "A queue on a cluster has no files here" in said


@pytest.mark.parametrize("work", [
    recovery.check, recovery.recover, compaction.compact, lambda url: migration.migrate(url, "new"),
    lambda url: migration.migrate("old", url)
])
def test_functions_about_files(work: Callable[[str], object]) -> None:
    """A function that works on files raises UnsupportedError for a URL, and shows no password."""
    with pytest.raises(errors.UnsupportedError, match="no files here") as raised:
        work(f"nats://shop:{SECRET}@127.0.0.1:1/orders")
    assert SECRET not in str(raised.value)


def test_a_wrong_url(url: str) -> None:
    """A URL that is not that of a queue, and a queue that does not exist, are told without the password."""
    for wrong in (url.replace("/orders", "/or ders"), f"{url}?replicas=x", url):
        assert "nats://***@" in run("send", wrong, status=1) or wrong == url
        assert "nats://" in run("status", wrong, "--json", status=1)
        run("top", wrong, "--interval", "0.1s", status=1)


def test_looking_again_and_again(node: Servers, location: str) -> None:
    """A program that looks at a queue repeatedly keeps its connection, also after the queue is set up again."""
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["a"])
    reader = StatusReader()
    assert reader.read_status(location).messages == 0
    connections = node.nodes[0].ask("varz")["total_connections"]
    for _ in range(3):
        assert reader.read_status(location).messages == 0
    assert node.nodes[0].ask("varz")["total_connections"] == connections
    delete_queues([location])
    with pytest.raises(errors.PersipubsubError):
        reader.read_status(location)
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
        assert reader.read_status(location).messages == 1
    reader.close()


# Deployment


def config_of(tmp_path: pathlib.Path, url: str, **settings: object) -> pathlib.Path:
    """Write a config of a queue."""
    path = tmp_path / "queues.json"
    path.write_text(json.dumps({"queues": [{"path": url, **settings}]}), encoding="utf-8")
    return path


def test_deploying(tmp_path: pathlib.Path, url: str) -> None:
    """A config takes a URL: its queue is set up and changed, and what is described changes nothing."""
    config = config_of(tmp_path, url, subscribers=["a", {"identifier": "w", "shared": True}], retention_s=60)
    changes = deployment.deploy(config)
    assert {change.what for change in changes} >= {"queue", "retention_s", "subscriber"}
    assert SECRET not in "".join(map(str, changes))
    assert not deployment.deploy(config)
    described = deployment.describe(url)
    assert SECRET not in described
    (tmp_path / "described.json").write_text(described, encoding="utf-8")
    assert not deployment.plan(tmp_path / "described.json")
    assert "nothing" in run("deploy", config).lower()


@pytest.mark.parametrize("name, value", [("mode", "0600"), ("deduplication_max", 5), ("durability", "process_crash"),
                                         ("strategy", "prune_last")])
def test_deploying_what_a_cluster_cannot_do(name: str, value: object, tmp_path: pathlib.Path) -> None:
    """A config that asks for what a cluster cannot do is wrong, and nothing is set up."""
    config = config_of(tmp_path, f"nats://shop:{SECRET}@127.0.0.1:1/orders", **{name: value})
    with pytest.raises(errors.ConfigError, match=f"A queue on a cluster cannot have {name}") as raised:
        deployment.deploy(config)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("settings", [{
    "mode": 0o660
}, {
    "deduplication_max": 5
}, {
    "strategy": persipubsub.Strategy.prune_last
}, {
    "durability": persipubsub.Durability.PROCESS_CRASH
}])
def test_setting_up_what_a_cluster_cannot_do(settings: "dict[str, object]", location: str) -> None:
    """A queue is not even set up with settings that a cluster cannot have."""
    with persipubsub.new_environment(location) as environment:
        with pytest.raises(errors.UnsupportedError):
            environment.new_control(**settings)  # type: ignore[arg-type]  # one of several types
        with pytest.raises(errors.NotInitializedError):
            environment.new_control(create=False)


# Metrics and workers


def test_metrics(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A collector reports a queue at a URL; one that cannot be read is down, and the log shows no password."""
    with persipubsub.new_environment(url) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
    registry = prometheus_client.CollectorRegistry()
    with caplog.at_level(logging.DEBUG):
        registry.register(QueueCollector([url, url.replace("orders", "none")], isolated=True))
        found = prometheus_client.generate_latest(registry).decode()
    values: List[str] = [
        line for line in found.splitlines() if line.startswith(("persipubsub_up", "persipubsub_messages"))
    ]
    assert sorted(line.rpartition(" ")[2] for line in values) == ["0.0", "1.0", "1.0"]
    assert SECRET not in found + caplog.text and "orders" in found


def test_workers(tmp_path: pathlib.Path, url: str) -> None:
    """Worker processes handle the messages of a queue at a URL, with a password that only the first one was told."""
    (tmp_path / "jobs.py").write_text(HANDLER, encoding="utf-8")
    with persipubsub.new_environment(url) as environment:
        control = environment.new_control()
        control.add_subscriber("w", shared=True)
        environment.new_publisher().send_many([b"%d" % number for number in range(20)])
        command = [sys.executable, "-m", "persipubsub", "work", url, "w", "jobs:note", "--processes", "2"]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as program:
            try:
                wait_until(lambda: control.status().subscribers["w"].pending == 0)
            finally:
                program.terminate()
            _, said = program.communicate(timeout=TIMEOUT_S)
        assert program.returncode == 0 and SECRET not in said
    assert sorted(map(int, (tmp_path / "handled").read_text(encoding="utf-8").split())) == list(range(20))
