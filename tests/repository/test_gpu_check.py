"""The parts of .ci/gpu-check that need no GPU."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / ".ci/gpu-check"


@pytest.fixture(scope="module")
def gpu_check():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_fails_and_says_so(tmp_path):
    output = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--output", str(output), "--work", str(tmp_path / "work")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "gpu-check: no CUDA device" in run.stderr
    assert not output.exists()


def test_the_last_line_of_a_bench(gpu_check):
    assert gpu_check.last_json('table\n  1  2\n\n{"bench": "pacs", "cases": []}\n') == {"bench": "pacs", "cases": []}
    assert "is not JSON" in gpu_check.last_json("Traceback\nValueError: x")["fault"]
    assert "is not JSON" in gpu_check.last_json("")["fault"]
    assert "not a JSON object" in gpu_check.last_json("[1]")["fault"]


def test_a_missing_and_a_failing_bench_are_faults(gpu_check, tmp_path, capfd):
    (tmp_path / "benches").mkdir()
    (tmp_path / "benches/good.py").write_text("import sys; print('{\"arguments\": %d}' % len(sys.argv))")
    (tmp_path / "benches/bad.py").write_text("raise SystemExit('no rival')")
    assert gpu_check.run_bench(tmp_path, "good") == {"arguments": 4}
    assert "status 1: no rival" in gpu_check.run_bench(tmp_path, "bad")["fault"]
    assert gpu_check.run_bench(tmp_path, "none") == {"fault": "benches/none.py is missing"}


def test_counts_of_tests(gpu_check, tmp_path):
    (tmp_path / "test_cuda.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 0\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.skip(reason='no')\ndef test_skipped(): pass\n"
    )
    (tmp_path / "test_other.py").write_text("def test_good(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=tests.xml"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert gpu_check.read_junit(tmp_path / "tests.xml") == {"passed": 2, "failed": 2, "skipped": 1}
    assert gpu_check.read_junit(tmp_path / "tests.xml", "test_cuda") == {"passed": 1, "failed": 2, "skipped": 1}
    assert gpu_check.read_junit(tmp_path / "missing.xml")["passed"] == 0


def test_imports_that_are_absent(gpu_check, tmp_path):
    (tmp_path / "rows.py").write_text("")
    (tmp_path / "test_a.py").write_text(
        "import torch, no_such_rival.sub\nfrom rows import x\nfrom other_rival import y\n"
    )
    assert gpu_check.absent_modules(tmp_path / "test_a.py") == ["no_such_rival", "other_rival"]


def test_faults(gpu_check):
    good = {
        "build": "ok",
        "tests": {"passed": 9, "failed": 0, "status": 0, "on gpu": {"passed": 5}},
        "sanitizers": {"memcheck": "ok", "racecheck": "compute-sanitizer not found"},
        "benches": {"pacs": {"cases": []}},
    }
    assert gpu_check.faults(good) == []
    for part, value, words in (
        ("build", "pip ended with status 1", "build: pip"),
        ("tests", {**good["tests"], "failed": 2, "status": 1}, "2 failed"),
        ("tests", {**good["tests"], "on gpu": {"passed": 0}}, "none ran on the GPU"),
        ("sanitizers", {"racecheck": "status 9: hazard"}, "racecheck: status 9"),
        ("benches", {"pacs": {"fault": "benches/pacs.py is missing"}}, "bench pacs: benches/pacs.py is missing"),
    ):
        (fault,) = gpu_check.faults({**good, part: value})
        assert words in fault


def test_versions_are_known_without_a_device(gpu_check):
    versions = gpu_check.versions()
    assert versions["torch"] == torch.__version__
    json.dumps(versions)
