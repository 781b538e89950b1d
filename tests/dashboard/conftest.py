"""A real browser for the tests of the page."""

import os
import pathlib
import shutil
from typing import Iterator, List, Optional

import pytest
from playwright.sync_api import BrowserContext, Dialog, Page, sync_playwright

#: Chromium neither looks for updates nor reports anything.
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()


def program() -> Optional[str]:
    """Return the path of Chromium; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    """Skip the tests of the page where there is no Chromium; never in CI."""
    if program() is None and not os.environ.get("CI"):
        for item in items:
            if "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="no Chromium: install the Debian package chromium"))


@pytest.fixture(name="browser", scope="module")
def fixture_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Start Chromium with an empty profile."""
    profile: pathlib.Path = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(profile,
                                                                executable_path=program(),
                                                                args=FLAGS,
                                                                viewport={
                                                                    "width": 1200,
                                                                    "height": 900
                                                                })
        yield context
        context.close()


@pytest.fixture(name="page")
def fixture_page(browser: BrowserContext) -> Iterator[Page]:
    """Open a page; whatever its scripts complain of fails the test, such as a violation of the security policy."""
    complaints: List[str] = []

    def refuse(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("dialog", refuse)
    yield page
    page.close()
    # A refusal is reported as well, and is what some tests are about; so is a server that ends.
    assert [one for one in complaints if "status of 401" not in one and "net::ERR_" not in one] == []
