"""Test that the benchmarks run, and that what they write can be plotted and compared; not what they measure."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import List

import pytest

from benchmarks import compare, footprint, measure, results, runner, scale, tables, targets
from benchmarks.measure import Bounds, Contestant, LeftContest, Steps, Tally
from benchmarks.results import OURS, Document, Rate, Result, Setting

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: A full run with peers, which the documentation shows.
FIGURES = ROOT / "docs" / "performance" / "figures.json"
NEEDS_MATPLOTLIB = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None,
                                      reason="matplotlib is not installed")

TINY = dataclasses.replace(scale.QUICK,
                           rounds=2,
                           few_rounds=2,
                           round_s=0.005,
                           round_messages_max=2000,
                           payloads_bytes=(100, ),
                           subscribers=(1, 3),
                           million=2000)


@pytest.fixture(name="document", scope="module")
def document_fixture(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """Run two cheap workloads."""
    return runner.run(TINY, ["subscribers", "opening"], False, tmp_path_factory.mktemp("queues"))


@pytest.mark.slow
def test_run_writes_json_that_plot_and_compare_accept(tmp_path: pathlib.Path) -> None:
    """The documented commands work in turn, and print neither a path nor the host's name."""
    file = tmp_path / "figures.json"
    run("-m", "benchmarks", "run", "--quick", "--only", "opening", "--only", "file-size", "--json", file, "--directory",
        tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    text = file.read_text(encoding="utf-8")
    assert str(tmp_path) not in text and str(ROOT) not in text
    shown = run("benchmarks/compare.py", file, file)
    assert "  1.00  opening median_ms: " in shown
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    run("-m", "benchmarks", "plot", file, "--docs", tmp_path)
    assert "raw py-lmdb" in (tmp_path / "performance.rst").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "performance" / "figures.json").read_text(encoding="utf-8"))["scale"] == "quick"


@pytest.mark.slow
@pytest.mark.parametrize("workload", runner.names())
def test_every_workload_finds_ours(workload: str, tmp_path: pathlib.Path) -> None:
    """Each workload runs to its end, has nonzero figures of persipubsub, and removes its queues."""
    tiny = dataclasses.replace(TINY,
                               rounds=1,
                               few_rounds=1,
                               waiting_processes=(1, 2),
                               wake_ups=3,
                               end_to_end_s=0.1,
                               sends_at_the_mark=100,
                               marks_messages=(50, ),
                               churn_bytes=50 * 1024**2)
    found = runner.run(tiny, [workload], False, tmp_path).results
    assert OURS in {one.contestant for one in found}
    assert all(tables.line(one) for one in found)
    assert not list(tmp_path.iterdir())


def run(*arguments: object) -> str:
    """Run a command of the benchmarks in the root of the checkout, and return what it prints."""
    return subprocess.run([sys.executable, *map(str, arguments)],
                          cwd=ROOT,
                          check=True,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=120).stdout


@pytest.mark.slow
def test_each_of_our_rates_has_its_floor(document: Document) -> None:
    """Where rates are measured, the floor is measured in the same rounds."""
    found = document.of(Rate, "subscribers-sent")
    assert {one.setting.subscribers for one in found if one.contestant == OURS} == {1, 3}
    assert all(len(one.rounds_messages_per_s) == TINY.rounds for one in found)
    assert found[0].contestant != OURS and found[0].of_floor == 1


def test_what_is_written_is_read(document: Document, tmp_path: pathlib.Path) -> None:
    """The JSON holds everything."""
    document.write(tmp_path / "figures.json")
    assert results.read(tmp_path / "figures.json") == document


