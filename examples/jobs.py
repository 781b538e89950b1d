"""Handlers for ``persipubsub work``: retries, rejected messages, and a trace id that arrives.

Run it with ``python examples/jobs.py``. It takes some seconds: it starts four processes, kills some of them, stops the
program and starts it again. With ``SECOND_S=0.1``, the delays are shorter.

In production, this is all that has to run, for example by systemd::

    persipubsub work /var/lib/shop/payments cashiers jobs:charge --message-type builtins:dict --processes 4
"""

import contextlib
import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List

import persipubsub
from persipubsub import Delivery, Envelope, Publisher, Reject, Retry, Subscriber

SECOND_S = float(os.environ.get("SECOND_S", "1"))
#: The retries come after 1, 2 and 4 seconds.
RETRIES_MAX = 3
PAYMENTS = 40


@functools.lru_cache(maxsize=None)
def receipts() -> "Publisher[Dict[str, Any]]":
    """Return the publisher of the receipts: one for each process."""
    return persipubsub.new_environment(os.environ["RECEIPTS"]).new_publisher(message_type=dict)


def charge(delivery: Delivery[Dict[str, Any]]) -> None:
    """Charge a customer: the handler."""
    payment = delivery.message
    if payment["cents"] <= 0:
        raise Reject(f"{payment['cents']} cents cannot be charged")  # a dead letter at once
    if not bank_answers(payment, delivery.delivery_count):
        raise Retry(SECOND_S * 2**(delivery.delivery_count - 1))  # other payments do not wait
    # A process that dies here has sent the receipt, and the payment comes again. The id lets the receipt be sent once.
    receipt = {"payment": payment["number"], "process": os.getpid()}
    receipts().send(receipt, headers=delivery.headers, deduplication_id=f"payment {payment['number']}")


def bank_answers(payment: Dict[str, Any], attempt: int) -> bool:
    """Play the bank, which answers some payments only at the fourth attempt."""
    return payment["number"] % 10 != 0 or attempt > RETRIES_MAX


@contextlib.contextmanager
def working(queue: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the command in this directory, and stop it warmly."""
    command = [sys.executable, "-m", "persipubsub", "work", queue, "cashiers", "jobs:charge"]
    command += ["--message-type", "builtins:dict", "--processes", "4"]
    with subprocess.Popen(command, cwd=pathlib.Path(__file__).parent) as program:
        try:
            yield program
        finally:
            program.terminate()
        assert program.wait() == 0  # nothing was interrupted


def deploy(queue: str) -> None:
    """Set up the queues, and send the payments. Some of them cannot be charged."""
    with persipubsub.new_environment(os.environ["RECEIPTS"]) as env:
        env.new_control(subscriber_ids=["ledger"])
    with persipubsub.new_environment(queue) as env:
        env.new_control().add_subscriber("cashiers", shared=True, lease_s=2, max_deliveries=20)
        env.new_publisher(message_type=dict).send_many(
            Envelope({
                "number": number,
                "cents": 0 if number % 7 == 0 else 995
            }, {"traceparent": trace(number)}) for number in range(PAYMENTS))


def trace(number: int) -> str:
    """Return the trace id of a payment, as OpenTelemetry writes it."""
    return f"00-{number:032x}-00000000000000aa-01"


def kill(process: int) -> None:
    """Kill a process, and wait until its supervisor has noticed. Its payment comes again, to another process."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process, signal.SIGKILL)
            time.sleep(0.01)


def next_receipt(ledger: "Subscriber[Dict[str, Any]]") -> "Delivery[Dict[str, Any]]":
    """Wait for a receipt."""
    with ledger.receive_delivery(timeout=60) as receipt:
        assert receipt is not None
        return receipt


def main() -> None:
    """Deploy, work, and look at what is left."""
    with tempfile.TemporaryDirectory() as directory:
        queue, os.environ["RECEIPTS"] = os.path.join(directory, "payments"), os.path.join(directory, "receipts")
        deploy(queue)
        charged = [number for number in range(PAYMENTS) if number % 7]
        found: List[Delivery[Dict[str, Any]]] = []
        receipts_env, env = persipubsub.new_environment(os.environ["RECEIPTS"]), persipubsub.new_environment(queue)
        with receipts_env, env:
            ledger, control = receipts_env.new_subscriber("ledger", message_type=dict), env.new_control()
            with working(queue):
                for _ in range(random.randint(5, 15)):
                    found.append(next_receipt(ledger))
                kill(found[-1].message["process"])
            print("killed one process and stopped all after", len(found), "receipts")
            with working(queue):
                while len(found) < len(charged):
                    found.append(next_receipt(ledger))
                while control.status().subscribers["cashiers"].pending:
                    time.sleep(0.01)
            assert ledger.front() is None, "a receipt came twice"
            letters = list(control.dead_letters("cashiers"))
        assert sorted(receipt.message["payment"] for receipt in found) == charged
        assert all(receipt.headers["traceparent"] == trace(receipt.message["payment"]) for receipt in found)
        assert [letter.headers["traceparent"] for letter in letters] == [trace(n) for n in range(0, PAYMENTS, 7)]
        print(len(found), "receipts;", len(letters), "dead letters, such as:", letters[0].error_text)


if __name__ == "__main__":
    main()
