"""Test who may read and change, and how the command starts and ends."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from typing import Any, Callable, Iterator, List, Mapping

import httpx
import pytest

from persipubsub import Environment
from tests.dashboard.server import TOKEN, WAIT_S, WITH_TOKEN, Server, command, serving

pytestmark = pytest.mark.slow
#: What every response says, also one that refuses.
POLICY = ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'")


@pytest.fixture(name="jobs")
def fixture_jobs(new_environment: Callable[..., Environment]) -> Environment:
    """Set up a queue with three dead letters."""
    environment = new_environment(name="jobs")
    environment.new_control().add_subscriber("workers", shared=True, max_deliveries=1)
    environment.new_publisher().send_many([b"1", b"2", b"3"])
    for _ in range(3):
        with contextlib.suppress(KeyError), environment.new_subscriber("workers").receive():
            raise KeyError
    return environment


@pytest.fixture(name="changing")
def fixture_changing(jobs: Environment) -> Iterator[Server]:
    """Serve it with changes allowed. Reading needs no token, as by default."""
    with serving(jobs.path, "--allow-changes") as server:
        assert server.token is not None and len(server.token) >= 32
        yield server


def dead(jobs: Environment) -> int:
    """Return how many dead letters there are."""
    return jobs.new_control().status().subscribers["workers"].dead_letters


def change(server: Server, headers: Mapping[str, str], **body: Any) -> httpx.Response:
    """Ask for a change."""
    body = {"action": "requeue", "subscriber": "workers", "ids": None, **body}
    return httpx.post(f"{server.url}api/queues/{server.id_of('jobs')}/dead-letters",
                      json=body,
                      headers=headers,
                      timeout=WAIT_S)


def test_a_change_needs_the_option(jobs: Environment) -> None:
    """Without --allow-changes nothing can be changed, with whatever token."""
    with serving(jobs.path) as server:
        refused = change(server, WITH_TOKEN)
        assert refused.status_code == 403 and "--allow-changes" in refused.json()["error"]
        assert server.get("api/session").json()["changes"] is False
    with serving(jobs.path, "--token", TOKEN) as server:
        assert server.get("api/events").status_code == 401
        assert httpx.post(f"{server.url}api/queues/0/dead-letters", json={}, headers=WITH_TOKEN).status_code == 403
    assert dead(jobs) == 3


def test_a_change_needs_the_token(jobs: Environment, changing: Server) -> None:
    """A change without the token, or with another one, is refused; with it, messages are requeued and discarded."""
    right = {"Authorization": f"Bearer {changing.token}"}
    for wrong in ({}, WITH_TOKEN, {
            "Authorization": f"Basic {changing.token}"
    }, {
            "Cookie": f"token={changing.token}"
    }, {
            "Authorization": f"Bearer {changing.token}x"
    }, {
            "Authorization": "Bearer"
    }):
        assert change(changing, wrong).status_code == 401
    assert dead(jobs) == 3
    assert change(changing, right, ids=[1]).json() == {"count": 1}
    assert change(changing, right, action="discard", ids=[2, 77]).json() == {"count": 1}
    assert dead(jobs) == 1
    assert change(changing, right).json() == {"count": 1}
    assert [message.decode() for message in jobs.new_control().peek("workers", 9)] == ["1", "3"]


def test_a_strange_change_is_refused(jobs: Environment, changing: Server) -> None:
    """A body that does not say what to change is refused, and a change of all needs ``null``."""
    right = {"Authorization": f"Bearer {changing.token}"}
    strange: List[Mapping[str, Any]] = [{"action": "clear"}, {"ids": "all"}, {"ids": [True]}, {"ids": [2**63]},
                                        {"ids": [1] * 20000}, {"subscriber": None}]  # yapf: disable
    for body in strange:
        assert change(changing, right, **body).status_code == 400
    # Not kept in memory.
    assert change(changing, right, subscriber="x" * 10_000_000).status_code == 400
    assert change(changing, right, subscriber="nobody").status_code == 409
    assert dead(jobs) == 3


def test_a_foreign_page_gets_nothing(jobs: Environment, changing: Server) -> None:
    """What another site sends is refused, even with the token; so is reading."""
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
                    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):  # yapf: disable
        assert change(changing, {"Authorization": f"Bearer {changing.token}", **headers}).status_code == 403
        assert changing.get("api/events", headers=headers).status_code == 403
    assert dead(jobs) == 3


def test_an_unknown_name_gets_nothing(jobs: Environment) -> None:
    """A name that a foreign site lets point here (DNS rebinding) is refused; addresses and named hosts are not."""
    with serving(jobs.path, "--allow-host", "Queues.example.org") as server:
        bearer = {"Authorization": f"Bearer {server.token}"}
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "[x]"):
            assert server.get("api/session", headers={"Host": host, **bearer}).status_code == 421
        for host in ("localhost:1", "127.0.0.1", "[::1]:80", "queues.example.org", "192.168.1.7:8321"):
            assert server.get("api/session", headers={"Host": host, **bearer}).json()["may_read"] is True
        # Whoever comes through a proxy is not known to be on this machine.
        assert server.get("api/events").status_code == 401


def test_another_address_needs_the_token_for_reading(jobs: Environment) -> None:
    """Off loopback, nothing of a queue can be read without the token; the page itself has no secrets."""
    with serving(jobs.path, "--listen", "0.0.0.0:0", "--token", TOKEN) as server:
        local = server._replace(url=server.url.replace("0.0.0.0", "127.0.0.1"))
        id_ = local.queues(lambda queues: True, headers=WITH_TOKEN)["jobs"]["id"]
        for path in ("api/events", f"api/queues/{id_}/events", f"api/queues/{id_}/messages",
                     f"api/queues/{id_}/dead-letters?subscriber=workers"):
            assert local.get(path).status_code == 401
        assert local.get(f"api/queues/{id_}/messages", headers=WITH_TOKEN).status_code == 200
        page = local.get("")
        assert page.status_code == 200 and "jobs" not in page.text


def test_every_response_has_the_headers(changing: Server) -> None:
    """Pages, data, refusals and mistakes have the security policy and the other headers."""
    for path, headers in (("", {}), ("style.css", {}), ("api/session", {}), ("nothing", {}), ("", {
            "Host": "evil.example"
    }), ("api/queues/x/dead-letters", {})):
        found = changing.get(path, headers=headers).headers
        assert all(part in found["content-security-policy"] for part in POLICY)
        assert "unsafe" not in found["content-security-policy"]
        assert (found["x-content-type-options"], found["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "server" not in found and "access-control-allow-origin" not in found
    for path in ("%2e%2e/app.py", "..%2fapp.py", "../app.py", "index.html/", "uplot/../../app.py"):
        assert changing.get(path).status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_with_open_streams(jobs: Environment, number: int) -> None:
    """A signal ends the command with status 0 within seconds while streams are open, also one that nobody reads."""
    with serving(jobs.path) as server:
        address = urllib.parse.urlsplit(server.url)
        with socket.create_connection(("127.0.0.1", address.port or 0)) as stalled:
            stalled.sendall(f"GET /api/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            events = server.events("api/events")
            next(events)
            began = time.monotonic()
            assert server.stop(number) == ""
            assert time.monotonic() - began < 6
            with contextlib.suppress(httpx.HTTPError, StopIteration):
                while True:
                    next(events)


def test_a_port_in_use_is_an_error(jobs: Environment) -> None:
    """The error names the address, and is one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(command(jobs.path, "--listen", f"127.0.0.1:{port}"),
                                capture_output=True,
                                text=True,
                                check=False,
                                timeout=WAIT_S)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: Cannot listen on 127.0.0.1 port {port}: Address already in use.\n"


