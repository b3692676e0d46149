"""The arithmetic of benches.gpu_floors, which needs no GPU, and that it refuses to measure without one."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benches import gpu_floors
from benches.clock import Timing
from benches.gpu_floors import Bar


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("bench", ["gpu_floors", "pacs"])
def test_without_a_device_it_refuses(bench):
    options = [] if bench == "gpu_floors" else ["--device", "cuda"]
    run = subprocess.run([sys.executable, "-m", f"benches.{bench}", *options], capture_output=True, text=True)
    assert run.returncode != 0 and "no CUDA device" in run.stderr
    assert "Traceback" not in run.stderr and run.stdout == ""


def test_bytes_and_pairs():
    assert gpu_floors.bytes_of_rows(10, 8, 4, tensors=2, per_row=8) == 10 * (64 + 8)
    assert gpu_floors.pairs_of(64) == 2016
    # An H100: 132 multiprocessors, 128 lanes, 1.9 GHz, 8 instructions.
    assert gpu_floors.pairs_per_second(132, 1900) == pytest.approx(132 * 128 * 1.9e9 / 8)


def test_an_op_as_fast_as_a_copy_is_at_one():
    """A copy moves every byte twice, an op the bytes that are counted."""
    case = gpu_floors.beside_copy(2000, 1e-6, 1000, 1e-6)
    assert case == pytest.approx({"GB/s": 2.0, "copy GB/s": 2.0, "of copy": 1.0})
    assert gpu_floors.beside_copy(2000, 4e-6, 1000, 1e-6)["of copy"] == pytest.approx(0.25)
    assert gpu_floors.beside_pairs(100, 1e-3, 4e5) == pytest.approx(
        {"pairs/s": 1e5, "floor pairs/s": 4e5, "of floor": 0.25}
    )


def test_bars():
    assert Bar("ms", "<=", 0.25).columns({"ms": 0.25}) == {"bar": "ms <= 0.25", "reached": True}
    assert not Bar("ms", "<=", 0.25).columns({"ms": 0.26})["reached"]
    assert not Bar("of copy", ">=", 0.8).columns({"of copy": 0.79})["reached"]


def test_short_rows_and_turns_are_larger_than_a_cache():
    assert gpu_floors.VALUES // 16 >= 2**23
    assert gpu_floors.turns(2 * 1000 * 1024 * 4) * 2 * 1000 * 1024 * 4 >= 2**27
    assert gpu_floors.turns(2**30) == 1 and gpu_floors.turns(1) == gpu_floors.MOST_TURNS


def test_every_case_on_a_cpu(monkeypatch):
    """All ops are called and all columns computed, on small inputs with a clock that always says a millisecond."""
    called = []

    def timed(calls):
        called.extend(call() for call in calls)
        return Timing(1e-3, 1e-3, 1)

    def of_lengths(command, env, **_):
        longest = int(env["SHFCAS_CUDA_CROSSOVER"])
        line = json.dumps({n: gpu_floors.seconds_of_rows(int(n)) for n in command[command.index("--lengths") + 1 :]})
        return subprocess.CompletedProcess(command, 0, f"a warning\n{line}\n" if longest == 512 else line, "")

    card = SimpleNamespace(multi_processor_count=132, clock_rate=1_980_000)
    calls = [(name, op, (3, 20), *rest) for name, op, _, *rest in gpu_floors.WHOLE_CALLS]
    for name, value in {"DEVICE": "cpu", "VALUES": 1 << 13, "LOGITS": (2, 3, 50), "WHOLE_CALLS": calls}.items():
        monkeypatch.setattr(gpu_floors, name, value)
    monkeypatch.setattr(gpu_floors, "timed", timed)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(gpu_floors.subprocess, "run", of_lengths)
    cases = [case for table in gpu_floors.tables() for case in table]
    assert all(result is not None for result in called)
    assert [case["case"] for case in cases if "of copy" in case] == [
        *(2 * ["kendall_distance"] + 4 * ["pacs"] + 2 * ["conflict_scores"]),
        *("token_statistics", "with entropies", "gradient"),
    ]
    short = cases[0]
    assert short["rows"] == 1024 and short["GB/s"] == pytest.approx(1024 * (2 * 8 * 4 + 8) / 1e-3 / 1e9)
    assert short["bar"] == "of copy >= 0.8" and short["reached"]  # as fast as the copy
    assert [case["N"] for case in cases if "of floor" in case] == [32, 64]
    assert sum("bar" in case for case in cases) == 18 and all(
        case.get("reached") in (True, False, None) for case in cases
    )
    assert sum(case["case"].startswith("crossover") for case in cases) == 2 * len(gpu_floors.LENGTHS)


def test_crossover():
    pairs, sort = {128: 1.0, 256: 2.0, 512: 4.0}, {128: 3.0, 256: 3.0, 512: 3.0}
    assert gpu_floors.longest_by_pairs(pairs, sort) == 256
    assert gpu_floors.longest_by_pairs(pairs, dict.fromkeys(pairs, 0.5)) == 0
    assert gpu_floors.longest_by_pairs(pairs, dict.fromkeys(pairs, math.inf)) == 512
    ways = [{n: {"untied": t, "tied": 3 * t} for n, t in way.items()} for way in (pairs, sort)]
    ways[1][256]["tied"] = 1.0
    cases = gpu_floors.cases_of_crossover(*ways)
    assert [(c["case"], c["N"], c["longest by pairs"]) for c in cases] == [
        *(("crossover, untied", n, 256) for n in pairs),
        *(("crossover, tied", n, 128) for n in pairs),
    ]
    assert cases[0]["pairs ms"] == 1e3 and cases[3]["sorting ms"] == 9e3
