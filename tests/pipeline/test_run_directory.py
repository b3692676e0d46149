"""A run directory: each stage is made once, and again exactly when what it depends on changed."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shfcas.pipeline.content import Function, Value
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.utils.config import option, read_yaml
from shfcas.utils.errors import UsageError, UserError

CONFIG: dict[str, Any] = {"rounds": 2, "ppo": {"learning_rate": 1e-5, "steps": 3}, "page": {"port": 80}}


class Maker:
    """Writes a text and counts how often it was called."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.calls = text, 0
        self.context: StageContext | None = None

    def __call__(self, context: StageContext) -> None:
        self.calls += 1
        self.context = context
        context.output.write_text(self.text)


Open = Callable[..., RunDirectory]


def used(*names: str, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """Parts of the configuration by their dotted names."""
    found = {}
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


@pytest.fixture
def reopen(tmp_path: Path) -> Open:
    """Opens the same run directory as a new process would, after the one before has gone."""
    opened: list[RunDirectory] = []

    def open_again(config: dict = CONFIG, seed: int = 0, path: Path | None = None, **options: Any) -> RunDirectory:
        while opened:
            opened.pop()._lock.close()
        run = RunDirectory(path or tmp_path / "run", config, seed, **options)
        run.begin()
        opened.append(run)
        return run

    return open_again


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".hashes.json"}


def test_a_done_stage_is_not_made_again(reopen: Open) -> None:
    make = Maker()
    for _ in range(2):
        run = reopen()
        for _ in range(2):
            assert run.stage("round-1/a.txt", make).read_text() == "made"
    assert make.calls == 1
    assert names(run.path / "round-1") == {"a.txt"}


def test_the_manifest_records_what_a_result_depends_on(reopen: Open, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("in")
    make = Maker()
    run = reopen(seed=7)
    first = run.stage("a.txt", make, inputs={"file": tmp_path / "in.txt", "rows": Value([1, 2])}, settings=used("ppo"))
    run.stage("b.txt", Maker(), inputs={"a": first})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["config"], manifest["seed"]) == (CONFIG, 7)
    assert manifest["versions"].keys() >= {"python", "torch", "shfcas"}
    record = manifest["stages"]["a.txt"]
    assert record["state"] == "done"
    assert len(record["inputs"]["file"]) == 64
    assert record["settings"] == {"ppo.learning_rate": 1e-5, "ppo.steps": 3}
    assert record["seed"] == make.context.seed
    assert record["seconds"] >= 0
    size, _, content = record["files"]["."]
    assert size == 4 and len(content) == 64
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


# A small run: two sources, two settings, four stages, and what each stage depends on.
STAGES = {
    "a.txt": (["one"], ["ppo.steps"]),
    "b.txt": (["a.txt", "two"], []),
    "c.txt": (["a.txt"], ["ppo.learning_rate"]),
    "d.txt": (["b.txt", "c.txt"], ["rounds"]),
}
CHANGES = ("one", "two", "ppo.steps", "ppo.learning_rate", "rounds", "page.port", "move", "copy", "spell", "nothing")


def run_all(run: RunDirectory, files: dict[str, Path]) -> list[str]:
    """Runs the stages; each output holds all that it depends on. Returns which were made."""
    made = []
    for name, (inputs, uses) in STAGES.items():
        paths = {key: files.get(key, run.path / key) for key in inputs}

        def make(context: StageContext, name: str = name, paths: dict = paths, uses: list = uses) -> None:
            made.append(name)
            values = [run.config["ppo"][key.split(".")[1]] if "." in key else run.config[key] for key in uses]
            context.output.write_text(json.dumps([name, values, [path.read_text() for path in paths.values()]]))

        sources = {key.replace(".", "_"): path for key, path in paths.items()}
        run.stage(name, make, inputs=sources, settings=used(*uses, config=run.config))
    return made


def expected_after(changes: set[str]) -> list[str]:
    stale: set[str] = set(changes)
    for name, (inputs, uses) in STAGES.items():
        if stale & {*inputs, *uses}:
            stale.add(name)
    return [name for name in STAGES if name in stale]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(changes=st.sets(st.sampled_from(CHANGES), min_size=1, max_size=3))
