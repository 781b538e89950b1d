"""A handler for ``persipubsub work`` that uses the database of the Django project."""

from typing import Any, Dict

# It calls django.setup(), before any model is imported. It is beside this file, where Python looks for it.
import django_orders  # noqa: F401  # pylint: disable=unused-import,import-error
from django.db import close_old_connections, connection


def pack(order: Dict[str, Any]) -> None:
    """Pack an order."""
    close_old_connections()  # a request of Django does this by itself; a handler is none
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [order["item"]])
        print("packed", cursor.fetchone()[0], flush=True)
