"""What an import of the package loads, and what it shows."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import persipubsub
from tests.children import unmeasured

#: Imports whose cost only users of a queue should pay.
HEAVY = {"asyncio", "click", "google.protobuf", "icontract", "lmdb", "msgspec", "rich"}
#: What a program that sends and receives bytes does not need.
FOR_OTHERS = {"asyncio", "click", "google.protobuf", "json", "msgspec", "opentelemetry", "pydantic", "rich"}
#: Sends and receives in every way that needs none of them.
USE_BYTES = """
import sys
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as env:
    control = env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(max_messages=100),
                              strategy=persipubsub.Strategy.refuse)
    publisher, subscriber = env.new_publisher(), env.new_subscriber("a")
    publisher.send(b"1", deduplication_id="one", timeout=5)
    publisher.send_many([b"2", persipubsub.Envelope(b"3")], timeout=None)
    publisher.send_later(b"4", delay_s=0)
    with subscriber.receive() as msg:
        raise persipubsub.Retry(0)
    with subscriber.receive_delivery() as delivery:
        assert delivery.message == b"1"
    assert [delivery.headers for delivery in subscriber.deliveries(timeout=0)] == [{}] * 3
    control.status()
    control.check()
    env.stop()
"""


def run(program: str, *arguments: str) -> Any:  # Any: whatever the JSON holds
    """Run a program in a fresh interpreter, and return the JSON that it prints."""
    done = subprocess.run([sys.executable, "-c", program, *arguments],
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=60)
    return json.loads(done.stdout)


def loaded(statement: str) -> set[str]:
    """Return the modules that a statement loads in a fresh interpreter."""
    found = run(f"import json, sys; before = set(sys.modules); {statement}; "
                "print(json.dumps(sorted(set(sys.modules) - before)))")
    return set(found)


def test_import_loads_nothing_else() -> None:
    """An import of the package loads no other module of the package, and none of its dependencies."""
    modules = loaded("import persipubsub")
    assert {name for name in modules if name.startswith("persipubsub.")} | (modules & HEAVY) == set()


def test_errors_and_values_need_no_engine() -> None:
    """Errors and the values that describe a queue load neither LMDB nor icontract."""
    assert loaded("from persipubsub import HighWaterMark, errors") & HEAVY == set()


def test_bytes_need_no_codec(tmp_path: pathlib.Path) -> None:
    """A program that sends and receives bytes loads neither JSON nor a library for types, nor asyncio."""
    program = USE_BYTES + "print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "queue")],
        check=True,
        env=unmeasured(),  # coverage loads JSON
        stdout=subprocess.PIPE,
        text=True,
        timeout=60)
    assert "persipubsub.subscriber" in done.stdout.split()
    assert set(done.stdout.split()) & FOR_OTHERS == set()


@pytest.mark.parametrize("statement, module", [
    ("publisher.send(b'1', headers={'a': 'b'})", "msgspec"),
    ("env.new_async_publisher()", "asyncio"),
    ("env.new_publisher(message_type=dict)", "persipubsub.typed"),
])
def test_what_needs_a_module_loads_it(statement: str, module: str, tmp_path: pathlib.Path) -> None:
    """Headers load msgspec, endpoints for tasks load asyncio, and message types load their codec, when first used."""
    program = (f"import sys, persipubsub\nenv = persipubsub.new_environment({str(tmp_path / 'queue')!r})\n"
               "env.new_control(['a'])\npublisher = env.new_publisher()\n"
               f"before = {module!r} in sys.modules\n{statement}\nprint(before, {module!r} in sys.modules)")
    assert subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True,
                          timeout=60).stdout == "False True\n"


def test_dir_shows_the_public_names() -> None:
    """A fresh interpreter lists the public names only, and each of them exists."""
    program = "import json, persipubsub; before = dir(persipubsub); [getattr(persipubsub, name) for name in before]; "
    before, after = run(program + "print(json.dumps([before, dir(persipubsub)]))")
    assert before == after == sorted(persipubsub.__all__)


@pytest.mark.parametrize("name", persipubsub.__all__)
def test_each_name_loads_by_itself(name: str) -> None:
    """Each public name loads as the first one, by an attribute and by an import, as the same object."""
    assert run(f"import persipubsub; first = persipubsub.{name}; from persipubsub import {name}; "
               f"print('true' if {name} is first is persipubsub.{name} else 'false')")


def test_unknown_names_are_errors() -> None:
    """A name that does not exist raises AttributeError, also that of a dependency or of a private table."""
    for name in ("Enviroment", "icontract", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'persipubsub' has no attribute '{name}'"):
            getattr(persipubsub, name)


@pytest.mark.parametrize(("change", "why"), [
    ("sys.platform = 'win32'", "persipubsub runs on Linux and macOS, not on Windows"),
    ("sys.maxsize = 2**31 - 1", "persipubsub needs a 64-bit Python"),
],
                         ids=["Windows", "32 bits"])
def test_platform_error_comes_first(change: str, why: str) -> None:
    """On an unsupported platform, the import fails with the reason, before it loads anything else."""
    program = f"""
import json, sys
{change}
before = set(sys.modules)
try:
    import persipubsub
except ImportError as error:
    print(json.dumps([str(error), sorted(set(sys.modules) - before)]))
"""
    text, modules = run(program)
    assert text.startswith(why)
    # Finding the package may load what an editable installation needs.
    assert not [name for name in modules if name.partition(".")[0] in {"atexit", "importlib", "logging", *HEAVY}]


def test_exit_functions_of_a_program_can_send(tmp_path: pathlib.Path) -> None:
    """A function that a program registers with atexit before it uses the package can still send."""
    program = """
import atexit, json, sys
import persipubsub
atexit.register(lambda: print(json.dumps(publisher.send(b"1"))))
env = persipubsub.new_environment(sys.argv[1])
env.new_control(["a"])
publisher = env.new_publisher()
"""
    assert run(program, str(tmp_path / "queue")) == 1


FORK_DURING_AN_IMPORT = """
import importlib.abc, os, signal, sys, threading
import persipubsub

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "msgspec":
            begun.set()
            finish.wait(0.5)  # as a slow disk, while the module is locked

begun, finish = threading.Event(), threading.Event()
sys.meta_path.insert(0, Slow())
environment = persipubsub.new_environment(sys.argv[1])
environment.new_control(["a"])
publisher = environment.new_publisher()
thread = threading.Thread(target=publisher.send, args=(b"1", ), kwargs={"headers": {"a": "b"}})
thread.start()
begun.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    publisher.send(b"2", headers={"a": "b"})
    os._exit(0)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), environment.new_control().status().messages)
"""


@pytest.mark.slow
def test_a_fork_waits_for_an_import(tmp_path: pathlib.Path) -> None:
    """A child that is forked while another thread loads a module sends headers, which need that module."""
    done = subprocess.run([
        sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORK_DURING_AN_IMPORT,
        str(tmp_path / "queue")
    ],
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=60)
    assert done.stdout == "0 2\n"
