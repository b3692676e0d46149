"""The parts of .ci/gpu-check that need no GPU. `make gpu-check-rehearsal` goes through all of it."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / ".ci/gpu-check"


@pytest.fixture(scope="module")
def gpu_check():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture
def run(gpu_check, tmp_path):
    output, work = tmp_path / "results", tmp_path / "work"
    output.mkdir()
    with open(output / "log.txt", "a") as log:
        yield gpu_check.Run(output, work, None, False, log)


def read(run, name):
    return json.loads((run.output / f"{name}.json").read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_stops_and_says_so(tmp_path):
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "gpu-check: no CUDA device" in ended.stderr
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["log.txt", "probe.json"]
    probe = json.loads((tmp_path / "results/probe.json").read_text())
    assert probe["torch"] == torch.__version__ and probe["card"] is None and probe["packages"]["pytest"]


def test_arguments(tmp_path):
    def ask(*arguments, **environment):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, **environment)

    assert "invalid choice: 'all'" in ask("--only", "all").stderr
    assert "expected STAGE=SECONDS, got build=soon" in ask("--limit", "build=soon").stderr
    ended = ask("--only", "tests", "--timeout", "0", env={"OUT": str(tmp_path / "out"), "PATH": ""})
    assert ended.returncode == 1
    assert json.loads((tmp_path / "out/tests.json").read_text())["faults"] == ["no time was left"]


def test_a_command_past_its_limit_is_stopped_with_its_children(gpu_check, run):
    script = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', SLEEP])"
    sleep = "import time; time.sleep(600)"
    begin = time.monotonic()
    ended = run.command([sys.executable, "-c", f"SLEEP = {sleep!r}\n{script}"], 2, "slow")
    assert time.monotonic() - begin < 60  # the pipe closes only when the child is gone too
    assert ended.status is None and ended.output == "begun\n"
    assert ended.fault() == "took too long: begun"
    assert "slow: begun" in (run.output / "log.txt").read_text()


def test_a_command_that_fails_or_is_missing(run):
    assert run.command([sys.executable, "-c", "raise SystemExit('no')"], 60, "x").fault() == "status 1: no"
    assert "status 127" in run.command(["no-such-program-here"], 60, "x").fault()
    assert run.command([sys.executable, "-c", ""], 60, "x").fault() == ""


def test_every_part_of_a_stage_is_written_at_once(gpu_check, run, monkeypatch):
    seen = []

    def stage(run, limit):
        yield {"first": 1}
        seen.append(read(run, "floors"))
        raise ValueError("broken")

    monkeypatch.setitem(gpu_check.PERFORMERS, "floors", stage)
    result = gpu_check.perform(run, "floors", 100)
    assert seen == [{"faults": [], "first": 1}]
    assert result["faults"] == ["ValueError: broken"] and read(run, "floors") == result


def test_the_last_line_of_a_bench(gpu_check):
    assert gpu_check.last_json('table\n  1  2\n\n{"bench": "pacs", "cases": []}\n') == {"bench": "pacs", "cases": []}
    for text, words in (("Traceback\nValueError: x", "is not JSON"), ("", "is not JSON"), ("[1]", "not a JSON object")):
        (fault,) = gpu_check.last_json(text)["faults"]
        assert words in fault


def test_benches(gpu_check, run, monkeypatch):
    (run.work / "benches").mkdir(parents=True)
    (run.work / "benches/good.py").write_text("import sys; print('{\"arguments\": %d}' % len(sys.argv))")
    (run.work / "benches/bad.py").write_text("raise SystemExit('no rival')")
    (run.work / "benches/idle.py").write_text("raise SystemExit('no CUDA device')")
    monkeypatch.setattr(gpu_check, "BENCHES", ("good", "bad", "none", "idle"))
    result = gpu_check.perform(run, "benches", 100)
    assert result["good"] == {"arguments": 4}
    assert [fault.split(":")[0] for fault in result["faults"]] == ["bad", "none", "idle"]
    assert "status 1: no rival" in result["faults"][0]
    run.rehearse = True
    assert gpu_check.perform(run, "benches", 100)["idle"] == {"rehearsed": "no CUDA device"}


TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 0
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
@pytest.mark.skip(reason="no")
def test_skipped(): pass
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_counts_of_tests(gpu_check, run, workers):
    run.work.mkdir()
    (run.work / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", *workers, "test_it.py"]
    ended = run.command(command, 100, "tests")
    counts = gpu_check.count_tests(ended.output)
    failures = counts.pop("failures")
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert sorted(failures) == ["test_it.py::test_bad", "test_it.py::test_error"]


def test_faults_of_tests(gpu_check):
    def faults(status, rehearse=False, **counts):
        counts = {"passed": 0, "failed": 0, "skipped": 0, "failures": ["a::b"] * counts.get("failed", 0)} | counts
        return gpu_check.test_faults(counts, gpu_check.Outcome(status, "the end"), rehearse)

    assert faults(0, passed=5) == []
    assert faults(1, passed=5, failed=1) == ["1 failed: a::b"]
    assert faults(None, passed=5) == ["took too long: the end"]
    assert faults(None, passed=5, failed=1) == ["1 failed: a::b", "took too long"]
    assert faults(0, skipped=5) == ["none ran on the GPU"]
    assert faults(0, skipped=5, rehearse=True) == []
    assert faults(0, rehearse=True) == ["none ran on the GPU"]


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "", "ok"),
        (1, "========= Error: Device not supported. Please refer to the documentation\n", "not available: Device not"),
        (9, "========= ERROR SUMMARY: 3 errors\n", "status 9: ========= ERROR"),
        (None, "", "took too long"),
    ],
)
def test_what_a_sanitizer_says(gpu_check, status, output, expected):
    assert gpu_check.verdict(gpu_check.Outcome(status, output)).startswith(expected)


def test_sanitizers_run_side_by_side(gpu_check, run, monkeypatch, tmp_path):
    """Each waits until all have begun; one finds something, one does not support the card."""
    run.work.mkdir()
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        f"#!{sys.executable}\nimport pathlib, sys, time\nname = sys.argv[2]\n"
        "pathlib.Path(name + '.begun').touch()\n"
        "while len(list(pathlib.Path().glob('*.begun'))) < 4: time.sleep(0.05)\n"
        "if name == 'racecheck': print('hazard'); sys.exit(9)\n"
        "if name == 'initcheck': print('Error: Device not supported'); sys.exit(1)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: str(tool))
    result = gpu_check.perform(run, "sanitizers", 100)
    assert result["memcheck"] == result["synccheck"] == "ok"
    assert result["initcheck"] == "not available: Device not supported"
    assert result["faults"] == ["racecheck: status 9: hazard"]
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: None)
    assert gpu_check.perform(run, "sanitizers", 100)["faults"] == []


def test_a_prebuilt_extension_is_taken_only_if_its_sources_are_these(gpu_check, run, tmp_path):
    folder = tmp_path / "prebuilt"
    run.prebuilt = folder
    assert "expected the work folder of a build stage" in gpu_check.take_prebuilt(run)
    (folder / "shfcas").mkdir(parents=True)
    (folder / "shfcas/_C.so").write_bytes(b"compiled")
    (folder / "shfcas/_build_info.py").write_text("")
    (folder / "digest.txt").write_text("other")
    assert gpu_check.take_prebuilt(run) == "built from other sources"
    (folder / "digest.txt").write_text(gpu_check.digest())
    assert gpu_check.take_prebuilt(run) == ""
    assert (run.work / "shfcas/_C.so").read_bytes() == b"compiled"
    assert (run.work / "tests/ops/test_cuda.py").exists() and (run.work / "benches/gpu_floors.py").exists()
    assert len(list(run.work.glob("shfcas-*.dist-info/METADATA"))) == 1
