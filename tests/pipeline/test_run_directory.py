"""A run directory: each stage is made once, and again exactly when what it depends on changed."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shfcas.pipeline.content import Function, Value
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.utils.config import option, read_yaml
from shfcas.utils.errors import UsageError, UserError
from tests.support.run_directories import CONFIG, Maker, Open, names, used


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
