"""Make thumbnails, of two kinds from each picture: the program of the page for those who come from dramatiq."""

import dataclasses
import sys

import persipubsub
from persipubsub import Reject


@dataclasses.dataclass
class Picture:
    """A picture that was uploaded."""

    path: str
    width: int


def resize(picture: Picture) -> None:
    """Make a thumbnail: the handler, which workers call."""
    if not picture.path.endswith(".png"):
        raise Reject(f"{picture.path} is not a PNG")  # a dead letter at once: trying again would not help
    print("resized", picture.path, "to", picture.width, flush=True)


def main(path: str) -> None:
    """Set the queue up, once, and send some pictures together: all or none of them."""
    with persipubsub.new_environment(path) as env:
        control = env.new_control()
        control.add_subscriber("resizers", shared=True, max_deliveries=4, retry_delay_s=1)
        pictures = env.new_publisher(message_type=Picture)
        pictures.send_many([Picture("cat.png", 100), Picture("dog.gif", 100), Picture("cow.png", 200)])


if __name__ == "__main__":
    main(sys.argv[1])
