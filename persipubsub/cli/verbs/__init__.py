"""The verbs, each of which is loaded only when it is called.

Each has an import statement, although a table of names with importlib would be shorter: tools that pack a program into
one file, such as PyInstaller, find only modules that a statement imports.
"""

from typing import Callable, Dict

import click

# pylint: disable=import-outside-toplevel  # see above


def _create() -> click.Command:
    from persipubsub.cli.verbs.create import create
    return create


def _deploy() -> click.Command:
    from persipubsub.cli.verbs.deploy import deploy
    return deploy


def _describe() -> click.Command:
    from persipubsub.cli.verbs.describe import describe
    return describe


def _schema() -> click.Command:
    from persipubsub.cli.verbs.schema import schema
    return schema


def _send() -> click.Command:
    from persipubsub.cli.verbs.send import send
    return send


def _receive() -> click.Command:
    from persipubsub.cli.verbs.receive import receive
    return receive


def _work() -> click.Command:
    from persipubsub.cli.verbs.work import work
    return work


def _relay() -> click.Command:
    from persipubsub.cli.verbs.relay import relay
    return relay


def _history() -> click.Command:
    from persipubsub.cli.verbs.history import history
    return history


def _rewind() -> click.Command:
    from persipubsub.cli.verbs.rewind import rewind
    return rewind


def _status() -> click.Command:
    from persipubsub.cli.verbs.status import status
    return status


def _top() -> click.Command:
    from persipubsub.cli.verbs.top import top
    return top


def _metrics() -> click.Command:
    from persipubsub.cli.verbs.metrics import metrics
    return metrics


def _dashboard() -> click.Command:
    from persipubsub.cli.verbs.dashboard import dashboard
    return dashboard


def _subscriber() -> click.Command:
    from persipubsub.cli.verbs.subscriber import subscriber
    return subscriber


def _set() -> click.Command:
    from persipubsub.cli.verbs.set import set  # pylint: disable=redefined-builtin  # the verb
    return set


def _prune() -> click.Command:
    from persipubsub.cli.verbs.prune import prune
    return prune


def _clear() -> click.Command:
    from persipubsub.cli.verbs.clear import clear
    return clear


def _dead_letters() -> click.Command:
    from persipubsub.cli.verbs.dead_letters import dead_letters
    return dead_letters


def _demo() -> click.Command:
    from persipubsub.cli.verbs.demo import demo
    return demo


def _check() -> click.Command:
    from persipubsub.cli.verbs.check import check
    return check


def _recover() -> click.Command:
    from persipubsub.cli.verbs.recover import recover
    return recover


def _backup() -> click.Command:
    from persipubsub.cli.verbs.backup import backup
    return backup


def _compact() -> click.Command:
    from persipubsub.cli.verbs.compact import compact
    return compact


def _migrate() -> click.Command:
    from persipubsub.cli.verbs.migrate import migrate
    return migrate


#: By name, in the order of the help.
VERBS: Dict[str, Callable[[], click.Command]] = {
    "create": _create,
    "deploy": _deploy,
    "describe": _describe,
    "schema": _schema,
    "send": _send,
    "receive": _receive,
    "work": _work,
    "relay": _relay,
    "history": _history,
    "rewind": _rewind,
    "status": _status,
    "top": _top,
    "metrics": _metrics,
    "dashboard": _dashboard,
    "subscriber": _subscriber,
    "set": _set,
    "prune": _prune,
    "clear": _clear,
    "dead-letters": _dead_letters,
    "demo": _demo,
    "check": _check,
    "recover": _recover,
    "backup": _backup,
    "compact": _compact,
    "migrate": _migrate,
}
