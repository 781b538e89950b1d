"""Test what Prometheus sees: the collector, the command that serves it, and what the documentation makes of it."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import Any, Dict, Iterator, List, Set, Tuple

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import persipubsub
from persipubsub import HighWaterMark, errors
from persipubsub.metrics import METRICS, RELAY_METRICS, QueueCollector

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]
METRICS_COMMAND = [sys.executable, "-m", "persipubsub", "metrics"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60
NAMES = {metric.name for metric in METRICS}
RELAY_NAMES = {metric.name for metric in RELAY_METRICS}

Series = Dict[Tuple[str, ...], float]


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Tuple["subprocess.Popen[str]", str]]:
    """Run the command on a free port; return the process and the address that it prints."""
    with subprocess.Popen([*METRICS_COMMAND, *map(str, arguments), "--listen", "127.0.0.1:0"],
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout is not None
            match = re.fullmatch(r"Serving on (http://127\.0\.0\.1:[0-9]+/metrics)\n", process.stdout.readline())
            assert match is not None
            yield process, match[1]
        finally:
            process.kill()


def scrape(address: str) -> str:
    """Ask as Prometheus does."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def series(text: str) -> Series:
    """Return each value by the name of its metric and the values of its labels but ``path``, in the labels' order."""
    return {
        (sample.name, *(value for label, value in sample.labels.items() if label != "path")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collected(*paths: pathlib.Path) -> str:
    """Return what a program that registers the collector serves."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(QueueCollector(paths))
    return prometheus_client.generate_latest(registry).decode()


def promtool(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Prometheus' own checker."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    return subprocess.run([program, *map(str, arguments)],
                          input=stdin,
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)


def test_counters_move_while_the_command_serves(tmp_path: pathlib.Path) -> None:
    """Each scrape shows what was sent, acknowledged and pruned until then, also in a new queue."""
    path = tmp_path / "queue"
    with serving(path) as (_, address):
        assert series(scrape(address)) == {("persipubsub_up", ): 0}
        with persipubsub.new_environment(path) as env:
            control = env.new_control(["a", "b"], high_watermark=HighWaterMark(message_timeout=3600, max_messages=10))
            publisher, subscriber = env.new_publisher(), env.new_subscriber("a")
            publisher.send_many([b"x"] * 4)
            subscriber.pop()
            before = series(scrape(address))
            assert before[
                "persipubsub_up",
            ] == 1
            assert before[
                "persipubsub_messages",
            ] == before[
                "persipubsub_sent_messages_total",
            ] == 4
            assert before["persipubsub_subscriber_pending_messages", "a"] == 3
            assert before["persipubsub_subscriber_pending_messages", "b"] == 4
            assert before["persipubsub_subscriber_taken_messages_total", "a"] == 1
            assert before[
                "persipubsub_high_watermark_messages",
            ] == 10
            assert before[
                "persipubsub_message_timeout_seconds",
            ] == 3600
            assert 0 < before[
                "persipubsub_size_bytes",
            ] < before[
                "persipubsub_high_watermark_bytes",
            ]
            assert 0 < before[
                "persipubsub_oldest_message_age_seconds",
            ] < 3600
            publisher.send_many([b"x"] * 7)  # the 11th finds 10, of which 6 go
            control.remove_subscriber("b")
            subscriber.pop()
            control.set_hwm(HighWaterMark(message_timeout=1e-6))
            control.prune_dangling_messages()
        after = series(scrape(address))
    assert after[
        "persipubsub_sent_messages_total",
    ] == 11
    assert after["persipubsub_subscriber_taken_messages_total", "a"] == 2
    reasons = {
        labels[0]: value
        for (name, *labels), value in after.items() if name == "persipubsub_pruned_messages_total"
    }
    assert reasons == {"overflow": 6, "dangling": 0, "timeout": 4}
    assert after[
        "persipubsub_messages",
    ] == after["persipubsub_subscriber_oldest_pending_age_seconds", "a"] == 0
    assert ("persipubsub_subscriber_pending_messages", "b") not in after


def test_a_limit_that_a_queue_does_not_have_is_infinite(tmp_path: pathlib.Path) -> None:
    """Each limit is a gauge: +Inf where a queue has none, and its value once it is set."""
    limits = {
        "persipubsub_high_watermark_messages": "max_messages",
        "persipubsub_high_watermark_bytes": "hwm_db_size",
        "persipubsub_message_timeout_seconds": "message_timeout"
    }
    with persipubsub.new_environment(tmp_path) as env:
        control = env.new_control(["a"])
        for number, limit in enumerate(limits.values(), 1):
            text = collected(tmp_path)
            found = series(text)
            assert [found[(name, )] for name in limits] == [*range(1, number), *[math.inf] * (4 - number)]
            assert text.count(" +Inf\n") == 4 - number
            control.set_hwm(HighWaterMark(**{limit: number}))
    assert [series(collected(tmp_path))[(name, )] for name in limits] == [1, 2, 3]


def test_retained_and_delayed_messages_are_gauges(tmp_path: pathlib.Path) -> None:
    """Retained and delayed messages are gauges of their own; 0 where there is none."""
    with persipubsub.new_environment(tmp_path) as env:
        control = env.new_control(["a"])
        publisher = env.new_publisher()
        publisher.send_many([b"x"] * 5)
        later = [publisher.send_later(b"x", delay_s=1000) for _ in range(3)]
        told = []
        for retention_s in (0.0, 100.0):
            control.set_retention(retention_s)
            for _ in range(2):
                env.new_subscriber("a").pop()
            publisher.cancel(later.pop())
            found = series(collected(tmp_path))
            told.append([found[
                f"persipubsub_{name}messages",
            ] for name in ("", "retained_", "delayed_")])
    assert told == [[3, 0, 2], [3, 2, 1]]


def test_messages_in_flight_and_dead_letters_are_gauges(tmp_path: pathlib.Path) -> None:
    """Messages in flight and dead letters are gauges; both are 0 for a plain subscriber."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"]).add_subscriber("workers", shared=True, max_deliveries=1)
        env.new_publisher().send_many([b"x"] * 5)
        worker = env.new_subscriber("workers")
        with pytest.raises(ZeroDivisionError), worker.receive():
            raise ZeroDivisionError
        with worker.receive_many(2), env.new_subscriber("workers").receive_many(2):
            found = series(collected(tmp_path))
    told = {
        (name, subscriber): found[f"persipubsub_subscriber_{name}", subscriber]
        for name in ("in_flight_messages", "dead_letters", "pending_messages")
        for subscriber in ("a", "workers")
    }
    assert told == {
        ("in_flight_messages", "a"): 0,
        ("dead_letters", "a"): 0,
        ("pending_messages", "a"): 5,
        ("in_flight_messages", "workers"): 2,
        ("dead_letters", "workers"): 1,
        ("pending_messages", "workers"): 4
    }


