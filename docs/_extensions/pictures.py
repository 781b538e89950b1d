"""The directive ``picture``, which draws a picture of this module by its name, and the pictures.

.. code-block:: rst

    .. picture:: places

The docstring of a picture's function is its text for those who do not see it.
"""

from typing import Any, Callable, Dict, List

from docutils import nodes
from drawing import Drawing
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PICTURES: Dict[str, Callable[[], Drawing]] = {}


def picture(function: Callable[[], Drawing]) -> Callable[[], Drawing]:
    """Make a function one of the pictures."""
    PICTURES[function.__name__] = function
    return function


@picture
def queue_in_a_directory() -> Drawing:
    """A publisher process writes to a directory, from which two subscriber processes read; no server is between."""
    drawing = Drawing(222)
    drawing.box(140, 4, 180, ["any process", "pub.send(b\"21.5\")"])
    drawing.arrow(230, 54, 230, 84, "commit")
    drawing.box(80, 86, 300, ["queues/readings/", "one directory, one log"], "store")
    drawing.arrow(150, 136, 110, 166)
    drawing.arrow(310, 136, 350, 166)
    drawing.box(20, 168, 180, ["subscriber archive", "takes in its own time"])
    drawing.box(260, 168, 180, ["subscriber alarm", "takes in its own time"])
    return drawing


@picture
def files() -> Drawing:
    """The directory holds data.mdb, lock.mdb, use.lock and wakeup, and for a while unclean."""
    drawing = Drawing(230)
    drawing.box(4, 4, 160, ["queues/readings/"], "store")
    rows = [
        ("data.mdb", "the messages and places (LMDB)"),
        ("lock.mdb", "who reads and writes now (LMDB)"),
        ("use.lock", "locked by all that have it open"),
        ("wakeup", "tells those who wait"),
        ("unclean", "only while commits are not synced"),
    ]
    for number, (name, meaning) in enumerate(rows):
        top = 42 + 37 * number
        drawing.box(30, top, 110, [name], "gone" if name == "unclean" else "box")
        drawing.text(154, top + 19, meaning)
    return drawing


@picture
def places() -> Drawing:
    """A log of messages 3 to 8. Shipping has its place at 5, billing at 8. What lies before 5 is deleted."""
    drawing = Drawing(150)
    drawing.text(36, 14, "one log, each message once")
    drawing.strip(36, 24, ["3", "4", "5", "6", "7", "8", "9"], ["gone", "gone", *["kept"] * 4, "new"], 56)
    drawing.arrow(174, 92, 174, 57)
    drawing.text(174, 108, "shipping", "middle", "strong")
    drawing.text(174, 125, "next = 5", "middle")
    drawing.text(174, 142, "the floor", "middle")
    drawing.arrow(342, 92, 342, 57)
    drawing.text(342, 108, "billing", "middle", "strong")
    drawing.text(342, 125, "next = 8", "middle")
    drawing.text(64, 76, "deleted", "start")
    drawing.text(425, 76, "sent next", "end")
    return drawing


@picture
def way_of_a_message() -> Drawing:
    """From Publisher.send through arguments, writer, queue and transaction into LMDB, then wakeup, and back up."""
    drawing = Drawing(498)
    steps = [
        (["publisher.py", "send: is it a message?"], "box", "Batch"),
        (["engine.py, handle.py", "the queue as endpoints know it"], "box", "an operation"),
        (["writer.py", "all who send now: one transaction"], "box", "the group"),
        (["storage.py, gate.py", "open, or reopened; forks wait"], "box", "a transaction"),
        (["queue.py: put", "expire, keep the mark, append"], "box", "records"),
        (["transaction.py, log.py", "cursors, runs; records.py: bytes"], "box", "keys and values"),
        (["database.py", "LMDB commits: it is there"], "store", ""),
    ]
    for number, (lines, kind, handed_on) in enumerate(steps):
        top = 4 + 72 * number
        drawing.box(4, top, 260, lines, kind)
        if handed_on:
            drawing.arrow(70, top + 47, 70, top + 70, handed_on)
    drawing.box(300, 364, 156, ["wakeup.py", "a futex: who waits?"])
    drawing.arrow(266, 450, 376, 413)
    drawing.arrow(378, 362, 378, 255)
    drawing.box(300, 206, 156, ["queue.py: look", "from the place on"])
    drawing.arrow(378, 204, 378, 125)
    drawing.box(300, 76, 156, ["subscriber.py", "the with block"])
    drawing.text(386, 170, "messages")
    drawing.text(386, 312, "awake")
    drawing.arrow(378, 74, 378, 40)
    drawing.text(378, 30, "queue.py: take", "middle", "strong")
    drawing.text(378, 14, "the place moves on", "middle")
    return drawing


@picture
def layers() -> Drawing:
    """The modules in layers; each may import only what lies below it."""
    drawing = Drawing(408)
    rows = [
        ("what is built on it", "cli deployment metrics testing"),
        ("what users hold", "environment control publisher subscriber aio"),
        ("for threads and for tasks", "sending receiving bridge"),
        ("the seam", "engine"),
        ("one machine", "open_queues engine administration repair"),
        ("threads, forks, files", "process"),
        ("what a message lives through", "rules"),
        ("the bytes, and LMDB", "records"),
    ]
    for number, (what, modules) in enumerate(rows):
        drawing.box(30, 4 + 50 * number, 426, [what, modules], "store" if modules == "records" else "box", 46)
    drawing.arrow(14, 8, 14, 396)
    return drawing


