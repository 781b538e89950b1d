"""A FastAPI service that publishes, and a worker that receives.

Run it with ``python examples/web_service.py``, after ``pip install 'persipubsub[examples]'``. It serves on a free port,
sends itself some orders, and prints what the worker did. To serve it as in production, deploy the queue (see
``deploy``), then run ``QUEUE=/var/lib/orders uvicorn web_service:app`` and the worker beside it.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pathlib
import tempfile
from typing import AsyncIterator, Dict

import fastapi
import httpx
import pydantic
import uvicorn

import persipubsub

ORDERS = 20


class Order(pydantic.BaseModel):
    """What a customer wants."""

    item: str
    count: int = pydantic.Field(ge=1)


@contextlib.asynccontextmanager
async def open_queue(service: fastapi.FastAPI) -> AsyncIterator[None]:
    """Keep the queue open while the service runs: in each worker process of the server, not at import."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        async with env.new_async_publisher() as publisher:
            service.state.publisher = publisher
            yield


app = fastapi.FastAPI(lifespan=open_queue)


@app.post("/orders", status_code=202)
async def accept(order: Order, request: fastapi.Request) -> Dict[str, int]:
    """Accept an order: once the customer has the answer, the order is on disk, and the worker will handle it.

    Requests that come at the same time share a commit, so the disk does not bound how many there are.
    """
    return {"message_id": await request.app.state.publisher.send(order.model_dump_json().encode())}


async def pack() -> None:
    """Handle orders: each is acknowledged once it is handled, and delivered again if this process dies before."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        packed = 0
        async for msg in env.new_async_subscriber("packing").messages(timeout=None):
            order = Order.model_validate_json(msg)
            packed += order.count
            print("packed", order.count, order.item)
            if order.item == "the last":
                break
        print(packed, "things in all")
        assert packed == sum(range(1, ORDERS + 1))


def work() -> None:
    """Run the worker: the main function of its process."""
    asyncio.run(pack())


def deploy() -> None:
    """Set up the queue, once."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        env.new_control(subscriber_ids=["packing"])


async def order_things(url: str) -> None:
    """Play the customers: many at a time, and one whose order is invalid."""
    async with httpx.AsyncClient(base_url=url) as client:
        answers = await asyncio.gather(*(client.post("/orders", json={
            "item": "cups",
            "count": count
        }) for count in range(1, ORDERS)))
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
        worker.join()
        assert worker.exitcode == 0


if __name__ == "__main__":
    main()
