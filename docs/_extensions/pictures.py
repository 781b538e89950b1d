"""The pictures of the documentation, and the directive ``picture``, which draws one of them by its name.

.. code-block:: rst

    .. picture:: places

The docstring of a picture's function is its alternative text.
"""

from typing import Any, Callable, Dict, List

from docutils import nodes
from drawing import Drawing
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PICTURES: Dict[str, Callable[[], Drawing]] = {}


def picture(function: Callable[[], Drawing]) -> Callable[[], Drawing]:
    """Register a function as a picture."""
    PICTURES[function.__name__] = function
    return function


@picture
def queue_in_a_directory() -> Drawing:
    """A publisher process writes to a directory, and two subscriber processes read from it, without a server."""
    drawing = Drawing(222)
    drawing.box(140, 4, 180, ["any process", "pub.send(b\"21.5\")"])
    drawing.arrow(230, 54, 230, 84, "commit")
    drawing.box(80, 86, 300, ["queues/readings/", "one directory, one log"], "store")
    drawing.arrow(150, 136, 110, 166)
    drawing.arrow(310, 136, 350, 166)
    drawing.box(20, 168, 180, ["subscriber archive", "at its own speed"])
    drawing.box(260, 168, 180, ["subscriber alarm", "at its own speed"])
    return drawing


@picture
def files() -> Drawing:
    """The directory has the files data.mdb, lock.mdb, use.lock and wakeup, and sometimes unclean."""
    drawing = Drawing(230)
    drawing.box(4, 4, 160, ["queues/readings/"], "store")
    rows = [
        ("data.mdb", "the messages and cursors (LMDB)"),
        ("lock.mdb", "current readers and writer (LMDB)"),
        ("use.lock", "locked by processes that have it open"),
        ("wakeup", "wakes waiting subscribers"),
        ("unclean", "only while commits are not synced"),
    ]
    for number, (name, meaning) in enumerate(rows):
        top = 42 + 37 * number
        drawing.box(30, top, 110, [name], "gone" if name == "unclean" else "box")
        drawing.text(154, top + 19, meaning)
    return drawing


@picture
def places() -> Drawing:
    """A log of messages 3 to 8, with the cursor of shipping at 5 and that of billing at 8; 3 and 4 are deleted."""
    drawing = Drawing(150)
    drawing.text(36, 14, "one log, each message once")
    drawing.strip(36, 24, ["3", "4", "5", "6", "7", "8", "9"], ["gone", "gone", *["kept"] * 4, "new"], 56)
    drawing.arrow(174, 92, 174, 57)
    drawing.text(174, 108, "shipping", "middle", "strong")
    drawing.text(174, 125, "cursor = 5", "middle")
    drawing.text(174, 142, "low-water mark", "middle")
    drawing.arrow(342, 92, 342, 57)
    drawing.text(342, 108, "billing", "middle", "strong")
    drawing.text(342, 125, "cursor = 8", "middle")
    drawing.text(64, 76, "deleted", "start")
    drawing.text(425, 76, "sent next", "end")
    return drawing


@picture
def way_of_a_message() -> Drawing:
    """A message goes from Publisher.send through the engine into LMDB; a wake-up then lets the subscriber read it."""
    drawing = Drawing(498)
    steps = [
        (["publisher.py, sending.py", "check and encode the message"], "box", "Put"),
        (["engine.py", "finds the rule for the command"], "box", "an operation"),
        (["group_commit.py", "all threads: one transaction"], "box", "the group"),
        (["session.py, gate.py", "open or reopen; forks wait"], "box", "a transaction"),
        (["appending.put", "expire, keep the limits, append"], "box", "records"),
        (["transaction.py, runs.py", "layouts.py: the bytes"], "box", "keys and values"),
        (["database.py", "LMDB commits: it is stored"], "store", ""),
    ]
    for number, (lines, kind, handed_on) in enumerate(steps):
        top = 4 + 72 * number
        drawing.box(4, top, 260, lines, kind)
        if handed_on:
            drawing.arrow(70, top + 47, 70, top + 70, handed_on)
    drawing.box(300, 364, 156, ["wakeup.py", "wakes by a futex"])
    drawing.arrow(266, 450, 376, 413)
    drawing.arrow(378, 362, 378, 255)
    drawing.box(300, 206, 156, ["cursors.look", "from the cursor on"])
    drawing.arrow(378, 204, 378, 125)
    drawing.box(300, 76, 156, ["subscriber.py", "the with block"])
    drawing.text(386, 170, "messages")
    drawing.text(386, 312, "awake")
    drawing.arrow(378, 74, 378, 40)
    drawing.text(378, 30, "cursors.acknowledge", "middle", "strong")
    drawing.text(378, 14, "the cursor moves on", "middle")
    return drawing