@pytest.mark.damages_queues
def test_an_unreadable_queue_does_not_hide_the_others(tmp_path: pathlib.Path) -> None:
    """A damaged queue has only ``persipubsub_up`` 0; the reason is written once, not at each scrape."""
    for name in ("good", "bad"):
        with persipubsub.new_environment(tmp_path / name) as env:
            env.new_control(["a"])
            env.new_publisher().send(b"x")
    (tmp_path / "bad" / "data.mdb").write_bytes(b"no queue" * 4096)
    with serving(tmp_path / "bad", tmp_path / "good", tmp_path / "bad") as (process, address):
        for _ in range(2):
            text = scrape(address)
            assert f'persipubsub_up{{path="{tmp_path}/bad"}} 0.0' in text
            assert f'persipubsub_up{{path="{tmp_path}/good"}} 1.0' in text
            assert f'persipubsub_messages{{path="{tmp_path}/good"}} 1.0' in text
            assert len([line for line in text.splitlines() if "/bad" in line]) == 1
        process.terminate()
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    warnings = [line for line in stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1 and "bad" in warnings[0], stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    """After SIGTERM or Ctrl-C it frees the port and ends with status 0, and with nothing on standard error."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control()
    with serving(tmp_path / "queue") as (process, address):
        scrape(address)
        process.send_signal(number)
        assert (process.communicate(timeout=TIMEOUT_S), process.returncode) == (("", ""), 0)
        port = int(address.split(":")[2].partition("/")[0])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_queue_can_be_compacted_between_scrapes(tmp_path: pathlib.Path) -> None:
    """The command does not keep the queue open: what needs it closed everywhere works, and is seen."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"])
        env.new_publisher().send_many([b"x"] * 3)
    with serving(tmp_path / "queue") as (_, address):
        before = series(scrape(address))
        subprocess.run([sys.executable, "-m", "persipubsub", "compact", tmp_path / "queue"],
                       check=True,
                       capture_output=True,
                       timeout=TIMEOUT_S)
        after = series(scrape(address))
    name = ("persipubsub_messages", )
    assert before[name] == after[name] == 3 and after[
        "persipubsub_up",
    ] == 1


