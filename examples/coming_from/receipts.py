"""Mail receipts, with retries: the program of the page for those who come from Celery."""

import sys
from typing import Dict

import persipubsub
from persipubsub import Delivery, Retry

Order = Dict[str, str]


def send_receipt(delivery: Delivery[Order]) -> None:
    """Mail a receipt: the handler, which workers call."""
    try:
        mail(delivery.message["customer"], f"Thank you for the {delivery.message['item']}.", delivery.delivery_count)
    except ConnectionError as error:
        raise Retry(delay_s=0.1) from error


def mail(customer: str, text: str, attempt: int) -> None:
    """Play the mail server, which is away at first."""
    if attempt == 1:
        raise ConnectionError("The mail server is away.")
    print(f"to {customer}: {text}", flush=True)


def main(path: str) -> None:
    """Set the queue up, once, and send two orders: one now, and one later."""
    with persipubsub.new_environment(path) as env:
        env.new_control().add_subscriber("mailers", shared=True, max_deliveries=5)
        orders = env.new_publisher(message_type=dict)
        orders.send({"customer": "Ada", "item": "cup"})
        orders.send_later({"customer": "Grace", "item": "pot"}, delay_s=0.5)


if __name__ == "__main__":
    main(sys.argv[1])
