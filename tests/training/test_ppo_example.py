import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo.py"


def test_the_example_is_short_and_trains_a_model(policy: str, tmp_path: Path) -> None:
    """As a reader would run it, in a process of its own and with nothing else of shfcas."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert [line for line in text.splitlines() if "shfcas" in line] == [
        "from shfcas.training.ppo.trainer import PPOConfig, PPOTrainer"
    ]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), policy, str(tmp_path / "new")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'objective/kl'" in done.stdout
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, tmp_path / "new"))
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(before(ids).logits, after(ids).logits)
