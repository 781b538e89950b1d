"""A Flask application that sends orders. It opens the queue once, also where gunicorn preloads it and then forks."""

import os
from typing import Dict, Tuple

import flask

import persipubsub
from persipubsub import errors

env = persipubsub.new_environment(os.environ["QUEUE"])
orders = env.new_publisher(message_type=dict)  # opens the queue: the processes that gunicorn forks inherit it

app = flask.Flask(__name__)


@app.post("/orders")
def accept() -> Tuple[Dict[str, int], int]:
    """Accept an order: it is on disk when the customer has the answer."""
    order = {"item": flask.request.form["item"], "process": os.getpid()}
    return {"message_id": orders.send(order, timeout=5)}, 202


@app.errorhandler(errors.QueueFullError)
def refuse(_error: errors.QueueFullError) -> Tuple[Dict[str, str], int]:
    """Tell the customer to come again."""
    return {"error": "Too many orders are waiting."}, 503
