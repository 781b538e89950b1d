"""A FastAPI service that publishes, and a worker that receives and stops well.

Run it with ``python examples/web_service.py``, after ``pip install 'persipubsub[examples]'``. It serves on a free port,
sends itself some orders, and prints what the worker did. To serve it as in production, deploy the queue (see
``deploy``), then run ``QUEUE=/var/lib/orders uvicorn web_service:app`` and the worker beside it.

The service opens the queue in its lifespan. While too many orders are waiting, it answers 503. A task of the service
itself mails a receipt for each order: when the service ends, the task finishes the receipt that it is writing.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pathlib
import signal
import tempfile
import time
from typing import AsyncIterator, Dict

import fastapi
import httpx
import pydantic
import uvicorn

import persipubsub
from persipubsub import HighWaterMark, Strategy, errors
from persipubsub.aio import AsyncSubscriber

ORDERS = 20
WAITING_MAX = 10_000


class Order(pydantic.BaseModel):
    """What a customer wants."""

    item: str
    count: int = pydantic.Field(ge=1)


@contextlib.asynccontextmanager
async def lifespan(service: fastapi.FastAPI) -> AsyncIterator[None]:
    """Keep the queue open while the service runs: in each worker process of the server, not at import."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        service.state.orders = env.new_async_publisher(message_type=Order)
        mailing = asyncio.create_task(mail(env.new_async_subscriber("receipts", message_type=Order)))
        try:
            yield
        finally:
            env.stop()  # waits end, and the loop over messages ends after its current message
            await mailing


async def mail(receipts: "AsyncSubscriber[Order]") -> None:
    """Mail a receipt for each order."""
    async for delivery in receipts.deliveries():
        print("receipt for", delivery.message.item, "in request", delivery.headers["request"])


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def accept(order: Order, request: fastapi.Request) -> Dict[str, int]:
    """Accept an order: once the customer has the answer, the order is on disk, and the worker will handle it.

    Requests that come at the same time share a commit, so the disk does not bound how many there are.
    """
    headers = {"request": request.headers.get("x-request-id", "unknown")}
    try:
        return {"message_id": await request.app.state.orders.send(order, headers=headers, timeout=5)}
    except errors.QueueFullError as error:
        raise fastapi.HTTPException(503, "Too many orders are waiting.") from error


async def pack() -> None:
    """Handle orders until SIGTERM: each is acknowledged once it is handled, and delivered again if this dies before."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, env.stop)
        packed = 0
        async for order in env.new_async_subscriber("packing", message_type=Order).messages():
            packed += order.count
            print("packed", order.count, order.item)
    print(packed, "things in all")
    assert packed == sum(range(1, ORDERS + 1))


def work() -> None:
    """Run the worker: the main function of its process."""
    asyncio.run(pack())


def deploy() -> None:
    """Set up the queue, once. While the limit is reached, orders are refused; nothing is dropped."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        env.new_control(["packing", "receipts"], HighWaterMark(max_messages=WAITING_MAX), Strategy.refuse)


def wait_until_packed() -> None:
    """Wait until the worker has acknowledged all orders."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        control = env.new_control(create=False)
        while control.status().subscribers["packing"].pending:
            time.sleep(0.01)


async def order_things(url: str) -> None:
    """Play the customers: many at a time, and one whose order is invalid."""
    async with httpx.AsyncClient(base_url=url) as client:
        answers = await asyncio.gather(
            *(client.post("/orders", json={
                "item": "cups",
                "count": count
            }, headers={"x-request-id": str(count)}) for count in range(1, ORDERS)))
        assert sorted(answer.json()["message_id"] for answer in answers) == list(range(1, ORDERS))
        assert (await client.post("/orders", json={"item": "nothing", "count": 0})).status_code == 422
        await client.post("/orders", json={"item": "the last", "count": ORDERS})


async def serve_and_order() -> None:
    """Serve until all orders are made."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    await order_things(f"http://127.0.0.1:{port}")
    server.should_exit = True
    await serving


def main() -> None:
    """Deploy the queue, start the worker, serve, and order."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["QUEUE"] = str(pathlib.Path(directory) / "orders")
        deploy()
        worker = multiprocessing.get_context("spawn").Process(target=work)
        worker.start()
        asyncio.run(serve_and_order())
        wait_until_packed()
        worker.terminate()  # SIGTERM: it finishes the order that it packs
        worker.join()
        assert worker.exitcode == 0


if __name__ == "__main__":
    main()