def test_without_the_extra_the_error_says_what_to_install(jobs: Environment) -> None:
    """Without starlette or uvicorn, the command says how to install them, and other commands work."""
    for name in ("starlette", "uvicorn"):
        code = f"import sys; sys.modules[{name!r}] = None\nfrom persipubsub.cli import main\nmain()"
        result = subprocess.run([sys.executable, "-c", code, "dashboard", jobs.path],
                                capture_output=True,
                                text=True,
                                check=False,
                                timeout=WAIT_S)
        assert result.returncode == 1 and "pip install 'persipubsub[dashboard]'" in result.stderr


def test_a_token_survives_its_link(jobs: Environment) -> None:
    """The link has a chosen token so that the page gets it back, whatever characters it has."""
    token = "100%41 & #secret-password"
    with serving(jobs.path, "--token", token) as server:
        assert server.token is not None and server.token != token
        assert urllib.parse.unquote(server.token) == token
        assert server.get("api/events", headers={"Authorization": f"Bearer {server.token}"}).status_code == 401


@pytest.mark.parametrize("name", ["queues.example.org:8443", "queues.example.org."])
def test_a_host_that_would_never_match_is_an_error(name: str, jobs: Environment) -> None:
    """A name with a port or a last dot is refused, since no request would match it."""
    done = subprocess.run(command(jobs.path, "--allow-host", name), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "leave out the port" in done.stderr


def test_many_lost_queues_stop_together() -> None:
    """However many queues do not answer, a stop waits for all of them together, and not for one after the other."""
    with serving(*(f"nats://127.0.0.1:1/q{number}" for number in range(12))) as server:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8