@picture
def layers() -> Drawing:
    """The packages and modules in layers; each may import only from the layers below it."""
    drawing = Drawing(458)
    rows = [
        ("tools", "cli deployment metrics testing"),
        ("what users import", "environment control publisher subscriber aio"),
        ("for threads and for tasks", "sending receiving room bridge"),
        ("envelopes, deliveries, types", "message typed"),
        ("the seam", "engine"),
        ("one machine", "open_queues engine administration repair"),
        ("threads, forks, files", "process"),
        ("the life of a message", "rules"),
        ("the bytes, and LMDB", "records"),
    ]
    for number, (what, modules) in enumerate(rows):
        drawing.box(30, 4 + 50 * number, 426, [what, modules], "store" if modules == "records" else "box", 46)
    drawing.arrow(14, 8, 14, 446)
    return drawing


@picture
def way_of_a_shared_message() -> Drawing:
    """A worker claims a message and acknowledges it; or it is delivered again, or becomes a dead letter."""
    drawing = Drawing(290)
    drawing.box(4, 4, 150, ["pending", "in the log"], "store")
    drawing.arrow(79, 52, 79, 98, "claimed")
    drawing.box(4, 100, 150, ["at one worker", "for lease_s"], "new")
    drawing.arrow(79, 148, 79, 234, "the block ended")
    drawing.box(4, 236, 150, ["acknowledged", "not delivered again"], "gone")
    drawing.text(230, 106, "raised, lease ended", "middle")
    drawing.arrow(156, 113, 304, 113)
    drawing.arrow(304, 133, 156, 133)
    drawing.text(230, 149, "claimed again", "middle")
    drawing.box(306, 100, 150, ["to be redelivered", "to any worker"])
    drawing.arrow(324, 148, 324, 234)
    drawing.text(332, 178, "max_deliveries")
    drawing.arrow(438, 234, 438, 148)
    drawing.text(430, 216, "requeued", "end")
    drawing.box(306, 236, 150, ["dead letter", "requeue or discard"], "kept")
    return drawing


def _overflow(before: str, after: str, gone: List[str], last: str) -> Drawing:
    """Draw a queue at its limit of six messages, and after the send of the seventh."""
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
    """At the high-water mark of six messages, the send of 7 first drops 1, 2, 3 and 4; 5, 6 and 7 remain."""
    return _overflow("max_messages=6, and six are stored:", "send 7: drops the oldest, then adds 7",
                     ["1", "2", "3", "4"], "7")


@picture
def prune_last() -> Drawing:
    """At the high-water mark of six messages, the send of 7 first drops 3, 4, 5 and 6; 1, 2 and 7 remain."""
    return _overflow("max_messages=6, and six are stored:", "send 7: drops the latest, then adds 7",
                     ["3", "4", "5", "6"], "7")


@picture
def message_timeout() -> Drawing:
    """With a timeout of 500 seconds, messages of 900 and 600 seconds have expired; those of 400, 90 and 2 remain."""
    drawing = Drawing(100)
    drawing.text(4, 14, "age in seconds, message_timeout=500")
    drawing.strip(4, 24, ["900", "600", "400", "90", "2"], ["gone", "gone", "kept", "kept", "kept"], 76)
    drawing.text(4, 78, "expired for all")
    drawing.text(156, 78, "kept until all have acknowledged them")
    return drawing


@picture
def hwm_db_size() -> Drawing:
    """Two bars: messages up to the high-water mark, and after an overflow, with at most half of it used."""
    drawing = Drawing(136)
    drawing.text(4, 14, "The pages of the messages reach hwm_db_size:")
    drawing.box(4, 22, 400, ["messages"], "kept")
    drawing.arrow(405, 84, 405, 54)
    drawing.text(456, 98, "high-water mark", "end")
    drawing.text(4, 74, "The next send halves the queue until half is free:")
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
        """Return the drawing, with its alternative text."""
        function = PICTURES.get(self.arguments[0])
        if function is None or not function.__doc__:
            raise self.error(f"There is no picture {self.arguments[0]!r}. Pictures are: {', '.join(sorted(PICTURES))}.")
        # Sphinx rebuilds a page when its pictures change.
        self.env.note_dependency(__file__)
        drawn = function().svg(" ".join(function.__doc__.split()))
        return [nodes.raw("", f'<figure class="picture">{drawn}</figure>', format="html")]


def setup(app: Sphinx) -> Dict[str, Any]:
    """Add the directive to Sphinx."""
    app.add_directive("picture", Picture)
    app.add_css_file("site.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
