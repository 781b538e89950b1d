"""One process measures, two others follow: a queue from its deployment to its last message.

Run it with ``python examples/thermometer.py``. It uses a temporary directory, and prints what the subscribers got.
"""

import multiprocessing
import pathlib
import tempfile

import persipubsub

READINGS = [b"20.9", b"21.4", b"35.2", b"21.6"]
END = b"end"


def measure(path: pathlib.Path) -> None:
    """Publish some readings."""
    with persipubsub.new_environment(path) as env:
        env.new_publisher().send_many([*READINGS, END])


def archive(path: pathlib.Path) -> None:
    """Keep everything: each message is acknowledged when the loop asks for the next one."""
    with persipubsub.new_environment(path) as env:
        kept = []
        for message in env.new_subscriber("archive").messages(timeout=60):
            if message == END:
                break
            kept.append(message)
        assert kept == READINGS
        print("archive:", b" ".join(kept).decode())


def alarm(path: pathlib.Path) -> None:
    """Look at each reading; it would be delivered again if this process died meanwhile."""
    with persipubsub.new_environment(path) as env:
        subscriber = env.new_subscriber("alarm")
        while True:
            with subscriber.receive(timeout=60) as message:
                if message is None or message == END:
                    return
                if float(message) > 30:
                    print("alarm:", message.decode())


def main() -> None:
    """Deploy the queue, start the processes, and look at what is left."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "readings"
        with persipubsub.new_environment(path) as env:
            control = env.new_control(subscriber_ids=["archive", "alarm"])
            context = multiprocessing.get_context("spawn")
            processes = [context.Process(target=target, args=(path, )) for target in (archive, alarm, measure)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                assert process.exitcode == 0
            # The archive left its loop at the end mark, so that message is not acknowledged.
            assert control.status().subscribers["archive"].pending == 1
            assert control.status().subscribers["alarm"].pending == 0


if __name__ == "__main__":
    main()
