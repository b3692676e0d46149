"""The example of a PPO training is short, and trains a model."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo.py"


def test_the_example_is_short_and_needs_nothing_else_of_shfcas() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert [line for line in text.splitlines() if "shfcas" in line] == [
        "from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer"
    ]


def check_trained(policy: str, output: Path, printed: str) -> None:
    """The saved policy is not the one that training started from, and metrics were printed."""
    assert "'objective/kl'" in printed
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, output))
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(before(ids).logits, after(ids).logits)


def test_the_example_trains_a_model(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), policy, str(tmp_path / "new")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    check_trained(policy, tmp_path / "new", capsys.readouterr().out)


@pytest.mark.system
def test_the_example_trains_a_model_as_a_reader_would_run_it(policy: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), policy, str(tmp_path / "new")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_trained(policy, tmp_path / "new", done.stdout)