def test_exactly_the_stages_run_again_that_depend_on_what_changed(
    changes: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("case")
    sources = {name: folder / name for name in ("one", "two")}
    for path in sources.values():
        path.write_text("before")
    config = json.loads(json.dumps(CONFIG))
    first = RunDirectory(folder / "run", config, 0)
    first.begin()
    assert run_all(first, sources) == list(STAGES)
    first._lock.close()
    where = folder / "run"
    for change in sorted(changes):
        if change in sources:
            sources[change].write_text("after!")
        elif change == "rounds":
            config["rounds"] = 5
        elif "." in change:
            section, key = change.split(".")
            config[section][key] = 99
        elif change == "move":
            where = where.rename(folder / f"moved-{where.name}")
        elif change == "copy":
            where = Path(shutil.copytree(where, folder / f"copied-{where.name}"))
        elif change == "spell":
            where = where.parent / ".." / where.parent.name / where.name
    again = RunDirectory(where, config, 0, approved=True)
    again.begin()
    with again.planning() as plan:
        run_all(again, sources)
    expected = expected_after(changes)
    assert [stage.name for stage in plan.stages if stage.state != "done"] == expected
    assert run_all(again, sources) == expected
    assert run_all(again, sources) == []


def test_a_stale_stage_is_not_replaced_without_leave(reopen: Open, tmp_path: Path) -> None:
    source, make = tmp_path / "in.txt", Maker()
    source.write_text("one")
    reopen().stage("a.txt", make, inputs={"prompts": source}, settings=used("rounds"))
    source.write_text("other")
    message = r"run/a\.txt was made otherwise \(prompts: .*in\.txt changed\); undo that, or delete the output"
    with pytest.raises(UsageError, match=message):
        reopen().stage("a.txt", make, inputs={"prompts": source}, settings=used("rounds"))
    changed = {**CONFIG, "rounds": 3}
    with pytest.raises(UsageError, match=r"prompts: .* changed; rounds: 2 -> 3"):
        reopen(changed).stage("a.txt", make, inputs={"prompts": source}, settings=used("rounds", config=changed))
    assert make.calls == 1
    run = reopen(changed, approved=True)
    run.stage("a.txt", make, inputs={"prompts": source}, settings=used("rounds", config=changed))
    assert make.calls == 2
    assert run.manifest.stages["a.txt"].because == [f"prompts: {source} changed", "rounds: 2 -> 3"]


def test_downstream_stages_stay_when_an_output_comes_out_the_same(reopen: Open, tmp_path: Path) -> None:
    source, first, second = tmp_path / "in.txt", Maker("same"), Maker()
    for text in ("one", "two!"):
        source.write_text(text)
        run = reopen(approved=True)
        made = run.stage("a.txt", first, inputs={"source": source})
        run.stage("b.txt", second, inputs={"a": made})
    assert (first.calls, second.calls) == (2, 1)


def test_the_plan_says_why_and_makes_nothing(reopen: Open, tmp_path: Path) -> None:
    source, makers = tmp_path / "in.txt", {name: Maker() for name in "abc"}
    source.write_text("one")

    def stages(run: RunDirectory) -> None:
        first = run.stage("a.txt", makers["a"], inputs={"source": source})
        second = run.stage("b.txt", makers["b"], inputs={"a": first}, settings=used("rounds"))
        run.stage("c.txt", makers["c"], inputs={"b": second})

    run = reopen()
    with run.planning() as plan:
        stages(run)
    assert [(s.name, s.state) for s in plan.stages] == [("a.txt", "to do"), ("b.txt", "to do"), ("c.txt", "to do")]
    assert not plan.stale() and not (run.path / "a.txt").exists()
    stages(run)
    source.write_text("two!")
    with run.planning() as plan:
        stages(run)
    assert [(s.name, s.reasons) for s in plan.stale()] == [
        ("a.txt", (f"source: {source} changed",)),
        ("b.txt", ("a: a.txt is made again",)),
        ("c.txt", ("b: b.txt is made again",)),
    ]
    assert all(make.calls == 1 for make in makers.values())


def test_a_function_is_its_modules_source(reopen: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module, make = tmp_path / "a_judge.py", Maker()
    module.write_text("def gold(prompts, completions):\n    return [0.0]\n")
    reopen().stage("a.txt", make, inputs={"gold": Function("a_judge:gold")})
    module.write_text("def gold(prompts, completions):\n    return [1.0]\n")
    with pytest.raises(UsageError, match="gold: a_judge:gold changed"):
        reopen().stage("a.txt", make, inputs={"gold": Function("a_judge:gold")})


@dataclass
class Page:
    """A section of a configuration."""

    port: int = option(80, "port", volatile=True)
    overlap: int = option(1, "annotators per comparison")


def test_a_volatile_field_may_change_and_the_file_says_what_it_is_now(reopen: Open) -> None:
    make = Maker()
    for port in (80, 81):
        run = reopen({**CONFIG, "page": {"port": port}})
        run.stage("a.txt", make, settings={"page": Page(port=port)})
        assert read_yaml(run.path / "config.yaml")["page"] == {"port": port}
    assert make.calls == 1
    assert run.manifest.stages["a.txt"].settings == {"page.overlap": 1}
    with pytest.raises(UsageError, match=r"page\.overlap: 1 -> 2"):
        run.stage("a.txt", make, settings={"page": Page(overlap=2)})


def test_a_deleted_output_is_made_again_and_what_follows_only_if_it_differs(reopen: Open) -> None:
    run = reopen()
    first = run.stage("a.txt", Maker("one"))
    run.stage("b.txt", Maker(), inputs={"a": first})
    first.unlink()
    run.stage("a.txt", Maker("one"))
    again = Maker()
    run.stage("b.txt", again, inputs={"a": first})
    assert again.calls == 0
    first.unlink()
    run.stage("a.txt", Maker("two"))
    with pytest.raises(UsageError, match=r"b\.txt was made otherwise \(a: a\.txt changed\)"):
        run.stage("b.txt", again, inputs={"a": first})


def damaged(path: Path, how: str) -> None:
    """Damages a file without leaving a later time stamp where that is possible."""
    content, stat = path.read_bytes(), path.stat()
    if how == "emptied":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "one bit flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif how == "deleted":
        path.unlink()


@pytest.mark.parametrize("how", ["emptied", "truncated", "one bit flipped", "deleted"])
def test_damage_is_found_before_a_later_stage_reads_it(reopen: Open, how: str) -> None:
    def make(context: StageContext) -> None:
        context.output.mkdir()
        for name in ("weights", "config"):
            (context.output / name).write_text(name)

    run = reopen()
    model = run.stage("model", make)
    damaged(model / "weights", how)
    for use in (lambda run: run.stage("model", make), lambda run: run.stage("b.txt", Maker(), inputs={"m": model})):
        with pytest.raises(UserError, match=r"model/weights: .*; restore it from a copy, or delete .*model to make it"):
            use(reopen())
    shutil.rmtree(model)
    assert names(reopen().stage("model", make)) == {"weights", "config"}


def test_a_file_that_joined_an_output_is_found(reopen: Open) -> None:
    def make(context: StageContext) -> None:
        context.output.mkdir()
        (context.output / "weights").write_text("1")

    model = reopen().stage("model", make)
    (model / "adapter").write_text("2")
    with pytest.raises(UserError, match=r"model/adapter: was not there when the stage was done"):
        reopen().stage("model", make)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds results \(round-1\) and no manifest\.json"),
        ("", "not valid JSON"),
        ("[]", r"expected format 2, but it was written otherwise"),
        ('{"stages": {}}', "written by an earlier version of shfcas"),
        ('{"format": 2, "stages": {"a": 3}}', "damaged record"),
        ('{"format": 2, "stages": {"a": {"state": "done"}}}', "damaged record"),
        ('{"format": 2}', "damaged record"),
    ],
)
def test_a_missing_or_damaged_manifest_is_never_replaced(reopen: Open, text: str | None, message: str) -> None:
    run = reopen()
    run.stage("round-1/a.txt", Maker())
    manifest = run.path / "manifest.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(UserError, match=rf"{message}.*put .*manifest\.json back from a copy, or name a new folder"):
        reopen()
    assert (manifest.read_text() if text is not None else None) == text


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
