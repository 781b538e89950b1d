"""Connections: users, tokens, credentials and certificates, and that no secret is ever shown."""

import logging
import pathlib
import pickle
import ssl
import subprocess
import sys
import time
from typing import Any, Callable, Dict

import pytest

import persipubsub
from persipubsub import errors
from tests.conformance.children import forked
from tests.nats import authorities
from tests.nats.authorities import Authority
from tests.nats.servers import Servers

ROOT = pathlib.Path(__file__).resolve().parents[2]
NewServers = Callable[..., Servers]

USER = 'authorization { user: "shop", password: "s3cret@/" }'
TOKEN = 'authorization { token: "s3crettoken" }'


def use(location: str, **options: Any) -> None:
    """Send and receive a message."""
    with persipubsub.new_environment(location, **options) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
        with environment.new_subscriber("a").receive(timeout=0) as msg:
            assert msg == b"x"


@pytest.mark.parametrize("more, login, wrong", [(USER, "shop:s3cret%40%2F@", "shop:other@"),
                                                (TOKEN, "s3crettoken@", "other@"), (USER, "shop:s3cret%40%2F@", "")])
def test_a_login(more: str, login: str, wrong: str, servers: NewServers) -> None:
    """A user with a password, or a token, is let in; another one gets a PathError at once that shows no secret."""
    node = servers(1, more=more)
    host = node.url.partition("://")[2]
    use(f"nats://{login}{host}/orders")
    begin = time.monotonic()
    with pytest.raises(errors.PathError, match="refuses") as raised:
        use(f"nats://{wrong}{host}/orders")
    assert "other" not in str(raised.value) and time.monotonic() - begin < 10


def test_credentials(tmp_path: pathlib.Path, servers: NewServers) -> None:
    """A user with a file of signed credentials is let in, by an argument and by the location."""
    more, path = authorities.operator(tmp_path)
    node = servers(1, more=more)
    use(f"{node.url}/orders", credentials=path)
    use(f"{node.url}/others?credentials={path}")
    with pytest.raises(errors.PathError):
        use(f"{node.url}/orders")
    with pytest.raises(errors.PathError):
        use(f"{node.url}/orders", credentials=tmp_path / "none")


def test_certificates(tmp_path: pathlib.Path, servers: NewServers) -> None:
    """With tls:// the server must have a certificate of a known authority."""
    authority = Authority(tmp_path)
    node = servers(1, more=authorities.tls(*authority.issue("server")), scheme="tls")
    use(f"{node.url}/orders", tls=authority.certificate)
    use(f"{node.url}/others?ca={authority.certificate}")
    use(f"{node.url}/another", tls=ssl.create_default_context(cafile=str(authority.certificate)))
    for options in ({}, {"tls": Authority(tmp_path, "other").certificate}, {"tls": tmp_path / "none"}):
        with pytest.raises(errors.PathError):
            use(f"{node.url}/orders", **options)


def test_certificates_of_users(tmp_path: pathlib.Path, servers: NewServers) -> None:
    """A server may ask its users for certificates."""
    authority = Authority(tmp_path)
    node = servers(1, more=authorities.tls(*authority.issue("server"), authority.certificate), scheme="tls")
    certificate, key = authority.issue("user")
    use(f"{node.url}/orders", tls={"ca": authority.certificate, "certificate": certificate, "key": key})
    with pytest.raises((errors.PathError, errors.UnavailableError)):
        use(f"{node.url}/orders?timeout_s=1", tls=authority.certificate)


# Secrets


def test_no_secret_is_shown(servers: NewServers, caplog: pytest.LogCaptureFixture) -> None:
    """No password is in what objects show, in pickles, errors, the status or logs."""
    caplog.set_level(logging.DEBUG)
    node = servers(1, more=USER)
    location = f"nats://shop:s3cret%40%2F@{node.url.partition('://')[2]}/orders"
    with persipubsub.new_environment(location) as environment:
        with pytest.raises(errors.NotInitializedError) as raised:
            environment.new_publisher()
        control, made = environment.new_control(["a"]), [environment]
        made += [control, environment.new_publisher(), environment.new_subscriber("a")]  # type: ignore[list-item]
        shown = [
            *map(repr, made), *map(str, map(pickle.dumps, made)),
            str(raised.value),
            str(control.status()),
            str(environment.location), caplog.text
        ]
        environment.new_control().remove_subscriber("a")
        environment.new_publisher().send(b"for nobody")
        for text in (*shown, caplog.text):
            assert "s3cret" not in text
        assert all("shop:***@" in text for text in shown[:4])


def test_a_copy_by_pickle(servers: NewServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy in this process, and in a forked child, knows the password; elsewhere a variable has to say it."""
    node = servers(1, more=USER)
    location = f"nats://shop:s3cret%40%2F@{node.url.partition('://')[2]}/orders"
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["a"])
        pickled = pickle.dumps(environment)
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])).new_publisher().send(b'x')"
    command = [sys.executable, "-c", code, pickled.hex()]

    def send() -> None:
        with pickle.loads(pickled) as copy:
            copy.new_publisher().send(b"x")

    send()
    forked(send)
    lacking = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert lacking.returncode and "PERSIPUBSUB_NATS_SECRET" in lacking.stderr
    monkeypatch.setenv("PERSIPUBSUB_NATS_SECRET", "s3cret@/")
    subprocess.run(command, cwd=ROOT, check=True)
    with persipubsub.new_environment(location) as environment:
        assert environment.new_control().status().messages == 3


# Locations


@pytest.mark.parametrize("location", [
    "nats://", "nats://host", "nats://host/", "nats:///orders", "nats://host/a.b", "nats://host/a b", "nats://host/a/b",
    "nats://host:port/a", "nats://host:99999/a", "nats://host/a?replicas=0", "nats://host/a?replicas=6",
    "nats://host/a?replicas=x", "nats://host/a?unknown=1", "nats://host/a?replicas", "nats://u:s3cret@host/a?x=1"
])
def test_invalid_locations(location: str) -> None:
    """What is not the location of a queue on a cluster raises ArgumentError, which shows no secret."""
    with pytest.raises(errors.ArgumentError) as raised:
        persipubsub.new_environment(location)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("options", [{"credentials": 5}, {"tls": 5}, {"tls": {"unknown": "x"}}])
def test_invalid_options(options: Dict[str, Any]) -> None:
    """Credentials and certificates of another type raise ArgumentTypeError; for a directory there are none."""
    with pytest.raises(errors.ArgumentTypeError):
        persipubsub.new_environment("nats://host/a", **options)
    with pytest.raises(errors.ArgumentError):
        persipubsub.new_environment("directory", credentials="x")


def test_nobody_listens(servers: NewServers) -> None:
    """Where nobody listens, UnavailableError is raised when waiting is given up."""
    node = servers(1)
    node.stop()
    with pytest.raises(errors.UnavailableError, match="Nothing was changed"):
        use(f"{node.url}/orders?timeout_s=1")


def test_a_server_without_jetstream(servers: NewServers) -> None:
    """A server without JetStream is not available, and the error says what is lacking."""
    node = servers(1)
    path = node.nodes[0].directory / "nats.conf"
    node.stop()
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "jetstream" not in line))
    node.nodes[0].start()
    node.wait_until_ready()
    with pytest.raises(errors.UnavailableError, match="JetStream"):
        use(f"{node.url}/orders?timeout_s=1")
