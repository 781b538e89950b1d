"""An order service that refuses orders while too many are pending.

Run it with ``python examples/orders.py``. A queue with ``Strategy.refuse`` deletes nothing when it is full. ``send``
raises ``QueueFullError`` instead, which the service turns into an answer. A job that may wait sends with a timeout.
"""

import http
import pathlib
import tempfile
import threading
from typing import Dict

import persipubsub
from persipubsub import HighWaterMark, Publisher, Strategy
from persipubsub.errors import QueueFullError

PENDING_MAX = 10_000


def deploy(queue: pathlib.Path) -> None:
    """Set up the queue, once."""
    with persipubsub.new_environment(queue) as env:
        control = env.new_control(high_watermark=HighWaterMark(max_messages=PENDING_MAX), strategy=Strategy.refuse)
        control.add_subscriber("packing", shared=True)


def accept(publisher: "Publisher[Dict[str, int]]", order: int) -> http.HTTPStatus:
    """Accept an order once it is on disk, or refuse it."""
    try:
        publisher.send({"order": order})
    except QueueFullError:
        return http.HTTPStatus.SERVICE_UNAVAILABLE  # the customer tries again later
    return http.HTTPStatus.ACCEPTED


def pack(queue: pathlib.Path, count: int) -> None:
    """Handle some orders."""
    with persipubsub.new_environment(queue) as env:
        with env.new_subscriber("packing", message_type=dict).receive_many(max_messages=count) as orders:
            print("packed", len(orders), "orders, from", orders[0]["order"], "to", orders[-1]["order"])


def main() -> None:
    """Fill the queue, be refused, and continue when there is room."""
    with tempfile.TemporaryDirectory() as directory:
        queue = pathlib.Path(directory) / "orders"
        deploy(queue)
        with persipubsub.new_environment(queue) as env:
            publisher = env.new_publisher(message_type=dict)
            publisher.send_many({"order": number} for number in range(PENDING_MAX - 1))
            answers = [accept(publisher, number) for number in (PENDING_MAX - 1, PENDING_MAX)]
            print("the answers to the last two orders:", *answers)
            assert answers == [202, 503]

            packer = threading.Timer(0.2, pack, [queue, 100])
            packer.start()
            publisher.send({"order": PENDING_MAX}, timeout=60)  # waits until there is room
            packer.join()

            status = env.new_control().status()
            assert status.subscribers["packing"].pending == PENDING_MAX - 100 + 1
            assert status.pruned.overflow == 0


if __name__ == "__main__":
    main()
