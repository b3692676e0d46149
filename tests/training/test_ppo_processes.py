"""Two processes under DDP, on the CPU: they share rollouts, normalisation, evaluation and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from shfcas.training.ppo.trainer import PPOTrainer
from tests.support.ppo_tiny import config, prompts, share_of, tiny_classifier, tiny_model, tiny_tokenizer


def train(folder: Path) -> None:
    """What each process does; its results go to a file of its own."""
    settings = {"num_rollouts": 3, "per_device_train_batch_size": 2, "save_rollouts": 1, "ddp_backend": "gloo"}
    settings |= {"eval_rollouts": 1, "early_stopping_patience": 3, "normalize_rewards": True, "log_completions": True}
    settings |= {"whiten_rewards": True, "ptx_coef": 0.5, "cost_limit": 0.01}
    ppo = PPOTrainer(
        tiny_model(),
        config(folder, **settings),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=share_of("w7"),
        eval_dataset=Dataset.from_dict({"prompt": ["w20", "w21", "w22"]}),  # shares of different size
        value_model=tiny_classifier(3),
        demonstrations=[{"prompt": "w1", "completion": " w2 w3"}, {"prompt": "w4", "completion": " w5"}],
        cost_func=share_of("w9"),
    )
    ppo.train()
    result = {
        "rows": [row for row in ppo.state.log_history if "rollout" in row],
        "weights": [parameter.double().sum().item() for parameter in ppo.model.parameters()],
        "moments": vars(ppo.reward_moments),
        "multiplier": ppo.cost_multiplier.value,
        "best": vars(ppo.early_stopping),
    }
    (folder / f"result-{os.environ['RANK']}.json").write_text(json.dumps(result))


@pytest.mark.system
@pytest.mark.slow
def test_two_processes_end_with_one_policy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["moments"]["count"] == 3 * 8 and first["multiplier"] != 1
    assert all(row["loss/ptx_avg"] > 0 for row in first["rows"][:3])
    assert [row["rollout"] for row in first["rows"]] == [0, 1, 2, 3]
    answers = [path.read_text().splitlines() for path in sorted((tmp_path / "completions").iterdir())]
    asked = [sorted(json.loads(line)["prompt"] for line in part) for part in answers]
    assert asked == [sorted(prompts()["prompt"])] * 3
    assert (tmp_path / "checkpoint-12" / "value_model" / "model.safetensors").is_file()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
