"""Progress without a terminal: log lines at least every 30 s of a fake clock, and none of short work."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from shfcas.utils import progress as module
from shfcas.utils.progress import EVERY, progress, rollout_log, stage_progress


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    monkeypatch.setattr(module, "POLL", 3600.0)  # the thread stays out of it
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with caplog.at_level("INFO", "shfcas"):
        yield made


def test_a_line_every_half_minute_has_progress_rate_and_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in progress(range(100), "scoring"):
        clock.now += 2.0
    assert len(caplog.messages) == int(200 / EVERY)
    assert caplog.messages[0] == "scoring: 15 of 100 (15%), 0.5 per second, 2 min 50 s left"


def test_short_work_is_silent(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress(range(29), "scoring"):
        clock.now += 1.0
    assert not caplog.messages


def test_what_was_done_before_is_not_in_the_rate(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress(desc="sampling", total=1000, initial=900) as bar:
        clock.now += 30
        bar.update(3)
    assert caplog.messages == ["sampling: 903 of 1,000 (90%), 0.1 per second, 16 min 10 s left"]


def test_slow_steps_have_a_time_each(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress(desc="PPO", total=4) as bar:
        clock.now += 90
        bar.update()
        clock.now += 10
        bar.update()  # less than half a minute after the last line
    assert caplog.messages == ["PPO: 1 of 4 (25%), 1 min 30 s each, 4 min 30 s left"]


def test_a_stage_says_that_it_runs_unless_progress_inside_it_does(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_progress("round-1/policy") as stage:
        clock.now += 31
        stage.look()
        with progress(desc="PPO", total=2):
            clock.now += 31
            stage.look()
        clock.now += 31
        stage.look()
    stage.look()
    assert caplog.messages == ["round-1/policy: running for 31 s", "round-1/policy: running for 1 min 33 s"]


def test_a_thread_writes_the_lines_of_one_long_step(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    with progress(desc="PPO", total=2):
        clock.now += 40
        end = time.monotonic() + 100
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
    assert caplog.messages == ["PPO: 0 of 2 (0%), running for 40 s"]


def test_a_forgotten_progress_ends_its_thread(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.01)
    before = threading.active_count()
    bar = progress(desc="sampling", total=2)
    del bar
    gc.collect()
    end = time.monotonic() + 100
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_each_rollout_is_a_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rows = rollout_log("PPO", 50)
    rows.on_log(None, None, None, {"loss": 0.5})
    rows.on_log(None, None, None, {"rollout": 2, "objective/scores": 0.123456, "objective/kl": 3.0, "lr": 1.0})
    assert caplog.messages == ["PPO rollout 3 of 50: objective/scores 0.1235, objective/kl 3"]
