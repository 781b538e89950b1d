"""One process measures, two others follow: a queue from its deployment to its last message.

Run it with ``python examples/thermometer.py``. It uses a temporary directory, and prints what the subscribers got.
``python examples/thermometer.py nats://host1:4222,host2:4222,host3:4222/readings`` does the same on a cluster.
"""

import multiprocessing
import os
import sys
import tempfile

import persipubsub

READINGS = [b"20.9", b"21.4", b"35.2", b"21.6"]
END = b"end"


def measure(location: str) -> None:
    """Publish some readings."""
    with persipubsub.new_environment(location) as env:
        env.new_publisher().send_many([*READINGS, END])


def archive(location: str) -> None:
    """Keep everything: each message is acknowledged when the loop asks for the next one."""
    with persipubsub.new_environment(location) as env:
        kept = []
        for message in env.new_subscriber("archive").messages(timeout=60):
            if message == END:
                break
            kept.append(message)
        assert kept == READINGS
        print("archive:", b" ".join(kept).decode())


def alarm(location: str) -> None:
    """Look at each reading; it would be delivered again if this process died meanwhile."""
    with persipubsub.new_environment(location) as env:
        subscriber = env.new_subscriber("alarm")
        while True:
            with subscriber.receive(timeout=60) as message:
                if message is None or message == END:
                    return
                if float(message) > 30:
                    print("alarm:", message.decode())


def main(location: str) -> None:
    """Deploy the queue, start the processes, and look at what is left."""
    with persipubsub.new_environment(location) as env:
        control = env.new_control(subscriber_ids=["archive", "alarm"])
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=target, args=(location, )) for target in (archive, alarm, measure)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        # The archive left its loop at the end mark, so that message is not acknowledged.
        assert control.status().subscribers["archive"].pending == 1
        assert control.status().subscribers["alarm"].pending == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(directory, "readings"))
