"""What the rules of the state machine have in common: which methods they use, and which of many objects they mean."""

from typing import Callable, Dict, List, TypeVar

from hypothesis import strategies as st

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


WHICH = st.integers(0, 5)  # one of a list, counted round
NAMES = st.sampled_from(["a", "b", "data_db"])
#: The subscriber that is shared in all queues.
WORKERS = "workers"
ALL_NAMES = st.sampled_from(["a", "b", "data_db", WORKERS])
# Messages become long at 65,520 bytes. Those of 0 bytes are all alike, the others differ.
SIZES_BYTES = st.sampled_from([8] * 8 + [0, 1000, 65519, 65520, 65521, 140_000])
