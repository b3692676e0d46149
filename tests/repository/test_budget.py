"""The budget of the tests: a slow test fails, and so does a sum that has grown."""

import json
from pathlib import Path

import pytest

from tests.support import budget

pytest_plugins = ["pytester"]

COMMITTED = {"loop": 0.03, "tests": 3, "total": 10.0, "slowest": {}}


def test_a_slow_test_is_named_and_so_is_a_sum_that_has_grown() -> None:
    assert budget.findings({"a": (4.9, 6.0), "b": (0.1, 4.9)}, COMMITTED) == []
    slow, slower = budget.findings({"a": (5.1, 5.1), "b": (6.0, 6.0), "c": (0.0, -0.2)}, COMMITTED)
    assert slow.startswith("b: 6.0 s of CPU, more than 5: make it smaller") and slower.startswith("a: 5.1 s")
    (grown,) = budget.findings({name: (2.0, 2.3) for name in "abcde"}, COMMITTED)
    assert grown.startswith("all 5 tests: 12 s of CPU, 15% more than the 10 of budget.json (3 tests)")


def test_the_file_lists_the_slowest() -> None:
    costs = {f"t{k}": (float(k), k + 0.5) for k in range(12)}
    written = budget.summary(costs, 0.031234567)
    assert written["tests"] == 12 and written["total"] == 72.0 and written["loop"] == 0.03123
    assert list(written["slowest"]) == [f"t{k}" for k in range(11, 1, -1)]


TESTS = """
import time
import pytest

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture
def costly():
    burn(0.06)

def test_quick(): pass
def test_with_a_costly_fixture(costly): pass
def test_slow(): burn(0.06)
@pytest.mark.system
def test_of_the_system(): burn(0.06)
@pytest.mark.slow
def test_marked(): burn(0.06)
"""


def test_a_session_fails_for_a_test_that_is_slow_by_itself(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(pytester.path) / "budget.json"
    monkeypatch.setattr(budget, "FILE", file)
    monkeypatch.setattr(budget, "LIMIT", 0.03)
    monkeypatch.setattr(budget, "preload", lambda: None)
    pytester.makeini("[pytest]\nmarkers =\n    slow\n    system\n")
    pytester.makepyfile(TESTS)
    options = ("-p", "no:xdist", "-p", "no:randomly")
    result = pytester.runpytest_inprocess(*options, "-k", "quick", "--budget", "check", plugins=[budget])
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["budget: there is no budget.json to compare with*"])
    result = pytester.runpytest_inprocess(*options, "--budget", "update", plugins=[budget])
    result.assert_outcomes(passed=5)
    written = json.loads(file.read_text())
    assert written["tests"] == 3 and written["total"] > 0 and "test_slow" in next(iter(written["slowest"]))
    result = pytester.runpytest_inprocess(*options, "--budget", "check", plugins=[budget])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["budget: *::test_slow: 0.? s of CPU, more than 0.03*"])
    result.stdout.no_fnmatch_line("*test_with_a_costly_fixture: *")
    result.stdout.no_fnmatch_line("*test_marked: *")
    result = pytester.runpytest_inprocess(*options, "-k", "quick", "--budget", "check", plugins=[budget])
    assert result.ret == pytest.ExitCode.OK
    assert pytester.runpytest_inprocess(*options, plugins=[budget]).ret == pytest.ExitCode.OK