@NEEDS_MATPLOTLIB
def test_pictures_and_page_are_the_same_for_the_same_figures(document: Document, tmp_path: pathlib.Path) -> None:
    """Plotting twice changes nothing, so a difference in the repository is one of the figures."""
    from benchmarks import report
    document.write(tmp_path / "figures.json")
    pages: List[List[bytes]] = []
    for docs in (tmp_path / "one", tmp_path / "two"):
        report.write(tmp_path / "figures.json", docs)
        assert (docs / "performance" / "throughput-by-subscribers.svg").stat().st_size < 100_000
        pages.append([path.read_bytes() for path in sorted(docs.rglob("*.*"))])
    assert pages[0] == pages[1]
    assert b"@" not in (tmp_path / "one" / "performance.rst").read_bytes()


def test_targets_distinguish_met_from_missed(document: Document) -> None:
    """A target is met, or missed, or was not measured, or needs a run of an older commit."""
    rates: List[Result] = [
        Rate("threads", OURS, Setting("durable", 100, threads=threads), rate, 1, (rate, ))
        for threads, rate in ((1, 100.0), (16, 399.0))
    ]
    rates.append(Rate("end-to-end", OURS, Setting("relaxed", 100, 1), 500, 1, (500, )))
    shown = targets.table(dataclasses.replace(document, results=rates)).splitlines()
    assert any("16 threads" in line and "3.99" in line and line.endswith("missed") for line in shown)
    assert any("single send, durable" in line and line.endswith("not measured") for line in shown)
    assert any("another receives" in line and "500/s" in line and line.endswith("by hand") for line in shown)
    rates[1] = Rate("threads", OURS, Setting("durable", 100, threads=16), 400, 1, (400, ))
    shown = targets.table(dataclasses.replace(document, results=rates)).splitlines()
    assert any("16 threads" in line and line.endswith("  met") for line in shown)


def test_a_target_beside_a_peer_compares_with_its_faster_queue(document: Document) -> None:
    """Of the two queues of persist-queue, the faster one counts, and durable sends do not."""
    rates: List[Result] = [
        Rate("peers-send", name, Setting(durability, 100, 1), rate, 1, (rate, ))
        for name, durability, rate in ((OURS, "relaxed", 300.0), ("persist-queue FIFO", "relaxed", 150.0),
                                       ("persist-queue ack", "relaxed", 151.0), ("persist-queue ack", "durable", 9.0))
    ]
    shown = targets.table(dataclasses.replace(document, results=rates)).splitlines()
    assert any("2 times persist-queue" in line and "ack 151/s" in line and line.endswith("missed") for line in shown)
    assert any("1.4 times persist-queue" in line and line.endswith("not measured") for line in shown)


def test_every_target_is_found_in_a_full_run() -> None:
    """Each target reads a workload that a full run with peers measures."""
    assert "not measured" not in targets.table(results.read(FIGURES))


@NEEDS_MATPLOTLIB
def test_the_text_of_pictures_is_legible_on_a_phone() -> None:
    """On a page of 400 pixels, each text of each picture is at least 11 pixels high, and no text is cut off."""
    from benchmarks import plots
    with plots.pyplot.rc_context(plots.STYLE):
        for draw in plots.PICTURES.values():
            figure = draw(results.read(FIGURES))
            figure.canvas.draw()
            pixels_per_pt = 400 / (72 * figure.get_figwidth())
            texts = [text for text in figure.findobj(plots.matplotlib.text.Text) if text.get_text().strip()]
            assert texts and all(text.get_fontsize() * pixels_per_pt >= 11 for text in texts)
            drawn = figure.get_tightbbox()  # in inches
            assert drawn.x0 >= 0 and drawn.x1 <= figure.get_figwidth()
            plots.pyplot.close(figure)


@NEEDS_MATPLOTLIB
@pytest.mark.parametrize("page", ["#ffffff", "#131416"])
def test_colours_stand_out_from_light_and_dark_pages(page: str) -> None:
    """Text and lines have a contrast to a page without a background of their own in either mode."""
    from benchmarks import plots
    assert plots.STYLE["figure.facecolor"] == plots.STYLE["axes.facecolor"] == "none"
    assert contrast(plots.INK, page) > 4.2
    for colour in (plots.DURABLE_COLOUR, plots.RELAXED_COLOUR, plots.THIRD_COLOUR, plots.OTHER_COLOUR):
        assert contrast(colour, page) > 3


