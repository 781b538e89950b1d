"""Tasks on uvloop that send and receive. Run it with ``python examples/frameworks/uvloop_orders.py``."""

import asyncio
import pathlib
import tempfile

import uvloop

import persipubsub

ORDERS = 100


async def main(path: pathlib.Path) -> None:
    """Send orders at the same time, which share commits, and receive them."""
    with persipubsub.new_environment(path) as env:
        await asyncio.to_thread(env.new_control, ["packing"])
        publisher = env.new_async_publisher()
        await asyncio.gather(*(publisher.send(b"order %d" % number) for number in range(ORDERS)))
        async with env.new_async_subscriber("packing").receive_many() as orders:
            print("received", len(orders), "orders on", type(asyncio.get_running_loop()).__module__)
            assert len(orders) == ORDERS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(main(pathlib.Path(directory) / "orders"))
