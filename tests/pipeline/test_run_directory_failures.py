"""Stages that fail, are killed or find the disk full, and processes that want the same run directory."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from shfcas.pipeline.content import Value
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.utils.errors import UserError
from tests.support.run_directories import CONFIG, Maker, Open, names, used


def test_a_failing_stage_leaves_its_work_folder_and_no_output(reopen: Open) -> None:
    def fail(context: StageContext) -> None:
        (context.work_dir / "shard-0").write_text("kept")
        context.output.write_text("half")
        raise RuntimeError("out of memory")

    def resume(context: StageContext) -> None:
        assert not context.output.exists()  # the half output of the failure is gone
        context.output.write_text((context.work_dir / "shard-0").read_text())

    run = reopen()
    with pytest.raises(RuntimeError, match="out of memory"):
        run.stage("a.txt", fail)
    assert not (run.path / "a.txt").exists()
    assert run.manifest.stages["a.txt"].state == "running"
    run = reopen()
    with run.planning() as plan:
        run.stage("a.txt", resume)
    assert plan.stages[0].state == "running"
    assert run.stage("a.txt", resume).read_text() == "kept"
    assert names(run.path) == {".lock", "manifest.json", "config.yaml", "a.txt"}


@pytest.mark.parametrize("config", [CONFIG, {**CONFIG, "rounds": 3}], ids=["other inputs", "other settings"])
def test_a_stage_begun_with_something_else_starts_over(reopen: Open, config: dict) -> None:
    def fail(context: StageContext) -> None:
        (context.work_dir / "shard-0").write_text("old")
        raise RuntimeError

    def work(context: StageContext) -> None:
        context.output.write_text(" ".join(sorted(names(context.work_dir))))

    with pytest.raises(RuntimeError):
        reopen().stage("a.txt", fail, inputs={"rows": Value("old")}, settings=used("rounds"))
    inputs = {"rows": Value("new" if config is CONFIG else "old")}
    assert reopen(config).stage("a.txt", work, inputs=inputs, settings=used("rounds", config=config)).read_text() == ""


def test_a_killed_replacement_does_not_pass_for_the_new_output(reopen: Open) -> None:
    """A stale output must be gone before its stage runs again, or it would be taken for the new one."""

    def fail(context: StageContext) -> None:
        raise KeyboardInterrupt

    reopen().stage("a.txt", Maker("old"), settings=used("rounds"))
    changed = {**CONFIG, "rounds": 3}
    with pytest.raises(KeyboardInterrupt):
        reopen(changed, approved=True).stage("a.txt", fail, settings=used("rounds", config=changed))
    assert reopen(changed).stage("a.txt", Maker("new"), settings=used("rounds", config=changed)).read_text() == "new"


def test_a_folder_is_an_output_too(reopen: Open) -> None:
    def make(context: StageContext) -> None:
        context.output.mkdir()
        (context.output / "weights").write_text("1")

    def fail(context: StageContext) -> None:
        make(context)
        raise RuntimeError

    run = reopen()
    with pytest.raises(RuntimeError):
        run.stage("model", fail)
    assert names(reopen().stage("model", make)) == {"weights"}


def test_a_kill_between_rename_and_manifest_makes_nothing_twice(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    with monkeypatch.context() as patch:
        patch.setattr(
            "shfcas.pipeline.run_directory.describe_files", lambda path: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            reopen().stage("a.txt", make)
    run = reopen()
    assert (run.path / "a.txt").exists()
    assert run.manifest.stages["a.txt"].state == "running"
    run.stage("a.txt", make)
    assert make.calls == 1
    assert run.manifest.stages["a.txt"].state == "done"
    assert names(run.path) == {".lock", "manifest.json", "config.yaml", "a.txt"}


def test_orphaned_work_is_removed_and_that_of_a_running_stage_kept(reopen: Open) -> None:
    def fail(context: StageContext) -> None:
        (context.work_dir / "shard-0").write_text("kept")
        raise RuntimeError

    run = reopen()
    with pytest.raises(RuntimeError):
        run.stage("round-1/a.txt", fail)
    for name in (".gone.work", "round-1/.gone.partial"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "x").write_text("x")
    run = reopen()
    assert names(run.path / "round-1") == {".a.txt.work"}
    assert ".gone.work" not in names(run.path)
    assert names(run.path / "round-1" / ".a.txt.work") == {"shard-0"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error_and_the_stage_can_be_run_again(reopen: Open) -> None:
    def fill(context: StageContext) -> None:
        Path("/dev/full").write_text("x")

    run = reopen()
    with pytest.raises(UserError, match=r"no space left on the disk while writing .*a\.txt"):
        run.stage("a.txt", fill)
    assert reopen().stage("a.txt", Maker()).read_text() == "made"


def test_a_folder_that_may_not_be_written_to_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied; choose a folder you may write to"):
        RunDirectory(tmp_path, CONFIG, 0)


def test_a_directory_that_is_open_is_refused_until_it_is_closed(reopen: Open) -> None:
    run = reopen()
    with pytest.raises(UserError, match=r"another process is working in .*; wait for it, or name another folder"):
        RunDirectory(run.path, CONFIG, 0)
    run._lock.close()
    assert RunDirectory(run.path, CONFIG, 0).path == run.path


@pytest.mark.system
def test_a_second_process_is_refused_until_the_first_has_gone(reopen: Open) -> None:
    run = reopen()
    code = (
        "import sys\nfrom shfcas.utils.errors import UserError\n"
        "from shfcas.pipeline.run_directory import RunDirectory\n"
        f"try:\n    RunDirectory(sys.argv[1], {CONFIG!r}, 0)\n"
        "except UserError as error:\n    print(error)\nelse:\n    print('open')"
    )

    def second() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert second() == f"another process is working in {run.path}; wait for it, or name another folder"
    run._lock.close()
    assert second() == "open"
