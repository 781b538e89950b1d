"""Test the tool that measures how many mistakes the tests notice, and the table of its scores."""

import pathlib
import re

import pytest

from tests.mutation import __main__ as mutation
from tests.mutation import core, scores
from tests.mutation.scores import Score

ROOT = pathlib.Path(__file__).resolve().parents[2]

MODULE = '''"""A module with mistakes to make."""


def is_adult(age: int) -> bool:
    """Return whether somebody is of age."""
    return age >= 18
'''
TESTS = """from persipubsub import ages

def test_adult():
    assert ages.is_adult(19)
"""


def test_recorded_scores_are_of_modules_that_are_measured() -> None:
    """Every line of the table is a score of a module that the tool measures."""
    recorded = scores.read(scores.FILE.read_text(encoding="utf-8"))
    assert recorded and recorded.keys() <= core.TESTS.keys()
    assert all(0 < score.killed <= score.total for score in recorded.values())


@pytest.mark.parametrize("name", core.TESTS)
def test_modules_and_their_tests_exist(name: str) -> None:
    """Each module that is measured is one of the package, and each of its tests exists."""
    assert core.find(name, ROOT / "persipubsub").is_file()
    for test in core.test_paths([*core.TESTS[name], *core.TESTS_LEFT_OUT], ROOT):
        file, _, function = test.partition("::")
        name_of_function = function.partition("[")[0]
        assert re.search(rf"^def {name_of_function}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_find_needs_one_file(tmp_path: pathlib.Path) -> None:
    """A name that two files have is refused, unless the folder goes before it; so is a name that no file has."""
    for path in (tmp_path / "replay.py", tmp_path / "rules" / "replay.py"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert core.find("rules/replay", tmp_path) == tmp_path / "rules" / "replay.py"
    for name in ("replay", "play", "other/replay"):
        with pytest.raises(ValueError, match=f"files in .* are named {name}"):
            core.find(name, tmp_path)


@pytest.mark.parametrize("line", ["clock", "clock 3", "clock 5/4", "clock 3/4\nclock 3/4", "clock 3/4 %", "a.py 3/4"])
def test_malformed_scores_are_refused(line: str) -> None:
    """A line that is no score, is there twice, or counts more killed mutants than mutants is an error."""
    with pytest.raises(ValueError, match="not a score"):
        scores.read(f"# comment\n{line}\n")


def test_a_lower_share_has_fallen() -> None:
    """A module has fallen if the share of killed mutants is lower than recorded, however many mutants there are."""
    recorded = scores.read("a 3/4\nb 3/4\nc 3/4\nd 3/4\n")
    measured = {"a": Score(3, 4), "b": Score(6, 8), "c": Score(5, 7), "unmeasured": Score(0, 4)}
    assert scores.fallen(measured, recorded) == ["c"]
    shown = scores.table(["c", "d", "unmeasured", "e"], measured, recorded).splitlines()[1:]
    assert [line.split() for line in shown] == [["c", "5/7", "71.4%", "3/4", "75.0%", "fell"],
                                                ["d", "-", "3/4", "75.0%"], ["unmeasured", "0/4", "0.0%", "unmeasured"],
                                                ["e", "-", "unmeasured"]]


@pytest.mark.slow
def test_mutants_of_a_small_module(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mutants that a test notices are counted as killed; the lines of those that it misses are shown."""
    pytest.importorskip("cosmic_ray", reason="an environment that is older than the tool lacks cosmic-ray")
    root = tmp_path / "root"
    files = {"persipubsub/__init__.py": "", "persipubsub/ages.py": MODULE, "tests/rules/test_ages.py": TESTS}
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    score = mutation.measure(root, {"ages": ["test_ages.py::test_adult"]}, tmp_path)["ages"]
    assert 0 < score.killed < score.total
    shown = capsys.readouterr().out
    assert "survived: ages is_adult\n-    return age >= 18\n+    return age > 18\n" in shown
    assert shown.count("survived: ") == score.total - score.killed
    assert "not age" not in shown  # a negation is noticed
    assert {path: (root / path).read_text(encoding="utf-8") for path in files} == files
