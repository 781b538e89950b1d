"""A Django project in one file that sends orders once the database has committed them.

A real project has the publisher in a module of its own, such as ``shop/queues.py``, and the rest where Django puts it.
"""

import functools
import os
from typing import Any, Dict

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

import persipubsub
from persipubsub import Publisher

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["DATABASE"]
    }},
    QUEUE=os.environ["QUEUE"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ["SECRET_KEY"],
)
django.setup()


@functools.lru_cache(maxsize=None)
def orders() -> "Publisher[Dict[str, Any]]":
    """Return the publisher, which the first request opens, or ``ready()`` of an AppConfig."""
    return persipubsub.new_environment(settings.QUEUE).new_publisher(message_type=dict)


def accept(request: HttpRequest) -> JsonResponse:
    """Accept an order. It is sent when the transaction has been committed, and not if that is rolled back."""
    order = {"item": request.POST["item"], "process": os.getpid()}
    with transaction.atomic():
        # Here the view writes the order to the database.
        transaction.on_commit(lambda: orders().send(order, timeout=5))
        if order["item"] == "nothing":
            transaction.set_rollback(True)
    return JsonResponse({}, status=202)


urlpatterns = [path("orders", accept)]
orders()  # gunicorn preloads this module, and the processes that it forks inherit the open queue
app = get_wsgi_application()
