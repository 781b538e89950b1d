"""Test the page in a real browser: what a person sees and can do."""

import contextlib
import json
import pathlib
import re
import time
from typing import Callable, Iterator, NamedTuple

import pytest
from playwright.sync_api import BrowserContext, Page, expect

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy
from tests.dashboard.server import Server, serving

pytestmark = pytest.mark.slow
#: What would run, or would change what is around it, if it were not escaped.
HOSTILE = "<img src=x onerror=alert(1)><b>\"'&amp;</b>\u202etxt.exe\x1b[31m"
#: As the page shows it.
ESCAPED = "<img src=x onerror=alert(1)><b>\"'&amp;</b>\\u202etxt.exe\\u001b[31m"


class Shown(NamedTuple):
    """A dashboard and one of its queues."""

    server: Server
    jobs: Environment


@pytest.fixture(name="shown", scope="module")
def fixture_shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Serve queues, one of which is full, and one of which is missing, with changes allowed."""
    directory = tmp_path_factory.mktemp("queues")
    with persipubsub.new_environment(directory / "jobs") as jobs, persipubsub.new_environment(directory /
                                                                                              "full") as full:
        jobs.new_control(["audit"]).add_subscriber("workers", shared=True, max_deliveries=1)
        full.new_control(["reader"], HighWaterMark(None, 2, None), Strategy.refuse)
        full.new_publisher().send_many([b"x", b"y"])
        with serving(jobs.path, full.path, directory / "none", "--allow-changes") as server:
            yield Shown(server, jobs)


def fail(jobs: Environment, payload: bytes, error: Exception) -> int:
    """Send a message that becomes a dead letter, and return its id."""
    message_id = jobs.new_publisher().send(payload)
    while True:
        with contextlib.suppress(type(error)), jobs.new_subscriber("workers").receive(timeout=0) as message:
            if message == payload:
                raise error
        if message == payload:
            return message_id


def open_queue(page: Page, shown: Shown, token: bool = True) -> None:
    """Open the page of the queue ``jobs``."""
    page.goto(f"{shown.server.url}#token={shown.server.token}" if token else shown.server.url)
    page.get_by_role("article").filter(has_text="jobs").get_by_role("link").click()
    expect(page.get_by_role("heading", name="jobs")).to_be_visible()


def test_numbers_are_live(page: Page, shown: Shown) -> None:
    """What is sent appears without a reload, and the trouble of a queue is above all."""
    page.goto(shown.server.url)
    expect(page.locator("#live")).to_have_text("● live")
    jobs = page.get_by_role("article").filter(has_text="jobs")
    expect(jobs.locator(".big")).not_to_be_empty()
    before = int(jobs.locator(".big").inner_text().replace(",", ""))
    shown.jobs.new_publisher().send_many([b"x"] * 1234)
    expect(jobs.locator(".big")).to_have_text(f"{before + 1234:,}")
    expect(jobs.locator(".note")).to_contain_text("audit lags most")
    attention = page.locator(".attention")
    expect(attention).to_contain_text("Full: 2 of 2 messages. Sends are refused until there is room.")
    expect(attention).to_contain_text("There is no queue at")
    shown.jobs.new_control().prune_all_messages_for("workers")


def test_the_page_of_a_queue_has_plots_and_subscribers(page: Page, shown: Shown) -> None:
    """The plots are drawn, and the subscribers are listed with their kinds."""
    open_queue(page, shown)
    expect(page.locator(".uplot canvas")).to_have_count(4)
    rows = page.locator("tbody tr")
    expect(rows.filter(has_text="audit")).to_contain_text("plain")
    expect(rows.filter(has_text="workers")).to_contain_text("shared")
    expect(page.locator("figcaption").first).to_contain_text("audit")


def test_a_dead_letter_is_read_and_requeued(page: Page, shown: Shown) -> None:
    """A person sees why a message died, and requeues it with a click; the numbers follow."""
    message_id = fail(shown.jobs, b'{"order": 17}', KeyError("address"))
    open_queue(page, shown)
    letter = page.locator("#dead-letters details").filter(has_text=str(message_id))
    letter.locator("summary").click()
    expect(letter).to_contain_text("KeyError")
    expect(letter.locator("pre").last).to_contain_text('"order": 17')
    letter.get_by_role("button", name="Requeue").click()
    expect(page.get_by_text("1 dead letter requeued.")).to_be_visible()
    assert shown.jobs.new_control().status().subscribers["workers"].dead_letters == 0
    with shown.jobs.new_subscriber("workers").receive(timeout=0) as message:
        assert message == b'{"order": 17}'


def test_a_discard_asks_first(page: Page, shown: Shown) -> None:
    """Nothing is deleted when the question is answered with Cancel or Escape, and all is when it is confirmed."""
    fail(shown.jobs, b"poison", ValueError("no"))

    def dead() -> int:
        return shown.jobs.new_control().status().subscribers["workers"].dead_letters

    open_queue(page, shown)
    page.get_by_role("button", name="Discard all").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Discard all").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert dead() == 1
    page.get_by_role("button", name="Discard all").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    expect(page.get_by_text("1 dead letter discarded.")).to_be_visible()
    assert dead() == 0


def test_without_the_token_nothing_changes(page: Page, shown: Shown) -> None:
    """Whoever opens the page without the token may look; a change asks for it, and a wrong one is refused."""
    fail(shown.jobs, b"poison", ValueError("no"))
    open_queue(page, shown, token=False)
    page.locator("#dead-letters summary").click()
    page.get_by_role("button", name="Requeue", exact=True).click()
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("textbox", name="Token")).to_have_value("")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("This needs the token")).to_be_visible()
    assert shown.jobs.new_control().status().subscribers["workers"].dead_letters == 1
    page.get_by_role("button", name="Requeue", exact=True).click()
    page.get_by_role("textbox", name="Token").fill(str(shown.server.token))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("1 dead letter requeued.")).to_be_visible()


def test_what_others_wrote_is_text(page: Page, new_environment: Callable[..., Environment]) -> None:
    """Names, payloads, headers and errors cannot add elements, run scripts or hide characters."""
    name = HOSTILE.replace("/", "")
    hostile = new_environment(name=name)
    hostile.new_control().add_subscriber(HOSTILE, shared=True, max_deliveries=1)
    hostile.new_publisher().send(HOSTILE.encode(), headers={"<script>alert(2)</script>": "<svg onload=alert(3)>"})
    hostile.new_publisher().send(json.dumps({"a": HOSTILE}).encode())
    for _ in range(2):
        with contextlib.suppress(ValueError), hostile.new_subscriber(HOSTILE).receive():
            raise ValueError(HOSTILE)
    with serving(hostile.path) as server:
        page.goto(server.url)
        page.get_by_role("article").get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(ESCAPED.replace("/", ""))
        expect(page.locator("tbody th")).to_have_text(ESCAPED)
        page.get_by_role("button", name="Oldest").click()
        expect(page.locator("summary")).to_have_count(2)  # the dead letters are there
        for summary in page.locator("summary").all():
            summary.click()
        expect(page.locator("pre").filter(has_text=ESCAPED)).not_to_have_count(0)
        expect(page.get_by_text("<svg onload=alert(3)>").first).to_be_visible()
        expect(page.locator("pre.trace").first).to_contain_text(ESCAPED)
        assert page.locator("main img, main b b, main script, main svg[onload]").count() == 0
        # Read-only: there is nothing to click.
        expect(page.get_by_role("button", name="Requeue")).to_have_count(0)


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_no_page_scrolls_sideways(page: Page, shown: Shown, width: int) -> None:
    """Everything fits the width, on both pages, with open messages."""
    shown.jobs.new_publisher().send(b"x" * 5000, headers={"a-long-name" * 20: "a-long-value" * 50})
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(shown.server.url)
    expect(page.get_by_role("article")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    open_queue(page, shown)
    page.get_by_role("button", name="Latest").click()
    page.locator(".message summary").last.click()
    expect(page.locator(".message pre")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of the text of an element with the ground behind it, as WCAG defines it."""
    found = page.locator(selector).first.evaluate("""(element) => {
        const color = getComputedStyle(element).color;
        let ground = "rgba(0, 0, 0, 0)";
        for (let one = element; one && ground === "rgba(0, 0, 0, 0)"; one = one.parentElement) {
            ground = getComputedStyle(one).backgroundColor;
        }
        return [color, ground];
    }""")

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted(map(luminance, found), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(page: Page, shown: Shown, scheme: str) -> None:
    """In light and in dark, text has the contrast that the guidelines for accessibility ask for."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(shown.server.url)
    expect(page.locator(".finding")).not_to_have_count(0)
    expect(page.locator(".facts dt")).not_to_have_count(0)
    for selector in (".brand", ".totals dt", ".finding .kind", ".finding p", ".card .path", ".facts dt", ".state.error",
                     ".big", ".finding a", "#live"):
        assert contrast(page, selector) >= 4.5, selector
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


def test_it_can_be_used_by_keyboard(page: Page, shown: Shown) -> None:
    """A filter is one key away, a queue opens with Enter, and the first Tab leads to the content."""
    page.goto(shown.server.url)
    expect(page.get_by_role("article")).to_have_count(3)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("job")
    expect(page.get_by_role("article")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="jobs")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("article")).to_have_count(3)


def test_it_connects_again(page: Page, shown: Shown, tmp_path: pathlib.Path) -> None:
    """When the server ends, the page says so, and is live again once there is one at the same address."""
    del tmp_path
    with serving(shown.jobs.path) as first:
        page.goto(first.url)
        expect(page.locator("#live")).to_have_text("● live")
        first.stop()
    expect(page.locator("#live")).to_have_text("◌ connecting …")
    address = first.url.removeprefix("http://").rstrip("/")
    began_s = time.monotonic()
    with serving(shown.jobs.path, "--listen", address):
        expect(page.locator("#live")).to_have_text("● live")
        assert time.monotonic() - began_s < 15


def test_the_token_does_not_stay_in_the_address(browser: BrowserContext, page: Page, shown: Shown) -> None:
    """The page takes the token out of the address, so that it gets neither into the history nor onto a picture."""
    page.goto(f"{shown.server.url}#token={shown.server.token}")
    expect(page.locator("#live")).to_have_text("● live")
    assert str(shown.server.token) not in page.url
    assert browser.cookies() == []
