"""Write reports: the program of the page for those who come from RQ."""

import sys

import persipubsub


def write_report(month: str) -> None:
    """Write a report: the handler, which workers call. The second report fails each time."""
    if month == "2026-13":
        raise ValueError(f"There is no month {month}.")
    print("report of", month, flush=True)


def main(path: str) -> None:
    """Set the queue up, once, and ask for three reports."""
    with persipubsub.new_environment(path) as env:
        env.new_control().add_subscriber("writers", shared=True, lease_s=300, max_deliveries=2, retry_delay_s=0.1)
        months = env.new_publisher(message_type=str)
        for month in ("2026-11", "2026-13", "2026-12"):
            months.send(month)


if __name__ == "__main__":
    main(sys.argv[1])
