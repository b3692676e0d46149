"""Answers on a disk that fails at one of its writes and flushes, whichever it is: no acknowledged answer is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.store import Store
from tests.support.broken_disk_answers import ANSWERS

ROOT = Path(__file__).parents[3]
KINDS = {"a flush fails": 1, "a write is cut short": 2, "the disk is full": 3, "the power fails": 4}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are preloaded like that on Linux only"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "the build needs a compiler, too"
    made = tmp_path_factory.mktemp("disk") / "broken_disk.so"
    source = ROOT / "tests" / "support" / "broken_disk.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_acknowledged_answer_is_lost(kind: int, library: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.broken_disk_answers", str(tmp_path), str(kind)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"LD_PRELOAD": str(library)}, check=True, timeout=500)
    tried = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(tried) > ANSWERS  # one failure at least for each answer
    interrupted = 0
    for folder in tried:
        acknowledged = (folder / "acknowledged").read_text().split()
        with Store(folder / "feedback.sqlite") as store:
            log = store.judgements()
            assert store.rows("PRAGMA integrity_check") == [("ok",)]
            assert store.record_all([log[0]]) == 0 if log else True
        written = [j.id for j in log]
        assert set(acknowledged) <= set(written), folder
        assert len(set(written)) == len(written)
        # An answer and its undo are one transaction: both or neither.
        assert {id.replace("undo", "answer") for id in written if id.startswith("undo")} <= set(written)
        undone = {id.partition("-")[2] for id in written if id.startswith("undo")}
        assert undone == {str(n) for n in range(3, ANSWERS, 4) if f"answer-{n}" in written}
        assert len(effective(log)) == len(written) - 2 * len(undone)
        interrupted += len(acknowledged) < ANSWERS + ANSWERS // 4
    if kind == KINDS["the power fails"]:
        assert interrupted == len(tried) - 1
    assert len((tried[-1] / "acknowledged").read_text().split()) == ANSWERS + ANSWERS // 4  # a whole disk
