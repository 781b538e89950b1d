"""The examples for web frameworks, service managers, containers and notebooks do what their pages say."""

import ast
import asyncio
import configparser
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from types import ModuleType
from typing import Dict, Iterator, List, Tuple

import httpx
import pytest
import yaml

import persipubsub
from persipubsub import HighWaterMark, Strategy
from tests.concurrency import wait_until

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "frameworks"
PAGES = ROOT / "docs" / "frameworks"
#: For what takes seconds; only a hang takes longer.
TIMEOUT_S = 60


@pytest.fixture(name="environment")
def environment_fixture(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[persipubsub.Environment]:
    """Set up the queue of an example, which has room for 30 orders."""
    monkeypatch.setenv("QUEUE", str(tmp_path / "orders"))
    with persipubsub.new_environment(tmp_path / "orders") as environment:
        control = environment.new_control((), HighWaterMark(max_messages=30), Strategy.refuse)
        control.add_subscriber("packing", shared=True)
        yield environment


def loaded(name: str) -> ModuleType:
    """Load an example anew."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Web frameworks


def test_fastapi(environment: persipubsub.Environment) -> None:
    """FastAPI's lifespan opens the queue, the dependency can be replaced, and a full queue is an answer 503."""
    module = loaded("fastapi_orders")

    class Full:
        """A publisher of a queue without room."""

        async def send(self, *_args: object, **_kwargs: object) -> int:
            """Refuse the message."""
            raise persipubsub.errors.QueueFullError("full")

    async def order_things() -> None:
        transport = httpx.ASGITransport(app=module.app)
        async with module.lifespan(module.app), httpx.AsyncClient(transport=transport,
                                                                  base_url="http://test") as client:
            assert (await client.post("/orders", json={"item": "cup", "count": 2})).json() == {"message_id": 1}
            assert (await client.post("/orders", json={"item": "cup", "count": 0})).status_code == 422
            module.app.dependency_overrides[module.publisher] = Full
            assert (await client.post("/orders", json={"item": "cup", "count": 1})).status_code == 503

    asyncio.run(order_things())
    with environment.new_subscriber("packing").receive_many() as orders:
        assert [json.loads(order) for order in orders] == [{"item": "cup", "count": 2}]


@contextlib.contextmanager
def gunicorn(module: str, directory: pathlib.Path) -> "Iterator[int]":
    """Serve an example with two workers that gunicorn forks after loading it; provide the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--log-level", "warning"]
        environment = {
            **os.environ, "HOME": str(directory),
            "DATABASE": str(directory / "db.sqlite3"),
            "SECRET_KEY": "for this test"
        }
        with subprocess.Popen([*command, "--bind", f"fd://{listening.fileno()}", f"{module}:app"],
                              cwd=EXAMPLES,
                              env=environment,
                              pass_fds=[listening.fileno()]) as server:
            try:
                yield listening.getsockname()[1]
            finally:
                server.terminate()
        assert server.returncode == 0


def post(port: int, item: str) -> int:
    """Order something, until a worker answers; return the status. The worker that took the order may be killed."""
    body = urllib.parse.urlencode({"item": item})
    while True:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            try:
                connection.request("POST", "/orders", body, {"Content-Type": "application/x-www-form-urlencoded"})
                return connection.getresponse().status
            except (ConnectionError, http.client.HTTPException):
                continue


@pytest.mark.parametrize("module", ["flask_orders", "django_orders"])
def test_gunicorn_with_preload(module: str, environment: persipubsub.Environment, tmp_path: pathlib.Path) -> None:
    """Workers that gunicorn forks send through the queue that was opened before; one that is killed loses nothing."""
    subscriber, items, processes = environment.new_subscriber("packing", message_type=dict), [], set()
    with gunicorn(module, tmp_path) as port:
        for number in range(20):
            assert post(port, f"cup {number}") == 202
            with subscriber.receive() as order:
                assert order is not None
                items.append(order["item"])
                processes.add(order["process"])
            if number == 9:
                os.kill(order["process"], signal.SIGKILL)
        if module == "django_orders":
            assert post(port, "nothing") == 202  # the transaction was rolled back, so nothing was sent
    assert items == [f"cup {number}" for number in range(20)]
    assert len(processes) >= 2
    status = environment.new_control().status()
    assert status.messages == 0 and status.sent == 20


def test_a_handler_uses_django(environment: persipubsub.Environment, tmp_path: pathlib.Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker calls a handler that uses the database of the project."""
    monkeypatch.setenv("DATABASE", str(tmp_path / "db.sqlite3"))
    monkeypatch.setenv("SECRET_KEY", "for this test")
    environment.new_publisher(message_type=dict).send({"item": "cup"})
    work = ["persipubsub", "work", "orders", "packing", "django_packing:pack", "--message-type", "builtins:dict"]
    run_worker(work, ["packed cup"], tmp_path)


def test_a_full_queue_is_an_answer(environment: persipubsub.Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Flask application answers 503 while the queue has no room."""
    environment.new_publisher().send_many([b"{}"] * 30)
    module = loaded("flask_orders")
    monkeypatch.setattr(module.orders, "send", lambda order, timeout: type(module.orders).send(module.orders, order))
    try:
        assert module.app.test_client().post("/orders", data={"item": "cup"}).status_code == 503
    finally:
        module.env.close()


def test_uvloop() -> None:
    """The program for uvloop runs to its end, on a loop of uvloop."""
    done = subprocess.run([sys.executable, EXAMPLES / "uvloop_orders.py"],
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=TIMEOUT_S)
    assert done.stdout == "received 100 orders on uvloop\n"


# Services


def unit() -> "configparser.ConfigParser":
    """Read the unit of systemd."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of settings have capital letters
    parser.read(EXAMPLES / "packing.service")
    return parser


def test_the_unit_is_one_of_systemd(tmp_path: pathlib.Path) -> None:
    """The unit has the sections of a service, and systemd finds no fault with it where it is installed."""
    assert unit().sections() == ["Unit", "Service", "Install"]
    program = shutil.which("systemd-analyze")
    if program is None:
        return  # most containers have none
    text = (EXAMPLES / "packing.service").read_text(encoding="utf-8")
    text = text.replace("/srv/shop/venv/bin/persipubsub", str(pathlib.Path(sys.executable).with_name("persipubsub")))
    (tmp_path / "packing.service").write_text(text, encoding="utf-8")
    done = subprocess.run([program, "verify", "--man=no", tmp_path / "packing.service"],
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)
    complaints = [line for line in done.stderr.splitlines() if "packing.service" in line]
    assert complaints == []


def commands(environment: persipubsub.Environment, tmp_path: pathlib.Path) -> Dict[str, List[str]]:
    """Return the commands of the unit, with this Python and this queue."""
    service = unit()["Service"]
    text = (EXAMPLES / "queues.json").read_text(encoding="utf-8")
    (tmp_path / "queues.json").write_text(text.replace("/var/lib/shop/orders", str(environment.path)), encoding="utf-8")
    shutil.copy(EXAMPLES / "packing.py", tmp_path)
    found = {}
    for name in ("ExecStartPre", "ExecStart"):
        command = shlex.split(service[name].replace("/var/lib/shop/orders", str(environment.path)))
        assert command[0] == "/srv/shop/venv/bin/persipubsub"
        found[name] = [sys.executable, "-m", "persipubsub", *command[1:]]
    return found


def test_the_unit_sets_up_works_and_stops(environment: persipubsub.Environment, tmp_path: pathlib.Path) -> None:
    """The commands of the unit set the queue up, handle orders, and stop at SIGTERM before systemd would kill them."""
    run = commands(environment, tmp_path)
    subprocess.run(run["ExecStartPre"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
    policy = environment.new_control().status().subscribers["packing"].policy
    assert policy is not None and policy.lease_s == 60
    environment.new_publisher(message_type=dict).send({"item": "cup"})
    with subprocess.Popen(run["ExecStart"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
        try:
            wait_until(lambda: environment.new_control().status().messages == 0)
        finally:
            program.terminate()
            printed = program.communicate(timeout=TIMEOUT_S)[0]
    assert (printed, program.returncode) == ("packed cup\n", 0)
    grace_s = float(re.findall(r"--grace (\d+)", unit()["Service"]["ExecStart"])[0])
    assert float(unit()["Service"]["TimeoutStopSec"]) > grace_s


def test_the_compose_file() -> None:
    """All services of a queue share its volume and one pid namespace, and workers have longer than their grace."""
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    volume, = {tuple(service["volumes"]) for service in services.values()}
    name, target = volume[0].split(":")
    assert name in compose["volumes"]
    config = json.loads((EXAMPLES / "queues.json").read_text(encoding="utf-8"))
    path = config["queues"][0]["path"]
    assert path.startswith(target) and path in services["packing"]["command"]
    assert services["packing"]["pid"] == "service:web" and "web" in services["packing"]["depends_on"]
    grace_s, = [float(word.partition("=")[2]) for word in services["packing"]["command"] if word.startswith("--grace")]
    assert float(services["packing"]["stop_grace_period"].rstrip("s")) > grace_s
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            assert other in services
            assert condition["condition"] in {"service_started", "service_healthy", "service_completed_successfully"}
        assert service["build"] == "." and isinstance(service.get("command", []), list)
    docker = shutil.which("docker")
    if docker is not None and not subprocess.run([docker, "compose", "version"], capture_output=True,
                                                 check=False).returncode:
        subprocess.run([docker, "compose", "--file", EXAMPLES / "compose.yaml", "config", "--quiet"], check=True)


def test_the_dockerfile() -> None:
    """Each line of the Dockerfile is an instruction; it copies what is there, drops root, and runs without a shell."""
    lines = [
        line.split(maxsplit=1) for line in (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    names = [name for name, _ in lines]
    assert names[0] == "FROM" and set(names) == {"FROM", "COPY", "RUN", "WORKDIR", "USER", "VOLUME", "ENV", "CMD"}
    for name, rest in lines:
        if name == "COPY":
            assert all(source == "persipubsub" or (EXAMPLES / source).exists() for source in rest.split()[:-1])
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    command = json.loads(dict(zip(names, (rest for _, rest in lines)))["CMD"])
    assert (EXAMPLES / f"{command[-1].partition(':')[0]}.py").exists()
    assert names.index("USER") < names.index("CMD")


# Notebooks


def cells(page: pathlib.Path) -> List[str]:
    """Return the blocks of a page that are not run as plain Python."""
    blocks = re.findall(r"^\.\. code-block:: py\n\n((?:    .*\n|\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE).strip() for block in blocks]


NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in sys.stdin.read().split("# next cell"):
    shell.run_cell(cell).raise_error()
"""


def test_the_notebook(tmp_path: pathlib.Path) -> None:
    """The cells of the page on Jupyter run in IPython, in their order; those that await do so without asyncio.run."""
    found = cells(PAGES / "jupyter.rst")
    assert len(found) >= 3 and any("await " in cell for cell in found)
    subprocess.run([sys.executable, "-c", NOTEBOOK],
                   cwd=tmp_path,
                   env={
                       **os.environ, "IPYTHONDIR": str(tmp_path / "ipython")
                   },
                   input="\n# next cell\n".join(found),
                   text=True,
                   check=True,
                   timeout=TIMEOUT_S)


# The same programs before and after


@pytest.mark.parametrize("page",
                         sorted((ROOT / "docs" / "recipes").glob("replacing_*.rst")),
                         ids=lambda page: page.stem)
def test_programs_before_are_python(page: pathlib.Path) -> None:
    """The programs of other libraries that a page begins with can be compiled."""
    for block in cells(page):
        ast.parse(block)


def shown_commands(page: pathlib.Path) -> "List[Tuple[List[str], List[str]]]":
    """Return the commands that a page shows, each with the lines that it prints."""
    found = re.findall(r"^    \$ (.*)\n((?:    (?!\$ ).*\n)*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [(shlex.split(command), [line.strip() for line in printed.splitlines()]) for command, printed in found]


def run_worker(arguments: List[str], expected: List[str], directory: pathlib.Path) -> None:
    """Run a worker until it has printed what a page shows and nothing is left to do, and stop it."""
    python_path = ":".join(map(str, (EXAMPLES.parent / "coming_from", EXAMPLES, ROOT)))
    with persipubsub.new_environment(directory / arguments[2]) as environment, subprocess.Popen(
        [sys.executable, "-m", *arguments],
            cwd=directory,
            env={
                **os.environ, "PYTHONPATH": python_path
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True) as program:
        control = environment.new_control()
        try:
            wait_until(lambda: control.status().messages + control.status().delayed == 0)
        finally:
            program.terminate()
            printed = program.communicate(timeout=TIMEOUT_S)[0]
        assert program.returncode == 0
    assert sorted(printed.splitlines()) == sorted(expected)


@pytest.mark.parametrize("name, dead_letters", [("celery", []), ("rq", ["There is no month 2026-13."]),
                                                ("dramatiq", ["dog.gif is not a PNG"])])
def test_programs_after_do_what_the_page_shows(name: str, dead_letters: List[str], tmp_path: pathlib.Path) -> None:
    """The program that replaces one of another library sends, and its worker prints what the page shows."""
    page = ROOT / "docs" / "recipes" / f"replacing_{name}.rst"
    (script, nothing), (work, printed), *others = shown_commands(page)
    assert script[0] == "python" and nothing == [] and work[:2] == ["persipubsub", "work"]
    subprocess.run([sys.executable, EXAMPLES.parent / "coming_from" / script[1], *script[2:]],
                   cwd=tmp_path,
                   check=True,
                   timeout=TIMEOUT_S)
    run_worker(work, printed, tmp_path)
    for command, _ in others:
        subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    with persipubsub.new_environment(tmp_path / work[2]) as environment:
        assert [letter.error_text for letter in environment.new_control().dead_letters(work[3])] == dead_letters
