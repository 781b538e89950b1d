"""What ``persipubsub work`` runs beside the services: ``packing:pack`` handles an order."""

from typing import Any, Dict


def pack(order: Dict[str, Any]) -> None:
    """Pack an order."""
    print("packed", order["item"], flush=True)
