"""Three processes pass protobuf messages on: a shop sends orders, billing makes invoices, the books add them up.

Run it with ``python examples/protobuf/pipeline.py``. It uses a temporary directory, and prints what was ordered and
what is to be paid. ``shop_pb2.py`` and its types are made of ``shop.proto``, in this directory, by::

    pip install grpcio-tools mypy-protobuf
    python -m grpc_tools.protoc --proto_path=. --python_out=. --mypy_out=. shop.proto
"""

import multiprocessing
import pathlib
import tempfile

from shop_pb2 import Invoice, Order

import persipubsub

PRICES_CENTS = {"tea": 499, "cup": 1250}
ORDERS = [Order(number=1, item="tea", pieces=2), Order(number=2, item="cup", pieces=6)]


def shop(orders: pathlib.Path) -> None:
    """Send all orders in one commit."""
    with persipubsub.new_environment(orders) as env:
        env.new_publisher(message_type=Order).send_many(ORDERS)


def billing(orders: pathlib.Path, invoices: pathlib.Path) -> None:
    """Make an invoice of each order, which is taken when that is on the disk: it may be made twice, but not never."""
    with persipubsub.new_environment(orders) as orders_env, persipubsub.new_environment(invoices) as invoices_env:
        subscriber = orders_env.new_subscriber("billing", message_type=Order)
        publisher = invoices_env.new_publisher(message_type=Invoice)
        for _ in ORDERS:
            with subscriber.receive(timeout=60) as order:
                assert order is not None
                cents = order.pieces * PRICES_CENTS[order.item]
                publisher.send(Invoice(order_number=order.number, cents=cents))
                print(f"order {order.number}: {order.pieces} x {order.item}", flush=True)


def books(invoices: pathlib.Path) -> None:
    """Add up what is to be paid, once for each order, even if an invoice comes twice."""
    with persipubsub.new_environment(invoices) as env:
        cents = {}
        for invoice in env.new_subscriber("books", message_type=Invoice).messages(timeout=60):
            cents[invoice.order_number] = invoice.cents
            if len(cents) == len(ORDERS):
                break
        assert cents == {1: 998, 2: 7500}
        print(f"to be paid: {sum(cents.values()) / 100:.2f}", flush=True)


def main() -> None:
    """Deploy a queue for each type, and start the processes."""
    with tempfile.TemporaryDirectory() as directory:
        orders, invoices = pathlib.Path(directory) / "orders", pathlib.Path(directory) / "invoices"
        with persipubsub.new_environment(orders) as env:
            env.new_control(subscriber_ids=["billing"], message_type=Order)
        with persipubsub.new_environment(invoices) as env:
            env.new_control(subscriber_ids=["books"], message_type=Invoice)
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=books, args=(invoices, )),
            context.Process(target=billing, args=(orders, invoices)),
            context.Process(target=shop, args=(orders, ))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0


if __name__ == "__main__":
    main()
