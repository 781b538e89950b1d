"""What the rules of the state machine have in common: which methods they use, and which of many objects they mean."""

from typing import Callable, Dict, List, TypeVar

from hypothesis import strategies as st

from persipubsub import HighWaterMark, Strategy
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from persipubsub.queue import UNCHANGED

RuleFunction = TypeVar("RuleFunction", bound=Callable[..., object])

#: The rules that say that they use a public method.
RULES: Dict[str, List[Callable[..., object]]] = {}


def uses(*methods: str) -> Callable[[RuleFunction], RuleFunction]:
    """Note that a rule uses these public methods."""

    def note(function: RuleFunction) -> RuleFunction:
        for method in methods:
            RULES.setdefault(method, []).append(function)
        return function

    return note


def publisher(*names: str) -> List[str]:
    """Return the names of methods of publishers for threads and for tasks."""
    return [f"{kind}.{name}" for kind in ("Publisher", "AsyncPublisher") for name in names]


def subscriber(*names: str) -> List[str]:
    """Return the names of methods of subscribers for threads and for tasks."""
    return [f"{kind}.{name}" for kind in ("Subscriber", "AsyncSubscriber") for name in names]


WHICH = st.integers(0, 5)  # one of a list, counted round
NAMES = st.sampled_from(["a", "b", "data_db"])
#: The subscriber that is shared in all queues.
WORKERS = "workers"
ALL_NAMES = st.sampled_from(["a", "b", "data_db", WORKERS])

# Messages become long at 65,520 bytes. Those of 0 bytes are all alike, the others differ.
SIZES_BYTES = st.sampled_from([8] * 8 + [0, 1000, 65519, 65520, 65521, 140_000])
BATCHES = st.one_of(st.lists(SIZES_BYTES, min_size=1, max_size=5), st.integers(1, 30).map(lambda count: [8] * count))
HEADERS = st.sampled_from([(), (), (("a", "x"), ), (("a", ""), ("traceparent", "\N{SNOWMAN}\0")),
                           (("a", "x" * 2000), )])
#: By which a message that is sent again is known.
IDENTIFIERS = st.sampled_from(["x", "y", "z", "order-17"])

#: Messages whose times differ by less may expire together.
WALL_STEPS_US = st.integers(-10**6, 10**6).map(lambda number: number * (RUN_US_MAX + 1))
# Sums of them are exactly the timeouts, or a microsecond more; some go far ahead.
STEPS_US = st.sampled_from([1_000_000] * 4 + [RUN_US_MAX + 1, 500_000, 2_500_000, 10_000_000, 10**9, 10**16])
#: Batches, and the time after each.
STREAMS = st.lists(st.tuples(st.lists(SIZES_BYTES, min_size=1, max_size=4), STEPS_US), min_size=1, max_size=5)

STRATEGIES = st.sampled_from(Strategy)
#: A limit that is left out stays, and None removes it.
HIGH_WATERMARKS = st.builds(HighWaterMark,
                            message_timeout=st.sampled_from([2.5, 2.5, 10, 1, 10**11, None, UNCHANGED, 0.000001]),
                            max_messages=st.one_of(st.integers(1, 12), st.sampled_from([None, UNCHANGED])))
MEANWHILE = st.sampled_from(["nothing"] * 3 + [
    "error", "retry", "retry later", "reject", "send", "take", "clear", "expire", "rewind", "remove", "replace",
    "close", "stop"
])
