"""A run with every stage, and what it leaves behind when nothing has interrupted it."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from shfcas.cli import main
from tests.support import tiny
from tests.support.run_directories import Open, reopened

CONFIG = """
policy: {policy}
reference: {reference}
reward_model: {reward_model}
gold: tests.support.tiny:letter_reward
prompts: {folder}/train.jsonl
eval_prompts: {folder}/held_out.jsonl
preferences: {folder}/preferences.jsonl
demonstrations: {folder}/demonstrations.jsonl
policy_score: logprob_ratio
sft: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
proxy: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
sampling: {{num_completions: 4, temperature: 1.0, max_new_tokens: 8, shard_size: 2}}
selection: {{budget: 8}}
reward: {{num_train_epochs: 2, batch_size: 4, checkpoint_steps: 1}}
rl: {{ppo: {{num_rollouts: 4, rollout_batch_size: 8, mini_batch_size: 4, num_ppo_epochs: 1, learning_rate: 1e-2,
            max_prompt_length: 64, max_completion_length: 8, save_rollouts: 1}}}}
evaluation: {{group_by: topic, sampling: {{num_completions: 4, temperature: 1.0, max_new_tokens: 8, shard_size: 2}}}}
"""


def write_config(folder: Path) -> Path:
    """Models, prompts, preferences and demonstrations, and the configuration that names them."""
    names = tiny.write_models(folder)
    good, bad = ("good", "great", "happy"), ("bad", "terrible", "cold")
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"it was {good[i % 3]}"}],
            "rejected": [{"role": "assistant", "content": f"it was {bad[i // 3 % 3]}"}],
        }
        for i, row in enumerate(tiny.prompts(12, prefix="seed"))
    ]
    tiny.write_lines(folder / "train.jsonl", tiny.prompts(8, prefix="train"))
    tiny.write_lines(folder / "held_out.jsonl", tiny.held_out_prompts(6))
    tiny.write_lines(folder / "preferences.jsonl", pairs)
    tiny.write_lines(
        folder / "demonstrations.jsonl",
        [{"prompt": pair["prompt"], "completion": pair["chosen"][0]["content"]} for pair in pairs],
    )
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, **names))
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `config.yaml` and the run `run` that it describes, to read. One worker makes it for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "finished-run"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            assert main(["run", str(write_config(folder)), "--output", str(folder / "run")]) == 0
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def run_config(finished: Path) -> Path:
    """The configuration of the finished run; another `--output` makes the same run again."""
    return finished / "config.yaml"


@pytest.fixture(scope="session")
def finished_run(finished: Path) -> Path:
    """A finished run directory, to read; a test that changes it copies it first."""
    return finished / "run"


@pytest.fixture
def reopen(tmp_path: Path) -> Open:
    """Opens the same run directory as a new process would, after the one before has gone."""
    return reopened(tmp_path / "run")