@picture
def way_of_a_shared_message() -> Drawing:
    """Not handed out, then at one worker, then acknowledged; or it comes again, and in the end is a dead letter."""
    drawing = Drawing(290)
    drawing.box(4, 4, 150, ["not handed out yet", "in the log"], "store")
    drawing.arrow(79, 52, 79, 98, "claimed")
    drawing.box(4, 100, 150, ["at one worker", "for lease_s"], "new")
    drawing.arrow(79, 148, 79, 234, "the block ended")
    drawing.box(4, 236, 150, ["acknowledged", "no worker again"], "gone")
    drawing.text(230, 106, "raised, lease ended", "middle")
    drawing.arrow(156, 113, 304, 113)
    drawing.arrow(304, 133, 156, 133)
    drawing.text(230, 149, "claimed again", "middle")
    drawing.box(306, 100, 150, ["comes again", "to whichever worker"])
    drawing.arrow(324, 148, 324, 234)
    drawing.text(332, 178, "max_deliveries")
    drawing.arrow(438, 234, 438, 148)
    drawing.text(430, 216, "requeued", "end")
    drawing.box(306, 236, 150, ["dead letter", "requeue or discard"], "kept")
    return drawing


def _overflow(before: str, after: str, gone: List[str], last: str) -> Drawing:
    """Draw a queue at a mark of six messages, and after the send of the seventh."""
    drawing = Drawing(146)
    drawing.text(4, 14, before)
    ids = [str(number) for number in range(1, 7)]
    drawing.strip(4, 24, ids, ["gone" if one in gone else "kept" for one in ids], 56)
    drawing.text(4, 90, after)
    kept = [one for one in ids if one not in gone]
    drawing.strip(4, 100, [*kept, last], [*["kept"] * len(kept), "new"], 56)
    return drawing


@picture
def prune_first() -> Drawing:
    """At a mark of six messages, the send of 7 removes 1, 2, 3 and 4 first; 5, 6 and 7 remain."""
    return _overflow("max_messages=6, and six are there:", "send 7: the oldest go, then 7 is added",
                     ["1", "2", "3", "4"], "7")


@picture
def prune_last() -> Drawing:
    """At a mark of six messages, the send of 7 removes 3, 4, 5 and 6 first; 1, 2 and 7 remain."""
    return _overflow("max_messages=6, and six are there:", "send 7: the latest go, then 7 is added",
                     ["3", "4", "5", "6"], "7")


@picture
def message_timeout() -> Drawing:
    """With a timeout of 500 seconds, messages of 900 and 600 seconds are gone, those of 400, 90 and 2 remain."""
    drawing = Drawing(100)
    drawing.text(4, 14, "age in seconds, message_timeout=500")
    drawing.strip(4, 24, ["900", "600", "400", "90", "2"], ["gone", "gone", "kept", "kept", "kept"], 76)
    drawing.text(4, 78, "gone, for everybody")
    drawing.text(156, 78, "wait for whoever has not taken them")
    return drawing


@picture
def hwm_db_size() -> Drawing:
    """Two bars against a mark: at the mark, and after an overflow, with at most half of it used."""
    drawing = Drawing(136)
    drawing.text(4, 14, "The pages of the messages reach hwm_db_size:")
    drawing.box(4, 22, 400, ["messages"], "kept")
    drawing.arrow(405, 84, 405, 54)
    drawing.text(405, 98, "the mark", "middle")
    drawing.text(4, 74, "The next send halves until half is free:")
    drawing.box(4, 82, 190, ["messages"], "kept")
    drawing.box(198, 82, 60, ["new"], "new")
    return drawing


@picture
def containers() -> Drawing:
    """Two containers share a volume with the queue, and one pid namespace."""
    drawing = Drawing(190)
    drawing.box(4, 4, 452, [], "frame", 88)
    drawing.text(230, 22, "one pid namespace", "middle")
    drawing.box(20, 34, 190, ["container web", "publishes"])
    drawing.box(250, 34, 190, ["container worker", "subscribes"])
    drawing.arrow(115, 82, 180, 132)
    drawing.arrow(345, 132, 345, 82)
    drawing.box(80, 134, 300, ["volume /queues", "a local disk of the host"], "store")
    return drawing


class Picture(SphinxDirective):
    """Draw a picture."""

    required_arguments = 1

    def run(self) -> List[nodes.Node]:
        """Give the drawing to HTML, and its text to all else."""
        function = PICTURES.get(self.arguments[0])
        if function is None or not function.__doc__:
            raise self.error(f"There is no picture {self.arguments[0]!r}; there are: {', '.join(sorted(PICTURES))}.")
        # A page is built anew when its pictures change.
        self.env.note_dependency(__file__)
        drawn = function().svg(" ".join(function.__doc__.split()))
        return [nodes.raw("", f'<figure class="picture">{drawn}</figure>', format="html")]


def setup(app: Sphinx) -> Dict[str, Any]:
    """Add the directive to Sphinx."""
    app.add_directive("picture", Picture)
    app.add_css_file("pictures.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