def contrast(one: str, other: str) -> float:
    """Return the ratio of contrast of two colours, as WCAG defines it."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour such as "#0072b2"."""
    parts = [int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


@NEEDS_MATPLOTLIB
def test_the_page_begins_with_what_a_user_needs() -> None:
    """Single messages, batches and waiting processes come first, then the commit and the machine of the run."""
    from benchmarks import report
    document = results.read(FIGURES)
    document.machine = dataclasses.replace(document.machine, commit="0123456789ab")
    page = report.page(document, [])
    parts = [
        "**send one by one**", "**send in batches of 1,000**", "**from send to a waiting process**", "0123456789ab",
        "send 1,000"
    ]
    positions = [page.index(part) for part in parts]
    assert positions == sorted(positions) and positions[-1] < page.index("How it is measured\n")


def test_a_round_ends_at_its_bounds() -> None:
    """A round stops after its number of messages, and refills as often as it has to."""
    left, refills = 0, 0

    def step() -> int:
        nonlocal left
        left -= 1
        return 1 if left >= 0 else 0

    def refill() -> None:
        nonlocal left, refills
        left, refills = 10, refills + 1

    assert measure.run_steps(Steps(step, refill), Bounds(60, 25)).messages == 25
    assert refills == 3


def test_a_peer_that_leaves_the_contest_is_not_listed(tmp_path: pathlib.Path) -> None:
    """A peer that cannot do something does not end the run of the others."""

    def opening(messages: int) -> measure.Opening:

        def run(_directory: pathlib.Path, _setting: Setting, bounds: Bounds) -> Tally:
            if not messages:
                raise LeftContest
            return Tally(messages, bounds.seconds)

        return measure.at_once(run)

    contestants = [Contestant(name, Setting(), opening(count)) for name, count in (("a", 8), ("b", 0), ("c", 2))]
    found = list(measure.contest("work", contestants, TINY, tmp_path))
    assert [(one.contestant, one.of_floor) for one in found] == [("a", 1), ("c", 0.25)]


def test_latencies_are_ranks() -> None:
    """A quantile is one of the samples."""
    found = measure.latency("work", OURS, Setting(), [number / 1e6 for number in range(1000, 0, -1)])
    assert (found.p50_us, found.p99_us, found.p999_us, found.longest_us) == (500, 990, 999, 1000)


def test_compare_puts_the_worst_first(tmp_path: pathlib.Path) -> None:
    """More messages per second are better, more microseconds are worse."""
    entry = {"kind": "Any", "workload": "work", "contestant": OURS, "setting": {"threads": 2}}
    files = []
    for number, (rate, time) in enumerate(((100.0, 10.0), (200.0, 40.0))):
        files.append(tmp_path / f"{number}.json")
        content = {"results": [{**entry, "messages_per_s": rate, "p50_us": time, "samples": 3}]}
        files[-1].write_text(json.dumps(content), encoding="utf-8")
    found = compare.ratios(*map(compare.figures, files))
    assert [(ratio, key[3]) for ratio, key in found] == [(0.25, "p50_us"), (2.0, "messages_per_s")]


def test_drain_of_each_kind_ends(tmp_path: pathlib.Path) -> None:
    """The process that drains a queue reports time and memory."""
    found = list(footprint.drains(dataclasses.replace(TINY, few_rounds=1), tmp_path))
    assert [one.setting.detail for one in found] == ["raw", "receive_many", "messages"]
    assert all(one.drain_s > 0 and one.rss_anon_mib > 1 for one in found)


def test_a_table_leaves_out_what_is_empty() -> None:
    """A table has no column without content."""
    assert tables.table(["a", "b", "c"], [["1", "", "2"], ["3", "", ""]]) == ("=  =\n"
                                                                              "a  c\n"
                                                                              "=  =\n"
                                                                              "1  2\n"
                                                                              "3  –\n"
                                                                              "=  =\n")
