"""Parametrize the suite by engine and form, and open a fresh queue of the engine for each test."""

import itertools
import time
from typing import Any, Callable, Iterator, List, Set, Type

import pytest

from persipubsub import Environment
from tests.conformance.engines import CAPABILITIES, ENGINES, Engine, Location
from tests.conformance.forms import Form, Plain, Tasks
from tests.conformance.queues import NewQueue, PassTime, Queue


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each engine that has the capabilities of its marks; with both forms if it is marked so."""
    if "engine" not in metafunc.fixturenames:
        return
    needed = {name for mark in metafunc.definition.iter_markers("capability") for name in mark.args}
    if not needed <= CAPABILITIES.keys():
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no such capability: {needed - CAPABILITIES.keys()}")
    forms = _forms(metafunc.definition.get_closest_marker("both_forms") is not None)
    cases = [
        pytest.param(engine, form, id=f"{engine.name}{suffix}") for engine in ENGINES for form, suffix, more in forms
        if needed | more <= engine.capabilities
    ]
    if not cases:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no engine has all of {sorted(needed)}")
    metafunc.parametrize("engine, form", cases, indirect=True)


def _forms(both: bool) -> List["tuple[Type[Any], str, Set[str]]"]:
    """Return the forms of endpoints, what the name of a test says of each, and what an engine must be able to do."""
    plain: "tuple[Type[Any], str, Set[str]]" = (Plain, "", set())
    return [plain, (Tasks, "-asyncio", {"asyncio"})] if both else [plain]


@pytest.fixture(name="engine")
def engine_fixture(request: pytest.FixtureRequest) -> Engine:
    """Return the engine of this case."""
    engine: Engine = request.param
    return engine


@pytest.fixture(name="form")
def form_fixture(request: pytest.FixtureRequest) -> Iterator[Form]:
    """Return the form of endpoints of this case."""
    form: Form = request.param()
    yield form
    form.close()


@pytest.fixture(name="new_location")
def new_location_fixture(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Location]:
    """Return locations of queues that do not exist yet."""
    directory, numbers = tmp_path_factory.mktemp("conformance"), itertools.count(1)

    def new_location() -> Location:
        own = directory / str(next(numbers))
        own.mkdir()
        return engine.new_location(own)

    return new_location


@pytest.fixture(name="new_queue")
def new_queue_fixture(engine: Engine, form: Form, new_location: Callable[[], Location]) -> Iterator[NewQueue]:
    """Set up fresh queues, which are closed after the test, and verified where the engine can do that."""
    made: List[Queue] = []

    def new_queue(*subscriber_ids: str, **settings: Any) -> Queue:
        queue = Queue(engine, new_location(), form, *subscriber_ids, **settings)
        made.append(queue)
        return queue

    yield new_queue
    for queue in made:
        queue.close()
        if {"check", "persistent"} <= engine.capabilities:
            with engine.open(queue.location) as environment:
                assert environment.new_control().check() == ()


@pytest.fixture(name="new_environment")
def new_environment_fixture(engine: Engine, form: Form, new_location: Callable[[], Location]) -> \
        Iterator[Callable[[], Environment]]:
    """Make Environments of queues that nobody has set up."""
    del form
    made: List[Environment] = []

    def new_environment() -> Environment:
        environment = engine.open(new_location())
        made.append(environment)
        return environment

    yield new_environment
    for environment in made:
        environment.close()


@pytest.fixture(name="pass_time")
def pass_time_fixture(engine: Engine, request: pytest.FixtureRequest) -> PassTime:
    """Return a function that lets time pass for the queues of this process: at once, if the engine can do that."""
    if "clock" not in engine.capabilities:
        return time.sleep
    forward: PassTime = request.getfixturevalue("persipubsub_clock").forward
    return forward