@pytest.mark.parametrize(
    "listen", ["9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":9464", "::1:9464", "[::1]"])
def test_a_wrong_address_is_an_error_of_usage(tmp_path: pathlib.Path, listen: str) -> None:
    """What is no address and port is refused, with the form that is wanted."""
    result = subprocess.run([*METRICS_COMMAND, tmp_path, "--listen", listen],
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert result.returncode == 2
    assert repr(listen) in result.stderr and "127.0.0.1:9464 or [::1]:9464" in result.stderr


def test_a_port_in_use_is_an_error_of_one_line(tmp_path: pathlib.Path) -> None:
    """Where somebody listens already, the command says where and ends with status 1."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = subprocess.run([*METRICS_COMMAND, tmp_path, "--listen", f"127.0.0.1:{port}"],
                                capture_output=True,
                                text=True,
                                timeout=TIMEOUT_S,
                                check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: Cannot listen on 127.0.0.1 port {port}: Address already in use.\n"


def test_without_prometheus_client_the_command_says_what_to_install(tmp_path: pathlib.Path) -> None:
    """Where the extra is missing, there is one line with the remedy, and ``--help`` works."""
    code = "import sys\nsys.modules['prometheus_client'] = None\nfrom persipubsub.cli import main\nmain(sys.argv[1:])"
    missing = subprocess.run([sys.executable, "-c", code, "metrics", tmp_path],
                             capture_output=True,
                             text=True,
                             timeout=TIMEOUT_S,
                             check=False)
    assert missing.returncode == 1
    assert missing.stderr == ("Error: prometheus_client is not installed. "
                              "Install it with: pip install 'persipubsub[prometheus]'\n")
    assert subprocess.run([sys.executable, "-c", code, "metrics", "--help"],
                          capture_output=True,
                          timeout=TIMEOUT_S,
                          check=False).returncode == 0


def test_the_collector_refuses_what_is_no_list_of_paths(tmp_path: pathlib.Path) -> None:
    """A single path, which iterates over its letters, is refused, and nothing is made."""
    for wrong in (str(tmp_path), tmp_path, b"queue", 3, None):
        with pytest.raises(errors.ArgumentTypeError, match="paths must be an iterable of paths"):
            QueueCollector(wrong)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(errors.ArgumentError):
        QueueCollector([""])
    assert collected(tmp_path / "none") and not (tmp_path / "none").exists()


def test_a_queue_that_is_open_here_is_read(tmp_path: pathlib.Path) -> None:
    """A program shows its own queues, with names of any letters and paths that are no text."""
    path = tmp_path / os.fsdecode(b"gr\xf6\xdfe")
    with persipubsub.new_environment(path) as env:
        env.new_control(['"\\\n'])
        env.new_publisher().send(b"x")
        text = collected(path)
        assert env.new_control().check() == ()
    assert series(text)["persipubsub_subscriber_pending_messages", '"\\\n'] == 1
    assert "gr\\\\xf6\\\\xdfe" in text


def test_promtool_finds_nothing_wrong_with_the_metrics(tmp_path: pathlib.Path) -> None:
    """Names, kinds, helps and labels are as Prometheus' conventions want them."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"])
        env.new_publisher().send(b"x")
    with serving(tmp_path / "queue", tmp_path / "none") as (_, address):
        text = scrape(address)
    assert NAMES == {name for name, *_ in series(text)}
    result = promtool("check", "metrics", stdin=text)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    """The alert rules parse, and each asks for metrics that exist."""
    rules = ROOT / "docs" / "metrics" / "alerts.yml"
    result = promtool("check", "rules", rules)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert named_in(rules.read_text(encoding="utf-8")) <= NAMES | RELAY_NAMES


LATEST_ONLY_ALERTS = {"PersipubsubOverflowPrunedMessages", "PersipubsubNearHighWatermark"}
LATEST_ONLY = {
    "persipubsub_pruned_messages_total": "0+9x10",
    "persipubsub_messages": "1x10",
    "persipubsub_high_watermark_messages": "1x10"
}


def alert_test(alert: str, metrics: List[Tuple[str, str, str, str]]) -> Dict[str, Any]:
    """Return the test for promtool that an alert fires where the metrics are bad, and only there."""
    given, place = [], "source" if alert == "PersipubsubRelayWaits" else "path"
    for name, label, bad, good in metrics:
        for path, values in (("bad", bad), ("good", good)):
            labels = ", ".join(filter(None, [f'{place}="{path}"', label]))
            given.append({"series": f"{name}{{{labels}}}", "values": values})
        if alert in LATEST_ONLY_ALERTS:  # a queue of one message: what would be trouble elsewhere is what it is for
            label = 'path="latest"' + f", {label}" * bool(label)
            given.append({"series": f"{name}{{{label}}}", "values": LATEST_ONLY[name]})
    return {
        "interval":
        "1m",
        "input_series":
        given,
        "promql_expr_test": [{
            "expr": f'count by ({place}, alertname) (ALERTS{{alertstate="firing"}})',
            "eval_time": "8m",
            "exp_samples": [{
                "labels": f'{{{place}="bad", alertname="{alert}"}}',
                "value": 1
            }]
        }]
    }


def test_alerts_fire_for_what_they_name(tmp_path: pathlib.Path) -> None:
    """Each rule fires for a queue or a relay with its trouble, for that one and its subscriber alone."""
    trouble = {
        "PersipubsubQueueUnreadable": [("persipubsub_up", "", "0x10", "1x10")],
        "PersipubsubOverflowPrunedMessages":
        [('persipubsub_pruned_messages_total', 'reason="overflow"', "0+9x10", "7x10"),
         ("persipubsub_high_watermark_messages", "", "2x10", "2x10")],
        "PersipubsubTimeoutPrunedMessages":
        [('persipubsub_pruned_messages_total', 'reason="timeout"', "0+9x10", "7x10")],
        "PersipubsubNearHighWatermark": [("persipubsub_messages", "", "81x10", "79x10"),
                                         ("persipubsub_high_watermark_messages", "", "100x10", "100x10")],
        "PersipubsubSubscriberLags":
        [("persipubsub_subscriber_oldest_pending_age_seconds", 'subscriber="a"', "51x10", "49x10"),
         ("persipubsub_message_timeout_seconds", "", "100x10", "100x10")],
        "PersipubsubSubscriberWaits":
        [("persipubsub_subscriber_oldest_pending_age_seconds", 'subscriber="a"', "3601x10", "3599x10"),
         ("persipubsub_message_timeout_seconds", "", "Inf Inf Inf Inf Inf Inf Inf Inf Inf",
          "Inf Inf Inf Inf Inf Inf Inf Inf Inf")],
        "PersipubsubDeadLetters": [("persipubsub_subscriber_dead_letters", 'subscriber="a"', "0+1x10", "7x10")],
        "PersipubsubRelayWaits": [("persipubsub_relay_up", 'target="b", subscriber="a"', "0x10", "1x10")],
    }
    tests = [alert_test(alert, metrics) for alert, metrics in trouble.items()]
    file = tmp_path / "tests.yml"
    # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(ROOT / "docs" / "metrics" / "alerts.yml")], "tests": tests}))
    result = promtool("test", "rules", file)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(re.findall(r"alert: (\w+)",
                          (ROOT / "docs/metrics/alerts.yml").read_text(encoding="utf-8"))) == set(trouble)


def named_in(text: str) -> Set[str]:
    """Return the metrics that a text names."""
    return set(re.findall(r"\bpersipubsub_[a-z_]+", text))


def test_the_dashboard_shows_every_metric() -> None:
    """The dashboard parses, names all metrics and no other, and its panels do not overlap."""
    text = (ROOT / "docs" / "metrics" / "dashboard.json").read_text(encoding="utf-8")
    dashboard: Dict[str, Any] = json.loads(text)
    assert named_in(text) == NAMES | RELAY_NAMES
    cells: List[Tuple[int, int]] = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells += [(x, y) for x in range(place["x"], place["x"] + place["w"])
                  for y in range(place["y"], place["y"] + place["h"])]
        assert panel["title"] and panel["description"] and panel["targets"]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_the_documentation_lists_every_metric() -> None:
    """The table has a row for each metric, with its kind and its labels, and none besides."""
    text = (ROOT / "docs" / "metrics.rst").read_text(encoding="utf-8")
    rows = re.findall(r"^``(persipubsub_\w+)`` +(counter|gauge) +(``\w+``(?:, ``\w+``)*) +\S", text, re.MULTILINE)
    documented = {(name, kind, tuple(re.findall(r"``(\w+)``", labels))) for name, kind, labels in rows}
    kinds = {"GaugeMetricFamily": "gauge", "CounterMetricFamily": "counter"}
    metrics = (*METRICS, *RELAY_METRICS)
    assert documented == {(metric.name, kinds[metric.kind.__name__], tuple(metric.labels)) for metric in metrics}
    assert len(rows) == len(metrics)
    assert named_in(text) - {"persipubsub_queue"} <= {metric.name for metric in metrics}


def test_the_error_says_what_to_install() -> None:
    """Without the client of Prometheus the import says what brings it."""
    code = "import sys; sys.modules['prometheus_client'] = None; import persipubsub.metrics"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in result.stderr and "pip install 'persipubsub[prometheus]'" in result.stderr
