"""A FastAPI service that sends orders: the lifespan opens the queue, and routes get the publisher as a dependency."""

import contextlib
import os
from typing import Annotated, AsyncIterator, Dict

import fastapi
import pydantic

import persipubsub
from persipubsub import errors
from persipubsub.aio import AsyncPublisher


class Order(pydantic.BaseModel):
    """What a customer wants."""

    item: str
    count: int = pydantic.Field(ge=1)


@contextlib.asynccontextmanager
async def lifespan(service: fastapi.FastAPI) -> AsyncIterator[None]:
    """Keep the queue open in each worker process of the server."""
    with persipubsub.new_environment(os.environ["QUEUE"]) as env:
        service.state.orders = env.new_async_publisher(message_type=Order)
        yield
        env.stop()  # sends that wait for room end now


def publisher(request: fastapi.Request) -> "AsyncPublisher[Order]":
    """Return the publisher: a dependency, which a test can replace."""
    found: "AsyncPublisher[Order]" = request.app.state.orders
    return found


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def accept(order: Order,
                 orders: "Annotated[AsyncPublisher[Order], fastapi.Depends(publisher)]") -> Dict[str, int]:
    """Accept an order: it is on disk when the customer has the answer."""
    try:
        return {"message_id": await orders.send(order, timeout=5)}
    except errors.QueueFullError as error:
        raise fastapi.HTTPException(503, "Too many orders are waiting.") from error
