"""A disk that fills up in each stage of a run: one line, nothing finished lost, and the same results afterwards."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.pipeline.inspection import verify
from shfcas.pipeline.run_directory import PlannedStage, RunDirectory
from tests.pipeline.conftest import write_config
from tests.support.asked_runs import HUMAN, answer_through_store, outputs

SPACE = (0, 40_000, 150_000, 600_000, 2_500_000)  # bytes that are left when a stage begins


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # models of the run may still map their weights


class Ballast:
    """A file that fills a disk while one stage is made."""

    def __init__(self, disk: Path) -> None:
        self.file, self.stage, self.space = disk / "ballast", "", 0

    def fill(self, name: str) -> None:
        """Leaves only some space if it is the stage's turn."""
        if name != self.stage:
            return
        found = os.statvfs(self.file.parent)
        with self.file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - self.space))

    def free(self) -> None:
        self.file.unlink(missing_ok=True)


@pytest.mark.system
@pytest.mark.slow
def test_a_disk_that_is_full_in_any_stage(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "sources").mkdir()
    config, run = write_config(tmp_path / "sources"), disk / "run"
    text = config.read_text().replace("evaluation: {", "evaluation: {judge: human, num_comparisons: 8, ")
    config.write_text(text + HUMAN)
    command = ["run", str(config), "--output", str(run)]
    answer_through_store(monkeypatch, [])
    assert main(command) == 0
    unbroken, stages = outputs(run), [*RunDirectory(run, {}, 0).manifest.stages]
    run.rename(disk / "unbroken")

    ballast, make = Ballast(disk), RunDirectory._make

    def filled(self: RunDirectory, planned: PlannedStage, of: Any) -> None:
        ballast.fill(planned.name)
        make(self, planned, of)
        if planned.name == ballast.stage:
            raise KeyboardInterrupt  # the stage had space enough

    monkeypatch.setattr(RunDirectory, "_make", filled)
    failures = dict.fromkeys(stages, 0)
    for stage in stages:
        ballast.stage = stage
        for ballast.space in SPACE:
            capsys.readouterr()
            code = main(command)
            ballast.free()
            if code == 130:
                break
            failures[stage] += 1
            errors = capsys.readouterr().err
            assert code == 1 and "Traceback" not in errors
            assert errors.splitlines()[-1].startswith("shfcas run: ") and "no space left on the disk" in errors
            assert not [finding for finding in verify(run) if "left behind" not in finding]
    assert main(command) == 0
    assert outputs(run) == unbroken and verify(run) == []
    assert all(failures.values())
    inside = {stage for stage, count in failures.items() if count > 1}  # not only before the stage began
    assert {f"round-1/{name}" for name in ("reward_model", "policy", "evaluation_candidates.parquet")} < inside
