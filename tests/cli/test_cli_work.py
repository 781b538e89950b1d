"""Test the verb ``work``, as a user runs it."""

import json
import os
import signal

import pytest

from tests.cli.test_cli_operating import run
from tests.concurrency import wait_until
from tests.worker_programs import Shop, shop_fixture  # pylint: disable=unused-import  # a fixture

pytestmark = pytest.mark.slow  # starts many processes, or waits


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_the_job(shop: Shop, number: int) -> None:
    """SIGTERM or Ctrl-C lets a job of 2 s end, acknowledges it, and ends the command with status 0."""
    shop.send("sleep 2", "do")
    program = shop.work("queue", "workers", "jobs:obey")
    program.begun()
    program.send_signal(number)
    assert program.status() == 0
    assert program.rest() == ["end sleep 2"]
    assert (shop.pending, program.errors()) == (1, "")


def test_all_options_together(shop: Shop) -> None:
    """Processes that handle three messages each, at the same time, handle six orders, and stop well."""
    shop.send(*[json.dumps({"item": f"cup {number}"}) for number in range(6)])
    options = ["--processes", "2", "--threads", "3", "--max-messages", "3", "--max-seconds", "60", "--grace", "20"]
    program = shop.work("queue", "workers", "jobs:take_order", "--message-type", "jobs:Order", *options)
    assert sorted(program.lines(6)) == [f"order Order(item='cup {number}')" for number in range(6)]
    wait_until(lambda: shop.pending == 0)
    assert program.stop() == 0
    assert program.errors() == ""


def test_the_grace_is_that_of_the_option(shop: Shop) -> None:
    """A job that outlives the grace is given back, and the status is 1."""
    shop.send("sleep 600")
    program = shop.work("queue", "workers", "jobs:obey", "--grace", "0")
    program.begun()
    assert program.stop() == 1
    assert "ends after 0 s of grace" in program.errors()


def test_a_killed_process_is_replaced(shop: Shop) -> None:
    """A process that is killed is reported on standard error, and its message is handled by another one."""
    shop.set(lease_s=1)
    shop.send("sleep 2")
    program = shop.work("queue", "workers", "jobs:obey", "--processes", "4")
    os.kill(int(program.begun()[2]), signal.SIGKILL)
    assert program.begun()[3] == "2"
    assert program.lines(1) == ["end sleep 2"]
    assert program.stop() == 0
    assert shop.pending == 0
    assert program.errors().count("was killed by SIGKILL. Another one starts in 1 s.") == 1


def test_a_second_signal_aborts(shop: Shop) -> None:
    """The status after a second signal is that of a shell for a program that the signal ends."""
    shop.send("sleep 600")
    program = shop.work("queue", "workers", "jobs:obey", "--processes", "2")
    program.begun()
    program.send_signal(signal.SIGINT)
    program.send_signal(signal.SIGTERM)
    assert program.status() in (130, 143)  # the system may swap the signals
    with shop.env.new_subscriber("workers").receive(timeout=1) as message:
        assert message == b"sleep 600"


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("arguments", "status", "told"), [
    (["queue", "workers", "nowhere:function"], 1, "No module named 'nowhere'. No message was received."),
    (["queue", "workers", "broken:function"], 1, "The handler broken:function cannot be imported: ZeroDivisionError"),
    (["queue", "workers", "jobs:nothing"], 1, "module 'jobs' has no attribute 'nothing'"),
    (["queue", "workers", "jobs:obey", "--message-type", "jobs:obey"], 1, "message_type must be a class"),
    (["queue", "nobody", "jobs:obey"], 1, "The queue has no subscriber 'nobody'"),
    (["nowhere", "workers", "jobs:obey"], 1, "There is no queue at"),
    (["queue", "workers", "jobs:obey", "--grace", "nan"], 2, "'nan' is not a time"),
    (["queue", "workers"], 2, "Missing argument 'MODULE:FUNCTION'"),
])  # yapf: disable
def test_mistakes_are_errors_of_one_line(shop: Shop, processes: str, arguments: "list[str]", status: int,
                                         told: str) -> None:
    """A mistake ends the command before any message is received, and its last line says what is wrong."""
    shop.directory.joinpath("broken.py").write_text("1 / 0\n", encoding="utf-8")
    shop.send("do")
    program = shop.work(*arguments, "--processes", processes)
    assert program.status() == status
    line = program.errors().splitlines()[-1]
    assert line.startswith("Error: ") and told in line
    with shop.env.new_subscriber("workers").receive_delivery(timeout=0) as delivery:
        assert delivery is not None and delivery.delivery_count == 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_module_of_the_handler_configures_logging(shop: Shop, processes: str) -> None:
    """What is logged goes where the module of the handler sends it, once, and else to standard error."""
    shop.set(max_deliveries=1)
    shop.directory.joinpath("logged.py").write_text(
        "import logging, sys\n"
        "from jobs import obey\n"
        "logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(name)s %(message)s')\n",
        encoding="utf-8")
    shop.send("fail")
    program = shop.work("queue", "workers", "logged:obey", "--processes", processes)
    program.begun()
    wait_until(lambda: shop.pending == 0)
    assert program.stop() == 0
    assert [line for line in program.rest() if "failed" in line] == [
        "ERROR persipubsub.worker The handler logged:obey failed on message 1 of the subscriber 'workers' (delivery 1)."
    ]
    assert program.errors() == ""


def test_a_plain_subscriber_has_one_process(shop: Shop) -> None:
    """The error of several processes for a plain subscriber says which command shares it."""
    shop.control.add_subscriber("plain")
    done = run("work", shop.env.path, "plain", "builtins:print", "--processes", 2)
    assert done.returncode == 1 and "persipubsub subscriber add --shared" in done.stderr
