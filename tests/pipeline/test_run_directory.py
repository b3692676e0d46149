"""A run directory: each stage is made once, whatever kills the process in between."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.utils.config import read_yaml
from shfcas.utils.errors import UserError

CONFIG = {"rounds": 2, "ppo": {"learning_rate": 1e-5}}


class Maker:
    """Writes a text and counts how often it was asked to."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.calls = text, 0
        self.context: StageContext | None = None

    def __call__(self, context: StageContext) -> None:
        self.calls += 1
        self.context = context
        context.output.write_text(self.text)


@pytest.fixture
def reopen(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Opens the same run directory as a new process would, after the one before has gone."""
    opened: list[RunDirectory] = []

    def open_again(config: dict = CONFIG, seed: int = 0) -> RunDirectory:
        while opened:
            opened.pop()._lock.close()
        run = RunDirectory(tmp_path / "run", config, seed)
        opened.append(run)
        return run

    return open_again


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_done_stage_is_not_made_again(reopen: Callable) -> None:
    make = Maker()
    for _ in range(2):
        run = reopen()
        for _ in range(2):
            assert run.stage("round-1/a.txt", make).read_text() == "made"
    assert make.calls == 1
    assert names(run.path / "round-1") == {"a.txt"}


def test_the_manifest_records_what_a_result_depends_on(reopen: Callable, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("in")
    make = Maker()
    run = reopen(seed=7)
    first = run.stage("a.txt", make, {"file": tmp_path / "in.txt", "model": "tiny"})
    run.stage("b.txt", Maker(), {"a": first})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["config"], manifest["seed"]) == (CONFIG, 7)
    assert manifest["versions"].keys() >= {"python", "torch", "shfcas"}
    record = manifest["stages"]["a.txt"]
    assert record["state"] == "done"
    assert record["inputs"]["model"] == "tiny"
    assert len(record["inputs"]["file"]) == 64
    assert record["seed"] == make.context.seed
    assert record["seconds"] >= 0
    assert manifest["stages"]["b.txt"]["inputs"] == {"a": record["output"]}
    assert "learning_rate" in (run.path / "config.yaml").read_text()


def test_each_stage_has_its_own_seed_which_follows_the_runs(tmp_path: Path) -> None:
    def seeds(folder: str, seed: int) -> list[int]:
        run, makers = RunDirectory(tmp_path / folder, CONFIG, seed), (Maker(), Maker())
        for name, make in zip(("a.txt", "b.txt"), makers, strict=True):
            run.stage(name, make)
        return [make.context.seed for make in makers]

    assert seeds("one", 0) == seeds("two", 0)
    assert len({*seeds("three", 0), *seeds("four", 1)}) == 4


def test_a_changed_configuration_is_refused_with_the_list_of_differences(reopen: Callable) -> None:
    run = reopen()
    run.stage("a.txt", Maker())
    before = (run.path / "manifest.json").read_text()
    with pytest.raises(UserError, match="was made with another configuration") as caught:
        reopen({"rounds": 3, "ppo": {"learning_rate": 1e-4}})
    assert str(caught.value).endswith("ppo.learning_rate: 1e-05 -> 0.0001; rounds: 2 -> 3")
    assert (run.path / "manifest.json").read_text() == before


def test_a_volatile_field_may_change_and_the_file_says_what_it_is_now(tmp_path: Path) -> None:
    for port in (80, 81):
        run = RunDirectory(tmp_path / "run", {"seed": 1, "page": {"port": port}}, 1, volatile={"page.port"})
        run.stage("a.txt", Maker())
        run._lock.close()
        assert read_yaml(tmp_path / "run" / "config.yaml") == {"seed": 1, "page": {"port": port}}
    with pytest.raises(UserError, match=r"undo: seed: 1 -> 2$"):
        RunDirectory(tmp_path / "run", {"seed": 2, "page": {"port": 82}}, 2, volatile={"page.port"})


def test_a_folder_in_which_nothing_was_started_takes_another_configuration(reopen: Callable) -> None:
    reopen()
    run = reopen({"rounds": 3})
    assert json.loads((run.path / "manifest.json").read_text())["config"] == {"rounds": 3}
    assert (run.path / "config.yaml").read_text() == "rounds: 3\n"


def test_a_changed_input_is_refused_until_the_output_is_deleted(reopen: Callable, tmp_path: Path) -> None:
    source, make = tmp_path / "in.txt", Maker()
    source.write_text("one")
    output = reopen().stage("a.txt", make, {"prompts": source, "model": "tiny"})
    source.write_text("two")
    with pytest.raises(UserError, match=r"^prompts changed after .*a\.txt was made from it; delete"):
        reopen().stage("a.txt", make, {"prompts": source, "model": "tiny"})
    with pytest.raises(UserError, match=r"^prompts, model changed"):
        reopen().stage("a.txt", make, {"prompts": source, "model": "other"})
    output.unlink()
    reopen().stage("a.txt", make, {"prompts": source, "model": "tiny"})
    reopen().stage("a.txt", make, {"prompts": source, "model": "tiny"})
    assert make.calls == 2


def test_what_is_made_from_a_remade_output_is_refused_too(reopen: Callable) -> None:
    run = reopen()
    first = run.stage("a.txt", Maker("one"))
    run.stage("b.txt", Maker(), {"a": first})
    first.unlink()
    run.stage("a.txt", Maker("two"))
    with pytest.raises(UserError, match=r"^a changed after .*b\.txt"):
        run.stage("b.txt", Maker(), {"a": first})


def test_a_failing_stage_leaves_its_work_folder_and_no_output(reopen: Callable) -> None:
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
    assert run.manifest["stages"]["a.txt"]["state"] == "running"
    run = reopen()
    assert run.stage("a.txt", resume).read_text() == "kept"
    assert names(run.path) == {".lock", "manifest.json", "config.yaml", "a.txt"}


def test_a_stage_begun_with_other_inputs_starts_over(reopen: Callable) -> None:
    def fail(context: StageContext) -> None:
        (context.work_dir / "shard-0").write_text("old")
        raise RuntimeError

    def work(context: StageContext) -> None:
        context.output.write_text(" ".join(sorted(names(context.work_dir))))

    with pytest.raises(RuntimeError):
        reopen().stage("a.txt", fail, {"model": "old"})
    assert reopen().stage("a.txt", work, {"model": "new"}).read_text() == ""


def test_a_folder_is_an_output_too(reopen: Callable) -> None:
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


def test_a_kill_between_rename_and_manifest_makes_nothing_twice(
    reopen: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    with monkeypatch.context() as patch:
        patch.setattr(
            "shfcas.pipeline.run_directory.content_hash", lambda path: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            reopen().stage("a.txt", make)
    run = reopen()
    assert (run.path / "a.txt").exists()
    assert run.manifest["stages"]["a.txt"]["state"] == "running"
    run.stage("a.txt", make)
    assert make.calls == 1
    assert run.manifest["stages"]["a.txt"]["state"] == "done"
    assert names(run.path) == {".lock", "manifest.json", "config.yaml", "a.txt"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error_and_the_stage_can_be_run_again(reopen: Callable) -> None:
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


def test_a_directory_that_is_open_is_refused_until_it_is_closed(reopen: Callable) -> None:
    run = reopen()
    with pytest.raises(UserError, match=r"another process is working in .*; wait for it, or name another folder"):
        RunDirectory(run.path, CONFIG, 0)
    run._lock.close()
    assert RunDirectory(run.path, CONFIG, 0).path == run.path


@pytest.mark.system
def test_a_second_process_is_refused_until_the_first_has_gone(reopen: Callable) -> None:
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
