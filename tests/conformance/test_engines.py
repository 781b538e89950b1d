"""The table of engines."""

import persipubsub
from tests.conformance.engines import CAPABILITIES, ENGINES, engine_of
from tests.conformance.queues import NewQueue


def test_capabilities_are_known() -> None:
    """Engines have capabilities that the suite knows, and each of these is one that some engine has."""
    assert set().union(*(engine.capabilities for engine in ENGINES)) == set(CAPABILITIES)


def test_names_are_of_one_engine() -> None:
    """Each engine has a name of its own, by which it is found."""
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)
    assert [engine_of(engine.name) for engine in ENGINES] == ENGINES


def test_queues_are_fresh(new_queue: NewQueue) -> None:
    """Each queue of a test is another one, and all objects are those that users have."""
    queues = [new_queue("a"), new_queue("a")]
    queues[0].environment.new_publisher().send(b"x")
    assert queues[1].environment.new_subscriber("a").front() is None
    for queue in queues:
        assert isinstance(queue.environment, persipubsub.Environment)
        assert isinstance(queue.control, persipubsub.Control)
