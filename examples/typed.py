"""Messages that are objects: a pydantic model and a dataclass, which travel as JSON.

Run it with ``python examples/typed.py``, after ``pip install 'persipubsub[examples]'``.
"""

import dataclasses
import pathlib
import tempfile
from typing import List

import pydantic

import persipubsub
from persipubsub.errors import DecodeError


class Order(pydantic.BaseModel):
    """What a customer wants."""

    item: str
    count: int = pydantic.Field(ge=1)


@dataclasses.dataclass
class Parcel:
    """What is sent to the customer."""

    order_id: int
    items: List[str]


def pack(orders: pathlib.Path, parcels: pathlib.Path) -> None:
    """Make a parcel of each order."""
    with persipubsub.new_environment(orders) as source, persipubsub.new_environment(parcels) as target:
        publisher = target.new_publisher(message_type=Parcel)
        subscriber = source.new_subscriber("packing", message_type=Order)
        while True:
            try:
                with subscriber.receive_delivery(timeout=0) as delivery:
                    if delivery is None:
                        return
                    order = delivery.message
                    publisher.send(Parcel(delivery.id, [order.item] * order.count))
            except DecodeError as error:  # it becomes a dead letter
                print("not an order:", error.payload.decode())


def main() -> None:
    """Order, pack and look at the parcels."""
    with tempfile.TemporaryDirectory() as directory:
        orders, parcels = pathlib.Path(directory) / "orders", pathlib.Path(directory) / "parcels"
        with persipubsub.new_environment(orders) as env:
            control = env.new_control()
            control.add_subscriber("packing", max_deliveries=1)
            publisher = env.new_publisher(message_type=Order)
            publisher.send(Order(item="cup", count=2))
            env.new_publisher().send(b'{"item": "pot", "count": 0}')  # by a program without the model
            publisher.send(Order(item="pan", count=1))
            with persipubsub.new_environment(parcels) as other:
                other.new_control(subscriber_ids=["shipping"])
                pack(orders, parcels)
                shipped = list(other.new_subscriber("shipping", message_type=Parcel).messages(timeout=0))
            assert [letter.error_type for letter in control.dead_letters("packing")]
        print(*shipped, sep="\n")
        assert shipped == [Parcel(1, ["cup", "cup"]), Parcel(3, ["pan"])]


if __name__ == "__main__":
    main()
