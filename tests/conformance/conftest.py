"""Run the suite on each engine, as far as it has the capabilities, and open fresh queues of it for each test."""

import itertools
import shutil
import time
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Set, Type

import pytest

from persipubsub import Environment
from tests.conformance.engines import CAPABILITIES, ENGINES, Engine, Location
from tests.conformance.forms import Form, Plain, Tasks
from tests.conformance.queues import NewQueue, PassTime, Queue


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each engine, with both forms of endpoints if it is marked so."""
    if "engine" not in metafunc.fixturenames:
        return
    forms: List[Type[Any]] = [Plain]
    if metafunc.definition.get_closest_marker("both_forms") is not None:
        forms.append(Tasks)
    cases = [
        pytest.param(engine,
                     form,
                     id=engine.name if form is Plain else f"{engine.name}-asyncio",
                     marks=engine.marks if form is Plain else [*engine.marks, *engine.marks_of_tasks])
        for engine in ENGINES for form in forms
    ]
    metafunc.parametrize("engine, form", cases, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    """Leave out what an engine need not be able to do, by the marks of tests and of their parameters."""
    left_out = [item for item in items if not _needed(item) <= _capabilities(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _needed(item: pytest.Item) -> Set[str]:
    """Return the capabilities that an item needs."""
    needed = {name for mark in item.iter_markers("capability") for name in mark.args}
    if not needed <= CAPABILITIES.keys():
        raise pytest.UsageError(f"{item.nodeid}: no such capability: {needed - CAPABILITIES.keys()}")
    return needed | ({"asyncio"} if _parameters(item).get("form") is Tasks else set())


def _capabilities(item: pytest.Item) -> FrozenSet[str]:
    """Return the capabilities of the engine of an item; an item without one has no use for them."""
    engine = _parameters(item).get("engine")
    return engine.capabilities if isinstance(engine, Engine) else frozenset(CAPABILITIES)


def _parameters(item: pytest.Item) -> Dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


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
def new_location_fixture(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Location]]:
    """Return locations of queues that do not exist yet, each in a directory of its own, which is deleted afterwards."""
    directory, numbers = tmp_path_factory.mktemp("conformance"), itertools.count(1)
    made: List[Location] = []

    def new_location() -> Location:
        own = directory / str(next(numbers))
        own.mkdir()
        made.append(engine.new_location(own))
        return made[-1]

    yield new_location
    engine.delete(made)
    shutil.rmtree(directory)


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
        return lambda seconds: time.sleep(seconds + engine.late_s)
    forward: PassTime = request.getfixturevalue("persipubsub_clock").forward
    return forward
